"""``precopy receive``: the destination."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from precopy.cli.options import control_option, die_with_parent_option, json_option, machine_options, timeout_option
from precopy.cli.values import ADDRESS

if TYPE_CHECKING:
    from precopy.control import GuestProcess
    from precopy.transport import Listener


@click.command()
@click.argument("address", type=ADDRESS)
@machine_options
@control_option
@click.option("--prealloc", is_flag=True, help="Touch all memory before waiting, so that no first write pays for it.")
@die_with_parent_option
@timeout_option
@json_option
def receive(address: Any, control: Any, as_json: bool, **options: Any) -> None:
    """Wait at ADDRESS for one guest, then run it in the foreground, with a control socket.

    --ram, --layout and --vcpus have to be the source's; where they are not, the guest stays there, and both sides
    name the difference.
    """
    from precopy.cli import machine
    from precopy.control import GuestProcess, default_address
    from precopy.report.documents import document, to_json
    from precopy.transport import Listener

    choice = machine.choose(options["guest"])
    guest = machine.make(choice, options["layout"], options["ram"], options["vcpus"], options["backing"])
    try:
        if options["prealloc"]:
            guest.memory.touch()
        listener = Listener(address)
    except BaseException:
        guest.close()
        raise
    with listener, GuestProcess(guest, choice.why, control or default_address(), "waiting") as process:
        if not as_json:
            click.echo(
                f"waiting at {listener.address} for a {choice.kind} guest ({choice.why})\n"
                f"control: {process.server.address}"
            )
        _receive(process, listener, options["timeout"], as_json)
        outcome = process.wait()
        if as_json:
            body = process.epilogue(outcome)
            click.echo(to_json(document("receive", 1, {**body, "received": process.received})))


def _receive(process: GuestProcess, listener: Listener, timeout: float, as_json: bool) -> None:
    """Takes one guest in, or none where it was told to quit first. Raises `PeerError` and the like with nothing left
    of it."""
    from precopy.units import format_duration, format_size

    stream = process.wait_for_source(lambda: listener.accept(timeout), listener.wake)
    if stream is None:
        return
    try:
        received = process.receive(stream)
    finally:
        stream.close()
    if received is not None and not as_json:
        click.echo(
            f"the guest runs here: {format_size(received.received_bytes)} in {received.rounds} rounds and "
            f"{format_duration(received.total_s)} (session {received.session})"
        )
