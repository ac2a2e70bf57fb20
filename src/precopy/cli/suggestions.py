"""What to do about a command, a value or a path that there is not, and what may have been meant. Imported only then.

Click says it of options by itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import click

_WRONG_COMMAND = re.compile(r"No such command '(.*)'\.", re.DOTALL)
_WRONG_CHOICE = re.compile(r"'(.*)' is not one of .*", re.DOTALL)


def with_suggestion(error: click.ClickException) -> click.ClickException:
    """``error``, and what may have been meant instead where something is close, or what to do."""
    if not isinstance(error, click.UsageError):
        return error
    known: Iterable[str] = ()
    found = None
    if isinstance(error, click.BadParameter) and error.param is not None:
        if isinstance(error.param.type, click.Choice):
            known, found = map(str, error.param.type.choices), _WRONG_CHOICE.fullmatch(error.message)
    elif error.ctx is not None:
        command = error.ctx.command
        if isinstance(command, click.Group):
            known, found = command.list_commands(error.ctx), _WRONG_COMMAND.fullmatch(error.message)
    said = error.format_message()
    if isinstance(error, click.BadParameter) and error.param is not None and isinstance(error.param.type, click.Path):
        return click.UsageError(f"{said}{_about_path(error.param.type, error.message)}", error.ctx)
    meant = closest(found[1], known) if found is not None else None
    if meant is None or "Did you mean" in said:  # newer versions of click say it of some commands
        return error
    return click.UsageError(f"{said}{'' if said.endswith('.') else '.'} Did you mean {meant!r}?", error.ctx)


def _about_path(kind: click.Path, message: str) -> str:
    """What to do about a path that is not there, as a further sentence."""
    if not message.endswith("does not exist."):
        return ""
    if kind.file_okay:
        return " Give the path of a file that is there."
    return " Make it first (mkdir -p), or give a directory that is there."


def closest(written: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``written`` is most like, whatever its case; None where none is close."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(written[:100].lower(), by_lower, 1)
    return by_lower[found[0]] if found else None
