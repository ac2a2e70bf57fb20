"""Pages of results: what they show, and that a file from anybody can neither break them nor speak through them."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import precopy.cli
from precopy.errors import UsageError
from precopy.report.html import LARGEST, Page, render
from precopy.report.html.charts.bars import MOST_ROWS
from precopy.report.html.charts.scale import BYTES, RATE, SECONDS, around, counts, fitting, linear
from precopy.report.html.charts.scatter import staircase
from precopy.report.kinds import KINDS
from support import reports

Documents = dict[str, Any]


class Elements(HTMLParser):
    """The start tags of a page with their attributes, and its text; every tag has to be closed where it was opened."""

    VOID = frozenset({"meta", "br", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, tag: str, css: str = "") -> list[dict[str, str]]:
        wanted = {css} if css else set()
        return [attrs for name, attrs in self.tags if name == tag and wanted <= set(attrs.get("class", "").split())]


def page(*documents: Documents) -> Page:
    return render("\n".join(map(json.dumps, documents)).encode(), "result.json")


def words(shown: Page) -> str:
    return " ".join(" ".join(Elements(shown.html).words).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.mark.parametrize("kind", reports.ALL)
def test_every_kind_of_document_has_a_page(kind: str) -> None:
    shown = page(reports.ALL[kind]())
    elements = Elements(shown.html)
    ids = [attrs["id"] for _, attrs in elements.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert shown.sections[0] == "verdict"
    assert set(shown.sections) <= set(ids)
    assert {link["href"] for link in elements.of("a")} <= {f"#{name}" for name in ids}
    # Nothing is asked of the network, and nothing runs.
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in elements.tags}
    assert not {"src", "srcset", "action", "onload"} & {name for _, attrs in elements.tags for name in attrs}
    assert not re.search(r"https?:|@import|url\((?!#)", shown.html)
    (policy,) = [meta for meta in elements.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy["content"].startswith("default-src 'none'")


@pytest.mark.parametrize("kind", reports.ALL)
def test_pictures_and_tables_can_be_read_without_eyes(kind: str) -> None:
    elements = Elements(page(reports.ALL[kind]()).html)
    for picture in elements.of("svg", "picture"):
        assert picture["role"] == "img"
        assert picture["aria-label"]
    assert len(elements.of("figure")) == len(elements.of("figcaption"))
    assert len(elements.of("table")) == len(elements.of("caption"))
    assert all(cell.get("scope") in ("col", "row") for cell in elements.of("th"))
    # Each picture's figures stand in a table beside it, but for scatters of which one table has both.
    assert len(elements.of("table")) >= len(elements.of("svg", "picture"))


def test_a_migration_is_told_in_plain_words() -> None:
    text = words(page(reports.migrate()))
    assert "A running kvm guest with 256 MiB of memory was moved to another process in 984.6 ms" in text
    assert "verification took 10.0 ms besides" in text  # and is in no other figure
    assert "257 MiB besides for verification" in text
    assert "it stood still for 23.9 ms of that" in text
    assert "80 % of its limit of 30.0 ms" in text
    assert "It took 6 rounds: the first sent 257 MiB, the last 1.4 MiB." in text
    assert "before the guest ran on, 65,536 pages were compared byte for byte" in text
    assert "it first did after round 3" in text
    assert "5 of 5 ranges have it inside" in text


def test_a_file_that_counts_verification_is_told_without_it() -> None:
    """Older files have the comparison's bytes in those sent, and in the throughput."""
    now = reports.migrate()
    old = {name: value for name, value in now.items() if name not in ("verify_bytes", "setup_bytes", "other_bytes")}
    old["sent_bytes"] = now["sent_bytes"] + now["verify_bytes"]
    old["throughput_bytes_per_s"] = old["sent_bytes"] / (now["total_s"] - now["verify_s"] - now["setup_s"])

    def sent(document: dict[str, Any]) -> str:
        match = re.search(r"Sent\s+(\S+ MiB)\s+(\S+ times its memory, \S+ MB/s on average)", words(page(document)))
        assert match is not None
        return " ".join(match.groups())

    assert sent(old) == sent(now)


def test_a_downtime_above_its_limit_is_said() -> None:
    late = reports.migrate()
    late["downtime_limit_s"] = 0.01
    text = words(page(late))
    assert "completed, verified, downtime above its limit" in text
    assert "The downtime is above its limit of 10.0 ms." in text
    assert "239 % of its limit" in text


def test_memories_that_were_not_compared_are_not_called_verified() -> None:
    text = words(page({**reports.migrate(), "verified": False, "compared_pages": 0}))
    assert "completed, not verified" in text
    assert "memories were not compared" in text


@pytest.mark.parametrize("kind", reports.ALL)
def test_the_glossary_stands_at_the_end_before_the_machine(kind: str) -> None:
    sections = page(reports.ALL[kind]()).sections
    order = [name for name in sections if name in ("glossary", "machine")]
    assert list(sections[len(sections) - len(order) :]) == order
    html = page(reports.ALL[kind]()).html
    places = [html.index(f'id="{name}"') for name in sections]
    assert places == sorted(places)


def test_titles_tell_two_tabs_apart() -> None:
    """By their file, and by what is in it."""
    one = reports.migrate()
    later = {**one, "downtime": {**one["downtime"], "commit_s": 1.5}}
    titles = {
        re.search("<title>(.*)</title>", render(json.dumps(document).encode(), name).html)[1]
        for name in ("a.json", "b.json")
        for document in (one, later, {**one, "total_s": 77.0}, reports.demo(), reports.compare())
    }
    assert len(titles) == 10


def alike(spread: float, completed: bool = True) -> Documents:
    """Policies whose downtimes differ by ``spread``."""
    document = reports.compare()
    for trace in document["traces"]:
        for number, result in enumerate(trace["results"]):
            figures = {"downtime_s": 0.05 * (1 + spread * (number % 2)), "total_s": 1.5}
            result.update(completed=completed, on_front=completed, **(figures if completed else dict.fromkeys(figures)))
    return document


@pytest.mark.parametrize(
    ("spread", "said"), [(0.0, "to the last digit"), (0.012, "to within 1.2 %"), (0.03, "no other policy beats")]
)
def test_policies_that_came_to_the_same_are_said_to(spread: float, said: str) -> None:
    text = words(page(alike(spread)))
    assert said in text
    assert ("Here the policy makes no difference" in text) == (spread < 0.02)


def test_policies_of_which_none_completed() -> None:
    text = words(page(alike(0.0, completed=False)))
    assert "none of them completed" in text
    assert "no other policy beats" not in text


MADE = {
    "host": "node-17",
    "date": "2026-11-30T02:40:00+00:00",
    "command": "precopy migrate unix:/a unix:/b --downtime-limit 50ms",
    "defaults": {"policy": "precopy", "clear": "deferred"},
}


def test_where_and_how_it_was_measured() -> None:
    document = reports.migrate()
    document.update(machine={**reports.MACHINE, **MADE}, workload="hotset (0.0625 of the pages), 20,000 pages/s")
    text = words(page(document))
    for said in (
        "node-17",
        "2026-11-30 02:40:00 UTC",
        "precopy migrate unix:/a unix:/b --downtime-limit 50ms",
        "policy precopy, clear deferred",
        "hotset (0.0625 of the pages), 20,000 pages/s",
        reports.MACHINE["kernel"],
    ):
        assert said in text


def test_a_failed_migration_has_its_rounds() -> None:
    failed: Documents = {"schema": "precopy.error/1", "machine": {**reports.MACHINE, **MADE}}
    failed["error"] = {"kind": "NotConverged", "message": "did not converge in 6 rounds", "exit_code": 4}
    failed["migration"] = {**reports.migrate(), "completed": False, "remaining_bytes": 5}
    shown = page(failed)
    assert "rounds" in shown.sections
    assert "node-17" in words(shown)
    assert "The migration until then, round by round." in words(shown)
    assert "rounds" not in page({**failed, "migration": None}).sections
    with pytest.raises(UsageError, match=r"migration\.rounds: expected `array`, got `str`"):
        page({**failed, "migration": {"rounds": "none"}})


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        (
            "migrate",
            [
                "rounds",
                "remaining",
                "heat-map",
                "stall",
                "downtime",
                "predicted-downtime",
                "predicted-total",
                "glossary",
            ],
        ),
        ("demo", ["policies", "ioctls", "downtime", "run-1-rounds", "run-2-rounds", "glossary", "machine"]),
        ("bench-sync", ["sync-times", "ioctls", "glossary", "machine"]),
        ("bench-migrate", ["throughput", "downtime", "run-1-rounds", "run-2-rounds", "glossary", "machine"]),
        ("compare", ["policies", "trace-1", "trace-2", "glossary"]),
        (
            "bench-predict",
            [
                "predicted-downtime",
                "predicted-total",
                "held",
                "migrations",
                "missed",
                "hopeless",
                "glossary",
                "machine",
            ],
        ),
        ("bench-bitmap", ["table-1", "fields", "list-1", "machine"]),
        ("error", ["error"]),
    ],
)
def test_sections(kind: str, sections: list[str]) -> None:
    assert list(page(reports.ALL[kind]()).sections) == ["verdict", *sections]


def test_what_an_older_file_lacks_has_no_section() -> None:
    assert page(reports.migrate(live=False)).sections == ("verdict", "rounds", "downtime", "glossary")


def test_documents_of_several_lines_stand_one_below_the_other() -> None:
    shown = page(reports.migrate(), reports.demo())
    assert {"document-1-verdict", "document-1-rounds", "document-2-policies"} <= set(shown.sections)
    assert len(Elements(shown.html).of("article")) == 2


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    document = reports.migrate(live=False)
    elements = Elements(page(document).html)
    start = next(i for i, (tag, attrs) in enumerate(elements.tags) if tag == "figure" and attrs["id"] == "rounds")
    end = next(i for i, (tag, attrs) in enumerate(elements.tags) if tag == "figure" and attrs["id"] == "downtime")
    inside = elements.tags[start:end]
    bars = [attrs["class"].split()[0] for tag, attrs in inside if tag == "g" and "bar" in attrs.get("class", "")]
    drawn = bars[2:]  # the first two are the legend's
    assert drawn == ["s2", "s1"] * len(document["rounds"])
    widths = [
        float(inside[i + 2][1]["width"])  # after the group and its title
        for i, (tag, attrs) in enumerate(inside)
        if tag == "g" and attrs.get("class") == "s1 bar" and inside[i + 1][0] == "title"
    ]
    times = [one["transfer_s"] for one in document["rounds"]]
    for width, seconds in zip(widths, times, strict=True):
        assert width == pytest.approx(max(widths[0] * seconds / times[0], 2.0), abs=0.06)


def test_of_many_rounds_the_first_and_last_are_drawn_and_the_table_has_all() -> None:
    shown = page(reports.migrate(3 * MOST_ROWS, live=False))
    assert f"{2 * MOST_ROWS} rounds" in words(shown)
    assert shown.html.count('<th scope="row">') >= 3 * MOST_ROWS


HOSTILE = ("<script>alert(1)</script>", "\"><img src=x onerror='1'>", "</title></style>&lt;{{ 7 }}")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("kind", reports.ALL)
def test_strings_of_a_file_stay_text(kind: str, text: str) -> None:
    plain = reports.ALL[kind]()
    tags = [tag for tag, _ in Elements(page(plain).html).tags]

    def say(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: say(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [say(inner) for inner in value]
        return f"{value}{text}" if isinstance(value, str) and key not in ("schema", "on_timeout") else value

    shown = page(say(plain))
    assert "<script" not in shown.html
    assert "<img" not in shown.html
    assert {tag for tag, _ in Elements(shown.html).tags} == set(tags)
    if kind != "error":
        assert text.split("'", maxsplit=1)[0] in "".join(Elements(shown.html).words)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "bad.json is not JSON"),
        (b"\xff\xfe", "bad.json is not JSON"),
        (b"{", "bad.json is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema": "\\ud800"}', "bad.json is not JSON"),
        (b"{}", "bad.json has no `schema` of precopy's"),
        (b"[1, 2]", "bad.json has no `schema` of precopy's"),
        (b'{"schema": "other/1"}', "bad.json has no `schema` of precopy's"),
        (b'{"schema": "precopy.migrate/3"}', "bad.json is precopy.migrate/3; this precopy reads migrate documents"),
        (b'{"schema": "precopy.status/2"}', "bad.json is precopy.status/2; this precopy reads status documents"),
        (b'{"schema": "precopy.migrat/1"}', "is precopy.migrat/1, which is no kind of document of this precopy's; did"),
        (b'{"schema": "precopy.migrat/1"}', "did you mean migrate? there are bench-bitmap, bench-display,"),
        (b'{"schema": "precopy.new/1"}', "is precopy.new/1, which is no kind of document of this precopy's; there are"),
        (b'{"schema": "precopy.migrate/1"}', "bad.json: object missing required field `session`"),
        (b'{"schema": "precopy.demo/1", "runs": []}', "`runs` has to be a list"),
        (b'{"schema": "precopy.demo/1", "runs": [7]}', "runs[0]: expected `object`"),
        (b'{"schema": "precopy.replay/1"}\n{"schema": "no"}', "bad.json, document 2 has no `schema`"),
        (b'{"schema": "precopy.error/1"}\n' * 51, "holds 51 documents"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        render(data, "bad.json")
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("rounds", 0, "sync_s"), "1", "rounds[0].sync_s: expected `float`, got `str`"),
        (("rounds", 1, "transfer_s"), -1.0, "rounds[1].transfer_s: expected `float` >= 0.0"),
        (("rounds", 0, "dirty_pages"), 1.5, "rounds[0].dirty_pages: expected `int`, got `float`"),
        (("rounds", 0, "dirty_map"), [1] * 257, "rounds[0].dirty_map: expected `array` of length <= 256"),
        (("rounds",), [], "rounds: expected `array` of length >= 1"),
        (("downtime", "pause_s"), None, "downtime.pause_s: expected `float`, got `null`"),
        (("downtime_limit_s",), True, "downtime_limit_s: expected `float`, got `bool`"),
        (("total_s",), 10**30, "total_s: expected `float` <= 1e+24"),
        (("verdicts", 0, "total_s"), 3, "verdicts[0].total_s: expected `object`"),
    ],
)
def test_a_number_that_is_none_is_named_with_its_place(path: tuple[Any, ...], value: Any, sentence: str) -> None:
    document = reports.migrate()
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(UsageError) as refused:
        page(document)
    assert str(refused.value).startswith(f"result.json: {sentence}")


def test_a_file_that_is_too_large_is_refused() -> None:
    with pytest.raises(UsageError, match="larger than 64 MiB"):
        render(b" " * (LARGEST + 1), "large.json")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in ``value`` that hold no others."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [one for name, part in items for one in leaves(part, (*path, name))]
    return inner or [path]


PLACES = {kind: leaves(make()) for kind, make in reports.ALL.items()}
ODD = st.sampled_from([0, 0.0, 1e-320, 5e-324, 1e24, 1 << 62, -1, None, True, "", "x" * 500, [], {}, [[]], 0.5])


@given(kind=st.sampled_from(list(reports.ALL)), data=st.data())
def test_whatever_a_file_holds_it_is_a_page_or_one_sentence(kind: str, data: st.DataObject) -> None:
    document = copy.deepcopy(reports.ALL[kind]() if kind != "bench-predict" else reports.bench_predict(3))
    places = PLACES[kind] if kind != "bench-predict" else leaves(document)
    for _ in range(data.draw(st.integers(1, 6))):
        path, inner = data.draw(st.sampled_from(places)), document
        try:
            for name in path[:-1]:
                inner = inner[name]
            inner[path[-1]] = data.draw(ODD)
        except (IndexError, KeyError, TypeError):  # the place is gone: an odd value stands above it
            continue
    try:
        shown = page(document)
    except UsageError:
        return  # anything else fails the test
    coordinates = re.findall(r' (?:x|y|cx|cy|width|height|d|viewBox)="([^"]*)"', shown.html)
    assert not [one for one in coordinates if re.search("nan|inf|e[+-]?[0-9]", one)]


@given(
    values=st.lists(st.floats(1e-9, 1e15), min_size=1, max_size=8),
    quantity=st.sampled_from([SECONDS, BYTES, RATE]),
)
def test_axes_keep_the_order_of_values_and_have_their_ticks_on_them(values: list[float], quantity: Any) -> None:
    axes = [fitting("a", values, quantity), around("a", values, quantity), counts("a", max(values))]
    for axis in [*axes, linear("a", max(values), quantity)]:
        places = [axis.at(value) for value in sorted(values)]
        assert places == sorted(places)
        assert all(0 <= place <= 1 for place in places)
        ticks = [place for place, _ in axis.ticks]
        assert ticks == sorted(ticks)
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in ticks)
        assert len(ticks) <= 18
        assert len({label for _, label in axis.ticks}) == len(ticks)


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=1, max_size=8))
def test_nothing_lies_below_the_staircase(points: list[tuple[float, float]]) -> None:
    front = [(x, y) for x, y in points if not any((a <= x and b <= y and (a, b) != (x, y)) for a, b in points)]
    corners = staircase(front, 10, 10)
    assert all(math.isclose(x, after_x) or math.isclose(y, after_y) for (x, y), (after_x, after_y) in pairwise(corners))
    for x, y in points:
        height = min((b for a, b in front if a <= x), default=10)
        assert y >= height


def _as_it_was(value: Any) -> Any:
    """A document under the names that version 0.1 gave to its fields."""
    if isinstance(value, list):
        return [_as_it_was(one) for one in value]
    if not isinstance(value, dict):
        return value
    was = {name: _as_it_was(field) for name, field in value.items()}
    if isinstance(was.get("rounds"), list):
        pending = [one.pop("pending_bytes") for one in was["rounds"]]
        for one, after in zip(was["rounds"], [*pending[1:], 0], strict=True):
            one.update(remaining_bytes=after, ended_s=one.pop("arrived_s"))
    for now, then in (
        ("throttled_share", "throttle"),
        ("throttle_to", "throttle"),
        ("downtime_limit_s", "limit_s" if "action" in value else "downtime_limit_s"),
        ("throttled_s", "stolen_s"),
    ):
        if now in was:
            was[then] = was.pop(now)
    return was


@pytest.mark.parametrize("kind", ["migrate", "demo", "bench-migrate"])
def test_names_that_older_files_have(kind: str) -> None:
    document, migration = reports.ALL[kind](), reports.migrate()
    if kind == "demo":
        document["runs"] = [{**run, **migration} if run["completed"] else run for run in document["runs"]]
    if kind == "bench-migrate":
        document["repeats"] = [{**repeat, "precopy": migration} for repeat in document["repeats"]]
    older = _as_it_was(document)
    assert older != document
    assert "throttled_share" not in json.dumps(older)
    older["schema"], today = f"precopy.{kind}/1", document["schema"]
    assert page(older).html.replace(older["schema"], today) == page(document).html


def test_what_was_taken_from_the_guest_is_drawn_where_the_guest_says_it() -> None:
    document = reports.migrate()
    said = Elements(page(document).html)
    assert "stall" in {attrs.get("id") for _, attrs in said.tags}
    text = " ".join(said.words).replace("\u00a0", " ")
    assert "Before it was paused, 1.3 % of the guest's time was in gaps of more than 0.1 ms, the longest 4.8 ms" in text
    assert "The guest's own clock says how long it did not go on: at most 4.8 ms before its switchover." in text
    del document["stall"]
    for one in document["rounds"]:
        del one["stall"]
    older = Elements(page(document).html)
    assert "stall" not in {attrs.get("id") for _, attrs in older.tags}
    assert "longest gap" not in " ".join(older.words)


def test_every_kind_that_a_command_prints_is_known() -> None:
    """Read from the commands' source, so that a new kind cannot be forgotten."""
    source = "".join(path.read_text() for path in Path(precopy.cli.__file__).parent.rglob("*.py"))
    kinds = set(re.findall(r'(?:show_result|body_of)\(\s*"([a-z-]+)"', source))
    assert kinds == KINDS.keys()
    for kind, entry in KINDS.items():
        for version in range(1, entry.oldest):
            text = f'{{"schema": "precopy.{kind}/{version}", "why": "because"}}'
            assert "why" in render(text.encode(), "a.json").html


def test_a_schema_is_spelt_in_one_place() -> None:
    for path in Path(precopy.__file__).parent.rglob("*.py"):
        assert not re.findall(r'"precopy\.[a-z-]+/[0-9]"', path.read_text()), path
