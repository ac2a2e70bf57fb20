"""``precopy report`` as a command, and its pages in a real browser."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precopy.report.html import render
from support import reports
from support.browser import browse, measure, screenshot
from support.commands import PRECOPY, called, precopy

chromium = pytest.mark.needs("chromium")
WIDE, NARROW, PHONE = 1200, 480, 360


def written(directory: Path, kind: str, document: dict[str, Any]) -> Path:
    """The page of ``document``."""
    page = directory / f"{kind}.html"
    page.write_text(render(json.dumps(document).encode(), f"{kind}.json").html, encoding="utf-8")
    return page


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(reports.demo()))
    return path


def test_the_page_is_written_beside_its_file(source: Path) -> None:
    done = precopy("report", str(source))
    page = source.with_suffix(".html")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{page}: {page.stat().st_size / 1024:.1f} KiB, 8 sections\n"
    assert "once for each clear policy; 2 of 3 were verified" in page.read_text()


def test_json_says_where_the_page_is_and_what_is_in_it(source: Path, tmp_path: Path) -> None:
    page = tmp_path / "other.html"
    document = called("report", str(source), "-o", str(page), "--json").document()
    assert document["schema"] == "precopy.report/1"
    assert document["path"] == str(page)
    assert document["bytes"] == page.stat().st_size
    assert document["sections"][:2] == ["verdict", "policies"]
    assert all(f'id="{name}"' in page.read_text() for name in document["sections"])


def test_stdin(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = json.dumps(reports.migrate())
    done = subprocess.run(
        [*PRECOPY, "report", "-", "-o", str(page)], input=text, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{page}: ")
    assert "from stdin" in page.read_text()


def test_what_a_command_printed_has_a_page(tmp_path: Path) -> None:
    """The document of a real command, not one that was made for a test."""
    result = tmp_path / "layout.json"
    result.write_text(called("layout", "pc-seabios-512m", "--json").out)
    assert called("report", str(result)).code == 0
    assert "system.flash" not in (page := result.with_suffix(".html").read_text())
    assert "pc.ram" in page


@pytest.mark.parametrize("output", ["result.json", "./result.json", "link.html"])
def test_its_input_is_never_overwritten(source: Path, output: str) -> None:
    (source.parent / "link.html").symlink_to(source)
    before = source.read_bytes()
    sentence = called("report", str(source), "-o", str(source.parent / output)).sentence(2)
    assert sentence.endswith("is the file that is read; give another one with -o")
    assert source.read_bytes() == before


def test_a_file_whose_name_ends_in_html_already(tmp_path: Path) -> None:
    path = tmp_path / "result.html"
    path.write_text(json.dumps(reports.migrate()))
    assert "is the file that is read" in called("report", str(path)).sentence(2)


def test_what_cannot_be_read_or_written_is_said(source: Path, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in called("report", str(tmp_path / "none.json")).sentence(2)
    assert "cannot be read: Is a directory" in called("report", str(tmp_path), "-o", "page.html").sentence(2)
    nowhere = str(tmp_path / "none" / "page.html")
    assert "cannot be written: No such file" in called("report", str(source), "-o", nowhere).sentence(2)
    assert "give one with -o" in called("report", "-").sentence(2)
    source.write_text('{"schema": "precopy.migrate/1", "guest": 7}')
    error = called("report", str(source), "--json").error_document(2)
    assert error["message"] == "result.json: guest: expected `str`, got `int`"


@chromium
def test_every_page_in_a_real_browser(tmp_path: Path) -> None:
    """No complaint on the console, every section there, no text cut off, covered or too small, on wide and narrow
    screens."""
    pages = {kind: written(tmp_path, kind, make()) for kind, make in reports.ALL.items()}
    pages["long"] = written(tmp_path, "long", reports.migrate(70))
    looked = [(kind, page, width) for kind, page in pages.items() for width in (WIDE, NARROW, PHONE)]
    found, shown = measure([(page, width) for _, page, width in looked], tmp_path)
    assert shown.console == []
    for (kind, page, width), one in zip(looked, found, strict=True):
        where = f"{kind} at {width}"
        assert one["width"] == width, where
        assert one["reach"] <= width, where
        assert (one["cut"], one["covered"], one["small"]) == ([], [], []), where
        document = reports.migrate(70) if kind == "long" else reports.ALL[kind]()
        sections = render(json.dumps(document).encode(), page.name).sections
        assert set(sections) <= set(one["sections"]), where


@chromium
def test_pictures_have_a_mark_for_each_figure(tmp_path: Path) -> None:
    document = reports.migrate(6)
    pages = [written(tmp_path, "migrate", document), written(tmp_path, "bench-sync", reports.bench_sync())]
    pages.append(written(tmp_path, "compare", reports.compare()))
    (migrate, sync, compare), _ = measure([(page, WIDE) for page in pages], tmp_path)
    rounds = len(document["rounds"])
    assert migrate["figures"]["rounds"]["bars"] == 2 * rounds
    assert migrate["figures"]["rounds"]["rows"] == rounds
    assert migrate["figures"]["remaining"]["dots"] == 2 * (rounds - 1)
    assert migrate["figures"]["downtime"]["bars"] == 5
    assert migrate["figures"]["heat-map"]["cells"] > 5 * rounds
    assert migrate["figures"]["predicted-downtime"]["dots"] == len(document["verdicts"]) - 1
    assert sync["figures"]["ioctls"]["bars"] == 3 * 4  # variants, and blocks that are mapped
    assert compare["figures"]["trace-1"]["dots"] == len(reports.POLICIES)
    assert compare["figures"]["trace-2"]["dots"] == len(reports.POLICIES) - 1  # one did not complete
    assert all(figure["height"] > 50 for figure in migrate["figures"].values())


@chromium
@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<script>nothing()</script>", "nothing is not defined"),
        ("<script>console.error('wrong')</script>", "wrong"),
        (
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'"><img src="x.png">',
            "Content Security Policy",
        ),
    ],
)
def test_the_check_notices_what_is_wrong(tmp_path: Path, body: str, complaint: str) -> None:
    page = tmp_path / "wrong.html"
    page.write_text(f"<!doctype html><title>wrong</title>{body}")
    assert complaint in " ".join(browse(page, "--dump-dom").console)


@chromium
def test_the_check_notices_what_cannot_be_read(tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    page.write_text(
        '<!doctype html><figure id="one" style="width:300px;margin:0"><svg class="picture" width="300" height="90">'
        '<text x="20" y="40">over</text><text x="30" y="40">each other</text><text x="280" y="80">too far</text>'
        '<text x="20" y="80" font-size="5">tiny</text></svg></figure><p style="width:2000px">wide</p>'
    )
    ((one,), _) = measure([(page, NARROW)], tmp_path)
    assert one["covered"] == ["over | each other"]
    assert one["cut"] == ["too far"]
    assert one["small"] == ["tiny"]
    assert one["reach"] > 2000


@chromium
def test_a_page_cannot_load_or_run_what_its_file_holds(tmp_path: Path) -> None:
    """Even if escaping failed: a script in the page is refused by its own policy."""
    page = written(tmp_path, "migrate", reports.migrate())
    page.write_text(page.read_text().replace("<main>", "<main><script>document.title = 'owned'</script>"))
    shown = browse(page, "--dump-dom")
    assert "<title>owned" not in shown.dom
    assert "Content Security Policy" in " ".join(shown.console)


@chromium
def test_pictures_of_a_page_in_light_and_dark(tmp_path: Path) -> None:
    page = written(tmp_path, "migrate", reports.migrate())
    seen = {}
    for dark in (False, True):
        picture = screenshot(page, NARROW, 1200, dark=dark, to=tmp_path / f"{dark}.png")
        assert picture.shape[1] == NARROW
        colours = np.unique(picture.reshape(-1, 3), axis=0)
        assert len(colours) > 50  # text has many shades
        seen[dark] = picture.mean()
        # Neither the upper nor the lower half is empty.
        assert min(half.std() for half in np.array_split(picture, 2)) > 10
    assert seen[False] > 200
    assert seen[True] < 80
