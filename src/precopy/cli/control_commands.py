"""``precopy status``, ``check``, ``pause``, ``resume``, ``cancel`` and ``quit``: one request to a guest's process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precopy.cli.options import json_option
from precopy.cli.values import CONTROL

if TYPE_CHECKING:
    from precopy.transport import Address


def _ask(control: Address, command: str) -> dict[str, Any]:
    from precopy.service import Command, ask

    answer: dict[str, Any] = ask(control, Command(command))
    return answer


def _show_status(status: dict[str, Any], as_json: bool) -> None:
    from precopy.cli.facts import show_document
    from precopy.units import format_duration, format_size

    if as_json:
        show_document("status", status)
        return
    click.echo(f"{status['state']}: {status['machine']} ({status['why']})")
    click.echo(f"memory: {format_size(status['ram_bytes'])} in {status['blocks']} RAM blocks")
    _show_migration(status)
    if status["workload"]:
        click.echo(f"workload: {status['workload']}")
    click.echo(f"process {status['pid']}, up {format_duration(status['uptime_s'])}")
    if status["session"]:
        click.echo(f"session: {status['session']}")
    if status["last_error"]:
        click.echo(f"last error: {status['last_error']}")


def _show_migration(status: dict[str, Any]) -> None:
    """How far the migration under way is, if there is one."""
    from precopy.units import format_duration, format_size

    migration, arriving = status["migration"], status["arriving"]
    if migration:
        click.echo(f"migrating to {migration['to']} for {format_duration(migration['elapsed_s'])}")
        if migration["progress"]:
            import msgspec

            from precopy.migration import Progress
            from precopy.report.live import line

            progress = msgspec.convert(migration["progress"], Progress)
            click.echo(f"{line(progress)} | {migration['remaining_pages']} pages left")
            if progress.expected_downtime_s is not None:
                click.echo(f"expected downtime: {format_duration(progress.expected_downtime_s)}")
    if status["turned_away"]:
        click.echo(f"turned away: {status['turned_away']} who connected and were no source")
    if arriving:
        click.echo(f"receiving round {arriving['round']}, {format_size(arriving['received_bytes'])} so far")


@click.command()
@click.argument("control", type=CONTROL)
@json_option
def status(control: Address, as_json: bool) -> None:
    """Say what the guest behind CONTROL does, and which migration brought it or took it away."""
    _show_status(_ask(control, "status"), as_json)


@click.command()
@click.argument("control", type=CONTROL)
@json_option
def check(control: Address, as_json: bool) -> None:
    """Pause the guest behind CONTROL, hold its memory against its own invariant, and let it go on."""
    from precopy.cli.facts import show_document
    from precopy.errors import VerificationFailed
    from precopy.units import format_duration

    checked = _ask(control, "check")
    if not checked["ok"]:
        raise VerificationFailed(f"the guest's invariant is broken: {checked['broken'][0]}")
    if as_json:
        show_document("check", checked)
        return
    click.echo(
        f"{checked['pages']} pages hold what {checked['steps']} writes must have left there "
        f"(paused in {format_duration(checked['pause_s'])})"
    )


@click.command()
@click.argument("control", type=CONTROL)
@json_option
def pause(control: Address, as_json: bool) -> None:
    """Pause the guest behind CONTROL."""
    _show_status(_ask(control, "pause"), as_json)


@click.command()
@click.argument("control", type=CONTROL)
@json_option
def resume(control: Address, as_json: bool) -> None:
    """Let a paused guest go on. After an unknown outcome: only where it does not run at the destination."""
    _show_status(_ask(control, "resume"), as_json)


@click.command()
@click.argument("control", type=CONTROL)
@json_option
def cancel(control: Address, as_json: bool) -> None:
    """Stop the migration under way, and say what became of it: the guest stays, unless it has been given away."""
    status = _ask(control, "cancel")
    if not as_json:
        click.echo("cancelled; the guest stays where it is")
    _show_status(status, as_json)


@click.command(name="quit")
@click.argument("control", type=CONTROL)
@json_option
def quit(control: Address, as_json: bool) -> None:
    """End the guest behind CONTROL and its process."""
    _show_status(_ask(control, "quit"), as_json)
