"""``precopy report``: a result as one HTML file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from precopy.cli.options import json_option
from precopy.errors import UsageError, raise_without_descriptor

_STDIN = "-"


@click.command()
@click.argument("file", metavar="FILE.json")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Where to write the page.  [default: FILE with .html]",
)
@json_option
def report(file: str, output: Path | None, as_json: bool) -> None:
    """Write a result as one HTML file that can be read offline: its verdict in plain words, pictures, and the tables
    beside them.

    FILE.json is what demo, migrate, compare or a benchmark printed with --json (or several such documents, one a
    line); - is stdin, and then -o is needed.
    """
    from precopy.cli.facts import show_result
    from precopy.report.html import LARGEST, render
    from precopy.report.kinds.report import WrittenPage

    output = _output(file, output)
    page = render(_read(file, LARGEST + 1), "stdin" if file == _STDIN else Path(file).name)
    size = _write(output, page.html)
    show_result("report", WrittenPage(str(output), size, page.sections), as_json=as_json)


def _output(file: str, output: Path | None) -> Path:
    """Where the page goes. Raises `UsageError` where that would be its own input, or nowhere."""
    if output is None:
        if file == _STDIN:
            raise UsageError("a page from stdin has no name of its own; give one with -o")
        if not Path(file).name:
            raise UsageError(f"{file!r} is no file; name the one that --json was written to")
        output = Path(file).with_suffix(".html")
    if file != _STDIN and (output == Path(file) or _same(output, Path(file))):
        raise UsageError(f"{output} is the file that is read; give another one with -o")
    return output


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _read(file: str, most: int) -> bytes:
    """At most ``most`` bytes of ``file``. Raises `UsageError`."""
    if file == _STDIN:
        return sys.stdin.buffer.read(most)
    try:
        with open(file, "rb") as content:
            return content.read(most)
    except OSError as error:
        raise_without_descriptor("open", file, error)
        raise UsageError(f"{file} cannot be read: {os.strerror(error.errno or 0)}") from None


def _write(output: Path, html: str) -> int:
    """Bytes written. Raises `UsageError`."""
    data = html.encode()
    try:
        output.write_bytes(data)
    except OSError as error:
        raise_without_descriptor("open", str(output), error)
        raise UsageError(f"{output} cannot be written: {os.strerror(error.errno or 0)}") from None
    return len(data)
