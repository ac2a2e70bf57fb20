"""``precopy status``, ``check``, ``pause``, ``resume``, ``cancel`` and ``quit``: one request to a guest's process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from precopy.cli.options import json_option
from precopy.cli.values import CONTROL

if TYPE_CHECKING:
    from precopy.report.kinds.status import Status
    from precopy.transport import Address

T = TypeVar("T")


def _ask(control: Address, command: str, answered: type[T]) -> T:
    """The answer as the record of its kind. Raises `PrecopyError` where it is of another version's."""
    import msgspec

    from precopy.errors import PrecopyError
    from precopy.service import Command, ask

    answer: Any = ask(control, Command(command))
    try:
        return msgspec.convert(answer, answered)
    except msgspec.ValidationError as error:
        raise PrecopyError(
            f"{control} answers {command!r} in no way that is known: {error}; use the precopy that the guest runs with"
        ) from error


def _ask_status(control: Address, command: str) -> Status:
    from precopy.report.kinds.status import Status

    return _ask(control, command, Status)


def _show_status(status: Status, as_json: bool) -> None:
    from precopy.cli.facts import show_result

    show_result("status", status, as_json=as_json)


@click.command()
@click.argument("control", type=CONTROL)
@json_option
def status(control: Address, as_json: bool) -> None:
    """Say what the guest behind CONTROL does, and which migration brought it or took it away."""
    _show_status(_ask_status(control, "status"), as_json)


@click.command()
@click.argument("control", type=CONTROL)
@json_option
def check(control: Address, as_json: bool) -> None:
    """Pause the guest behind CONTROL, hold its memory against its own invariant, and let it go on."""
    from precopy.cli.facts import show_result
    from precopy.errors import VerificationFailed
    from precopy.report.kinds.check import Checked, broken_line

    checked = _ask(control, "check", Checked)
    if not checked.ok:
        raise VerificationFailed(broken_line(checked))
    show_result("check", checked, as_json=as_json)


@click.command()
@click.argument("control", type=CONTROL)
@json_option
def pause(control: Address, as_json: bool) -> None:
    """Pause the guest behind CONTROL."""
    _show_status(_ask_status(control, "pause"), as_json)


@click.command()
@click.argument("control", type=CONTROL)
@json_option
def resume(control: Address, as_json: bool) -> None:
    """Let a paused guest go on. After an unknown outcome: only where it does not run at the destination."""
    _show_status(_ask_status(control, "resume"), as_json)


@click.command()
@click.argument("control", type=CONTROL)
@json_option
def cancel(control: Address, as_json: bool) -> None:
    """Stop the migration under way, and say what became of it: the guest stays, unless it has been given away."""
    status = _ask_status(control, "cancel")
    if not as_json:
        click.echo("cancelled; the guest stays where it is")
    _show_status(status, as_json)


@click.command(name="quit")
@click.argument("control", type=CONTROL)
@json_option
def quit(control: Address, as_json: bool) -> None:
    """End the guest behind CONTROL and its process."""
    _show_status(_ask_status(control, "quit"), as_json)
