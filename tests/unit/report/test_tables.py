"""Tables for terminals: figures are never cut, and the columns of each table explain one another."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

import precopy
from precopy.migration import Attempt, Downtime, Migrated, Round
from precopy.migration.results import GuestStall
from precopy.planning.plan.advice import advise
from precopy.planning.plan.plan import PlanInput, plan
from precopy.planning.plan.sweep import Axis, Grid
from precopy.planning.policies import POLICIES
from precopy.planning.replay.compare import compare
from precopy.planning.replay.replay import Replayer
from precopy.ports import Stall, Throttled
from precopy.report.console import FittedTable
from precopy.report.kinds import KINDS, load, text_of
from precopy.report.kinds.compare import PolicyComparison
from precopy.report.kinds.demo import Demo, DemoRun
from precopy.report.kinds.kind import TextPart
from precopy.report.kinds.migrate import rounds_table, stall_line, total_line
from precopy.report.kinds.plan import PlannedMigration
from precopy.report.kinds.plan_sweep import PlanSweep
from precopy.report.kinds.replay import Replay
from precopy.report.table import Column, Table
from precopy.report.wrapping import words
from precopy.units import format_duration, format_rate, format_size
from support import reports, traces
from support.figures import Printed

WIDTHS = (60, 80, 120)
LONG = "a-name-without-any-space-that-is-longer-than-most-terminals-are-wide-" * 2
NAMES = ("", "pc.ram", "name with several words in it, and (brackets) [too]", LONG)
FIGURES = st.one_of(
    st.integers(0, 2**62).map(str),
    st.floats(0, 1e9).map(format_duration),
    st.floats(0, 1e20).map(format_size),
    st.floats(0, 1e15).map(format_rate),
)


def rendered(part: RenderableType, width: int) -> list[str]:
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(part, crop=False, soft_wrap=isinstance(part, str))
    return capture.get().splitlines()


def whole(table: Table, width: int) -> None:
    """Nothing in a table is cut at this width, and no line is wider unless one figure is."""
    shown = FittedTable(table)
    lines = rendered(shown, width)
    text = "\n".join(lines)
    cells = [(column, cell) for row in shown.rows for column, cell in zip(table.columns, row, strict=True)]
    for column, cell in cells:
        pieces = cell.split("\n") if column.numeric else words(cell)
        for piece in pieces:
            breakable = not column.numeric and " " not in piece and len(piece) > 20
            assert piece in text or breakable, (column, piece)  # only a long word may be broken within
    letters = re.sub(r"\s|─", "", text)
    for cell in shown.rows[-1]:
        assert set(cell) - {" ", "\n"} <= set(letters)
    if max((len(cell) for column, cell in cells if column.numeric), default=0) < width // 2:
        assert max(map(len, lines)) <= width


@given(st.lists(st.lists(FIGURES, min_size=6, max_size=6), min_size=1, max_size=4), st.sampled_from(NAMES), st.data())
def test_no_figure_of_any_table_is_cut(rows: list[list[str]], name: str, data: st.DataObject) -> None:
    heads = ("round", "sync time", "bandwidth", "precopy's ratio to it", "clear", "log_clear us")
    columns = (Column("what", numeric=False), *map(Column, heads), Column("reason", numeric=False))
    made = tuple((name, *row, f"{row[0]} of downtime do not fit {row[1]}") for row in rows)
    whole(Table("any", columns, made), data.draw(st.integers(50, 200)))


def extreme(value: Any) -> Any:
    """A document with figures a million times as large, and long names."""
    match value:
        case bool() | None:
            return value
        case int() | float():
            return value * 10**6
        case dict():
            # The time-out policy is one of a few names.
            return {key: one if key == "on_timeout" else extreme(one) for key, one in value.items()}
        case list():
            return [extreme(one) for one in value]
        case str():
            return f"{value} {LONG}"
    raise TypeError(type(value))


ROUND = Round(
    number=1, final=False, sync_s=0.004, log_sync_s=0.001, bitmap_sync_s=0.001, log_clear_s=0.002, transfer_s=1.25,
    send_s=1.0, scan_s=0.1, clear_s=0.05, ack_s=0.01, dirty_pages=60_000, new_dirty_pages=0, sent_pages=50_000,
    zero_pages=15_000, torn_batches=3, sent_bytes=205_000_000, get_log_ioctls=11, clear_log_ioctls=12,
    get_log_ioctl_s=0.001, clear_log_ioctl_s=0.002, bandwidth_bytes_per_s=2.05e8, dirty_rate_bytes_per_s=1e7,
    pending_pages=65_536, left_pages=536,
)  # fmt: skip
LAST = replace(
    ROUND, number=2, final=True, dirty_pages=700, new_dirty_pages=600, again_pages=14, pending_pages=1150,
    sent_pages=1100, zero_pages=50, left_pages=0, found_twice_pages=20, torn_batches=0, sent_bytes=4_510_000,
    bandwidth_bytes_per_s=4_510_000.0,
)  # fmt: skip


def large(one: Any) -> Any:
    """A record with every number at its largest."""
    numbers = {field.name: getattr(one, field.name) for field in fields(one)}
    return replace(
        one, **{name: value * 10**9 for name, value in numbers.items() if type(value) in (int, float) and value}
    )


def migrated(*rounds: Round) -> Migrated:
    return Migrated(
        session="0", guest="kvm", tracker="kvm dirty log", tracker_why="", tracker_pause_s=0.0, clear="deferred",
        clear_chunk_shift=15, policy="precopy", rounds=rounds, verdicts=(), downtime=Downtime(0.1, 0.2, 0.3, 0.4, 0.5),
        downtime_limit_s=0.3, total_s=3.5, verify_s=0.75, setup_s=0.25,
        sent_bytes=sum(one.sent_bytes for one in rounds) + 4000, ram_bytes=65_536 * 4096, compared_pages=65_536,
        throttled=Throttled((), 0.0), verify_bytes=200_000_000, setup_bytes=800, other_bytes=4000,
    )  # fmt: skip


ATTEMPT = Attempt("0", "kvm", "per-page", "precopy", (ROUND,), (), 0.3, 9.0, 205_000_100, 100, 4096, 65_536 * 4096)


def demo_of(rounds: tuple[Round, ...]) -> Demo:
    why = "did not converge: out of time: 41.0 ms to 12.2 s of downtime do not fit 300.0 ms"
    good, bad = DemoRun("deferred", migrated(*rounds), True, "yes"), DemoRun("per-page", None, False, why, ATTEMPT)
    return Demo("kvm", (good, bad))


def trace_parts() -> Iterable[TextPart]:
    trace = traces.record(traces.hot_and_cold(4000, 500))
    outcome = Replayer(trace).run(POLICIES["precopy"], bandwidth=None, clear=None, limits=trace.facts.limits)
    terms = {"policy": "precopy", "clear": "merged", "bandwidth": None, "limits": trace.facts.limits}
    replay = Replay.of(LONG, trace, outcome, **terms)
    yield from text_of("replay", replay)
    compared = compare({LONG: trace, "short": trace}, list(POLICIES.values())[:3], lambda limits: limits)
    scored = PolicyComparison.of(list(compared.traces), [])
    yield from text_of("compare", scored)


def plan_parts() -> Iterable[TextPart]:
    asked = PlanInput(64 << 30, 2.5e9, 1.2e9, 8 << 30, 0.06, 0.1)
    return text_of("plan", PlannedMigration.of(plan(asked), advise(asked), source=LONG))


def sweep_parts() -> Iterable[TextPart]:
    values = {"ram_bytes": (1e15,), "sync_s": (1e-3, 1e5), "dirty_rate_bytes_per_s": (1.0, 1e14)}
    grid = Grid(tuple(Axis(name, one) for name, one in values.items()))
    return text_of("plan-sweep", PlanSweep.of(grid, {"converges": array("b", [1, 0, 1, 0])}, "2 processes", 1e5))


def migration_parts() -> Iterable[TextPart]:
    for rounds in ((ROUND, LAST), (large(ROUND), LAST)):
        yield from rounds_table(rounds)
        yield from text_of("demo", demo_of(rounds))


PARTS: list[Callable[[], Iterable[TextPart]]] = [trace_parts, plan_parts, sweep_parts, migration_parts]


def extreme_figures(body: dict[str, Any]) -> dict[str, Any]:
    """As `extreme`, with texts as they are but for names."""
    long = extreme(body)

    def mend(value: Any, before: Any) -> Any:
        if isinstance(before, dict):
            return {key: mend(value[key], before[key]) for key in before}
        if isinstance(before, list):
            return [mend(one, other) for one, other in zip(value, before, strict=True)]
        return before if isinstance(before, str) else value

    return mend(long, body)  # type: ignore[no-any-return]  # a dict of a dict


def text(kind: str, document: dict[str, Any]) -> Sequence[TextPart]:
    """What a terminal shows of it, once it was read as `precopy report` reads it."""
    made_of = load(kind)
    return made_of.text(msgspec.convert(made_of.today(document), made_of.record))


def lines(table: TextPart) -> list[dict[str, str]]:
    """Each line's cells by the names of their columns."""
    assert isinstance(table, Table)
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("make", PARTS)
def test_no_figure_of_ours_is_cut(make: Callable[[], Iterable[TextPart]], width: int) -> None:
    tables = [part for part in make() if isinstance(part, Table)]
    assert tables
    for table in tables:
        whole(table, width)


RECORDED = list(KINDS)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("change", [lambda body: body, extreme, extreme_figures], ids=["as it is", "extreme", "large"])
@pytest.mark.parametrize("kind", RECORDED)
def test_no_figure_of_a_document_is_cut(kind: str, change: Callable[[Any], Any], width: int) -> None:
    shown = text(kind, change(reports.ALL[kind]()))
    assert shown
    for part in shown:
        if isinstance(part, Table):
            whole(part, width)


def test_every_module_with_a_table_is_among_them() -> None:
    """A table of a new module has to be tried with extreme figures, too; and none is made in another way. Those of
    `precopy.report.kinds` are, whatever there is; a page has no width."""
    source = Path(precopy.__file__).parent
    makers = {
        path.stem
        for path in source.rglob("*.py")
        if re.search(r"from precopy\.report\.table import .*\b(?:Table|tabulate)\b", path.read_text())
        and path.parent.name not in ("kinds", "html")
    }
    assert makers == {"console"}
    direct = {path.stem for path in source.rglob("*.py") if "rich.table" in path.read_text()}
    assert direct == {"console"}


# Columns that explain one another.


def test_a_rounds_columns() -> None:
    left = 0
    for number, row in enumerate(lines(rounds_table((ROUND, LAST))[0])):
        to_send = sum(int(row[name]) for name in ("sent", "zero", "left"))
        assert to_send == int(row["to send"])
        if number:
            assert to_send == left + int(row["new"]) + int(row["again"])
        left = int(row["left"])
        sync = Printed.of(row["log_sync"]) + Printed.of(row["bitmap"]) + Printed.of(row["log_clear"])
        assert sync.meets(Printed.of(row["sync time"]))
        assert (Printed.of(row["bandwidth"]) * Printed.of(row["sending"])).meets(Printed.of(row["bytes"]))
        assert Printed.of(row["sending"]).within(Printed.of(row["transfer time"]))
        assert int(row["new"]) <= int(row["dirty"])


def test_what_was_taken_from_the_guest() -> None:
    rounds = (replace(ROUND, stall=Stall(1.25, 0.0021, 0.05, 37)), replace(LAST, stall=None))
    table = rounds_table(rounds)[0]
    assert isinstance(table, Table)
    names = [column.name for column in table.columns]
    at = names.index("longest gap"), names.index("in gaps")
    assert [[row[one] for one in at] for row in table.rows] == [["2.1 ms", "50.0 ms"], ["-", "-"]]
    assert "in gaps" not in [column.name for column in rounds_table((ROUND, LAST))[0].columns]  # type: ignore[union-attr]

    before, precopy = Stall(1.25, 0.0004, 0.0025, 9), Stall(2.5, 0.0021, 0.05, 37, unread=2)
    assert stall_line(GuestStall(before, precopy)) == (
        "by its own clock the guest stood still for 50.0 ms of the 2.50 s before it was paused (2.0 %), longest gap "
        "2.1 ms (of those that were read; 2 were not); in the 1.25 s before the migration 2.5 ms (0.2 %), longest gap "
        "400 us"
    )
    assert GuestStall(before, precopy).share_above_before == pytest.approx(0.018)
    assert stall_line(GuestStall(why_not="it is idle")) == "the guest's gaps were not measured: it is idle"
    assert stall_line(GuestStall()) == ""  # a document of an older version
    assert GuestStall().share_above_before is None


def test_a_migrations_sums() -> None:
    line = total_line(migrated(ROUND, LAST))
    match = re.fullmatch(
        r"(.+) in (.+): (.+) \(setup (.+) besides\); then verified: "
        r"all 65536 pages compared byte for byte, (.+) in (.+)",
        line,
    )
    assert match is not None, line
    sent, moving, rate, setup, compared, verify = map(Printed.of, match.groups())
    assert (rate * moving).meets(sent)
    assert (moving + setup + verify).meets(Printed(3.5, 3.5))
    assert compared.meets(Printed(2e8, 2e8))


def test_a_demos_columns() -> None:
    good, bad = lines(text_of("demo", demo_of((ROUND, LAST)))[0])
    assert (Printed.of(good["throughput"]) * Printed.of(good["in"])).meets(Printed.of(good["sent"]))
    assert (bad["rounds"], bad["downtime"], bad["sent"], bad["in"], bad["throughput"]) == ("1", "-", "-", "-", "-")
    assert bad["verified"].startswith("did not converge: out of time")


@st.composite
def plans(draw: st.DrawFn) -> PlanInput:
    ram = 1 << draw(st.integers(12, 36))
    return PlanInput(
        ram_bytes=ram,
        bandwidth_bytes_per_s=draw(st.floats(1e6, 1e12)),
        dirty_rate_bytes_per_s=draw(st.floats(1e5, 1e13)),
        working_set_bytes=draw(st.floats(0, ram)),
        sync_s=draw(st.floats(0, 0.5)),
        downtime_limit_s=draw(st.floats(1e-4, 3)),
        first_bytes=draw(st.sampled_from([None, ram / 2, float(ram)])),
        first_s=draw(st.sampled_from([0.0, 0.5])),
    )


@given(plans())
def test_a_plans_columns(asked: PlanInput) -> None:
    made, ram = plan(asked), asked.ram_bytes
    shown = text_of("plan", PlannedMigration.of(made, advise(asked)))
    (table,) = (part for part in shown if isinstance(part, Table) and part.caption.startswith("The rounds"))
    rows = lines(table)
    at, reads = Printed(0, 0), None
    for row in rows:
        if row["round"] == "...":
            at, reads = Printed(0, float("inf")), None
            continue
        assert Printed.of(row["reads"]).within(Printed(ram, ram))
        assert Printed.of(row["then remaining"]).within(Printed(ram, ram))
        at = at + Printed.of(row["transfer time"]) + Printed.of(row["sync time"])
        assert at.meets(Printed.of(row["at"]))
        at = Printed.of(row["at"])
        assert reads is None or Printed.of(row["reads"]).within(reads)
        reads = Printed.of(row["then remaining"])
    forecast = made.forecast
    if forecast.converges:
        assert Printed.of(rows[-1]["downtime then"]).meets(Printed.of(format_duration(forecast.downtime_s.value)))
        total = Printed.of(rows[-1]["at"]) + Printed.of(rows[-1]["downtime then"])
        assert total.meets(Printed.of(format_duration(forecast.total_s.value)))
        assert forecast.smallest_downtime_limit_s.value <= asked.downtime_limit_s * (1 + 1e-6)


def test_a_prediction_is_off_by_what_its_columns_say() -> None:
    table = text("bench-predict", reports.bench_predict(3))[0]
    assert isinstance(table, Table)
    for cells in table.rows:  # two columns have the same head
        for predicted, measured, off in (cells[3:6], cells[6:9]):
            value = Printed.of(predicted.split(" (")[0])
            assert (Printed.of(measured) * (Printed.of(off) + Printed(1, 1))).meets(value)


def test_a_writers_figures() -> None:
    document = reports.golden("bench-track")
    speeds = {"untracked": 6.0, "tracked": 4.0, "untracked_cpu": 6.2, "tracked_cpu": 5.5}
    writer = {f"{name}_gb_per_s": value for name, value in speeds.items()}
    document["writers"][0].update(writer, slowdown=1 - 5.5 / 6.2, slowdown_wall=1 / 3)
    line = text("bench-track", document)[-1]
    assert isinstance(line, str)
    pairs = re.findall(r"([\d.]+) GB/s, and ([\d.]+) GB/s tracked \((\d+) % slower\)", line)
    assert len(pairs) == 2
    for plain, tracked, slower in pairs:
        kept = Printed.of(tracked), Printed(1, 1) - Printed.of(f"{slower} %")
        assert (kept[1] * Printed.of(plain)).meets(kept[0])


@pytest.mark.parametrize("kind", ["bench-bitmap", "bench-snapshot", "bench-track"])
def test_ratios_that_columns_do_not_explain_are_explained_below(kind: str) -> None:
    assert any(re.search("the repeats.*need not be that of", str(part)) for part in text(kind, reports.ALL[kind]()))
