"""Sentences for people: broken at words where they go to a terminal, and one line each where they do not."""

from __future__ import annotations

import io
import os
import sys

import click

from precopy.report.wrapping import wrap

_INDENT = "  "


def complain(text: str) -> None:
    """``text`` to stderr."""
    _echo(text, err=True)


def say(text: str) -> None:
    """``text`` to stdout."""
    _echo(text, err=False)


def show_usage(error: click.ClickException) -> None:
    """What click says of arguments that cannot be meant, to stderr."""
    said = io.StringIO()
    error.show(said)
    complain(said.getvalue().rstrip("\n"))


def _echo(text: str, *, err: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    if stream.isatty():
        text = "\n".join(wrap(text, _width(stream.fileno()), indent=_INDENT))
    click.echo(text, err=err)


def _width(terminal: int) -> int:
    """COLUMNS, or what the terminal itself says."""
    wanted = os.environ.get("COLUMNS", "")
    try:
        return int(wanted) if wanted.isdigit() and int(wanted) else os.get_terminal_size(terminal).columns or 80
    except OSError:
        return 80
