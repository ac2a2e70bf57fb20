"""``precopy run``: a guest in the foreground."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from precopy.cli.options import (
    MachineOptions,
    WorkloadOptions,
    control_option,
    die_with_parent_option,
    json_option,
    machine_options,
    workload_options,
)

if TYPE_CHECKING:
    from precopy.transport import Address


@click.command()
@machine_options
@workload_options
@control_option
@die_with_parent_option
@json_option
def run(machine: MachineOptions, load: WorkloadOptions, control: Address | None, as_json: bool) -> None:
    """Run a guest in the foreground, with a control socket, until it is migrated away or told to quit.

    The guest writes memory in a known pattern and can check at any pause that none of its writes was lost.
    """
    from precopy.cli import guest_choice
    from precopy.cli.facts import show_result
    from precopy.machines.workload import Workload
    from precopy.service import GuestProcess, default_address
    from precopy.units import format_size

    workload = Workload(load.workload, load.write_rate, load.hot_share, load.working_set)
    choice = guest_choice.choose(machine.guest)
    guest = guest_choice.make(choice, machine)
    try:
        guest.boot(workload, load.fill)
    except BaseException:
        guest.close()
        raise
    with GuestProcess(guest, choice.why, control or default_address(), "running", workload=str(workload)) as process:
        if as_json:
            click.echo(f"control: {process.server.address}", err=True)
        else:
            click.echo(
                f"guest: {choice.kind} ({choice.why}), {format_size(guest.memory.layout.bytes)} in "
                f"{len(guest.memory.layout.blocks)} RAM blocks, workload {workload}\n"
                f"control: {process.server.address}"
            )
        show_result("run", process.epilogue(process.wait()), as_json=as_json)
