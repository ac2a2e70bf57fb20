"""``precopy receive``: the destination."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from precopy.cli.options import (
    MachineOptions,
    control_option,
    die_with_parent_option,
    json_option,
    machine_options,
    timeout_option,
)
from precopy.cli.say import say
from precopy.cli.values import ADDRESS
from precopy.errors import PeerError, VerificationFailed

if TYPE_CHECKING:
    from precopy.machines.emulated import EmulatedGuest
    from precopy.machines.kvm import KvmGuest
    from precopy.migration import Received
    from precopy.service import GuestProcess
    from precopy.transport import Address, Listener


@click.command()
@click.argument("address", type=ADDRESS)
@machine_options
@control_option
@click.option("--prealloc", is_flag=True, help="Touch all memory before waiting, so that no first write pays for it.")
@click.option("--keep", is_flag=True, help="Go on waiting after a migration that failed or was cancelled.")
@die_with_parent_option
@timeout_option
@json_option
def receive(
    address: Address,
    machine: MachineOptions,
    control: Address | None,
    *,
    prealloc: bool,
    keep: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Wait at ADDRESS for one guest, then run it in the foreground, with a control socket.

    --ram, --layout and --vcpus have to be the source's; where they are not, the guest stays there, and both sides
    name the difference. Who connects and is no source is turned away.
    """
    from precopy.cli import guest_choice
    from precopy.cli.facts import show_result
    from precopy.report.kinds.receive import ReceivingRun, received_line
    from precopy.report.kinds.run import ended_line
    from precopy.service import GuestProcess, default_address
    from precopy.transport import Listener

    choice = guest_choice.choose(machine.guest)

    def make() -> KvmGuest | EmulatedGuest:
        guest = guest_choice.make(choice, machine)
        try:
            if prealloc:
                guest.memory.touch()
        except BaseException:
            guest.close()
            raise
        return guest

    guest = make()
    try:
        listener = Listener(address)
    except BaseException:
        guest.close()
        raise
    with listener, GuestProcess(guest, choice.why, control or default_address(), "waiting") as process:
        where = str(listener.address)  # a listener that is closed has no address
        click.echo(
            f"waiting at {where} for a {choice.kind} guest ({choice.why})\ncontrol: {process.server.address}",
            err=as_json,
        )
        received = None
        while received is None and process.outcome is None:
            try:
                received = _receive(process, listener, timeout)
            except (PeerError, VerificationFailed) as error:
                if not keep:
                    raise
                click.echo(f"precopy: {error}; waiting for another", err=True)
                process.start_over(make)
        listener.close()
        if received is not None and not as_json:
            say(received_line(received))
        ended = ReceivingRun.of(process.epilogue(process.wait()), where, process.status().turned_away, received)
        if as_json:
            show_result("receive", ended, as_json=True)
        else:  # what came was said when it came
            say(ended_line(ended))


def _receive(process: GuestProcess, listener: Listener, timeout: float) -> Received | None:
    """Takes one guest in, or none where it was told to quit first. Raises `PeerError` and the like with nothing left
    of it."""
    source = process.wait_for_source(listener, timeout, lambda said: click.echo(f"precopy: {said}", err=True))
    if source is None:
        return None
    try:
        return process.receive(source)
    finally:
        source.stream.close()
