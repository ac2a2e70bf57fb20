"""A real browser, without a window: what it says of pages, where it puts things, and pictures of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .patience import IN_TIME_S

NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--enable-logging=stderr", "--v=0"),
)
_CONSOLE = re.compile(r"^\[[^\]]*:CONSOLE[^\]]*\] (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Shown:
    """What a browser printed: the page as it is after loading, and its console's lines."""

    dom: str
    console: list[str]


def browse(page: Path, *arguments: str) -> Shown:
    """Opens ``page`` with an empty profile, until it has loaded."""
    browser = next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        done = subprocess.run(
            [browser, *_QUIET, f"--user-data-dir={home}/profile", *arguments, page.as_uri()],
            env={**os.environ, "HOME": home, "TMPDIR": home},
            capture_output=True,
            text=True,
            timeout=5 * IN_TIME_S,
            check=True,
        )
    return Shown(done.stdout, _CONSOLE.findall(done.stderr))


_MEASURE = """
const look = (frame) => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const figures = {}, cut = [], covered = [], small = [];
  for (const figure of page.querySelectorAll("figure")) {
    const svg = figure.querySelector("svg.picture");
    const texts = svg ? [...svg.querySelectorAll("text")] : [];
    const chart = figure.querySelector(".chart");
    const scrolls = chart && chart.scrollWidth > chart.clientWidth;
    const edge = (scrolls ? svg : figure).getBoundingClientRect(), margin = scrolls ? 0 : 2;
    const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]);
    for (const [text, box] of boxes) {
      if (box.left < edge.left + margin || box.right > edge.right - margin) cut.push(text);
      if (box.height < 11) small.push(text);
    }
    boxes.forEach(([text, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 1 && high > 3) covered.push(text + " | " + other);
    }));
    figures[figure.id] = {
      bars: svg ? svg.querySelectorAll("g.bar").length : 0,
      cells: svg ? svg.querySelectorAll("rect[class^=heat]").length : 0,
      dots: svg ? svg.querySelectorAll("circle").length : 0,
      rows: figure.querySelectorAll("tbody tr").length,
      height: svg ? svg.getBoundingClientRect().height : 0,
    };
  }
  return {
    width: view.innerWidth, reach: page.documentElement.scrollWidth, figures, cut, covered, small,
    sections: [...page.querySelectorAll("[id]")]
      .filter((one) => one.getBoundingClientRect().height > 20).map((one) => one.id),
  };
};
addEventListener("load", () => {
  const measured = [...document.querySelectorAll("iframe")].map(look);
  document.getElementById("measured").textContent = JSON.stringify(measured);
});
"""


def measure(pages: Sequence[tuple[Path, int]], directory: Path, *arguments: str) -> tuple[list[dict[str, Any]], Shown]:
    """Opens each page, unchanged, in a frame of so many pixels' width, and says what is where in it: its figures'
    marks, texts of pictures that are cut off (``cut``; not where the picture scrolls), cover each other (``covered``)
    or are too small (``small``), and how far the page reaches to the right of its frame. The pages' own console lines
    are among the browser's."""
    frames = "".join(
        f'<iframe width="{width}" height="900" src="{escape(page.as_uri())}"></iframe>' for page, width in pages
    )
    around = directory / "around.html"
    around.write_text(f'<!doctype html><title>all</title>{frames}<pre id="measured"></pre><script>{_MEASURE}</script>')
    shown = browse(around, "--dump-dom", "--allow-file-access-from-files", "--window-size=1400,1000", *arguments)
    found = re.search(r'<pre id="measured">(.*?)</pre>', shown.dom, re.DOTALL)
    assert found, shown.console
    return json.loads(unescape(found[1])), shown


def screenshot(page: Path, width: int, height: int, *, dark: bool, to: Path) -> NDArray[np.uint8]:
    """The picture (height, width, 3) that the browser takes of ``page``, also written to ``to``."""
    scheme = "--blink-settings=preferredColorScheme=" + ("0" if dark else "1")
    browse(page, scheme, f"--window-size={width},{height}", f"--screenshot={to}")
    return pixels(to.read_bytes())


def pixels(png: bytes) -> NDArray[np.uint8]:
    """Red, green and blue of a PNG of 8 bits a channel, not interlaced, as (height, width, 3)."""
    width, height = (int.from_bytes(png[start : start + 4]) for start in (16, 20))
    channels = {2: 3, 6: 4}[png[25]]
    assert png[24] == 8
    assert png[28] == 0
    data, at = b"", 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += size + 12
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * channels)
    shown = np.zeros((height, width * channels), np.uint8)
    above = np.zeros(width * channels, np.uint8)
    for row, line in enumerate(lines):
        above = shown[row] = _unfiltered(int(line[0]), line[1:], above, channels)
    return shown.reshape(height, width, channels)[:, :, :3]


def _unfiltered(kind: int, line: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """A line of a PNG before its filter (PNG specification, section 9)."""
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line.reshape(-1, step), axis=0, dtype=np.uint8).reshape(-1)
    if kind == 2:
        return line + above
    out, up = bytearray(len(line)), above.tobytes()
    for i, value in enumerate(line.tobytes()):
        left, corner = (out[i - step], up[i - step]) if i >= step else (0, 0)
        guess = (left + up[i]) // 2 if kind == 3 else _nearest(left, up[i], corner)
        out[i] = (value + guess) & 255
    return np.frombuffer(bytes(out), np.uint8)


def _nearest(left: int, up: int, corner: int) -> int:
    """Paeth's predictor: of the three neighbours, the one nearest to left + up - corner."""
    wanted = left + up - corner
    return min((left, up, corner), key=lambda one: abs(wanted - one))
