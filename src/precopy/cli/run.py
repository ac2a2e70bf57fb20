"""``precopy run``: a guest in the foreground."""

from __future__ import annotations

from typing import Any

import click

from precopy.cli.options import control_option, die_with_parent_option, json_option, machine_options, workload_options


@click.command()
@machine_options
@workload_options
@control_option
@die_with_parent_option
@json_option
def run(control: Any, as_json: bool, **options: Any) -> None:
    """Run a guest in the foreground, with a control socket, until it is migrated away or told to quit.

    The guest writes memory in a known pattern and can check at any pause that none of its writes was lost.
    """
    from precopy.cli import guest_choice as machine
    from precopy.cli.facts import show_document
    from precopy.machines.workload import Workload
    from precopy.service import GuestProcess, default_address
    from precopy.units import format_size

    workload = Workload(options["workload"], options["write_rate"], options["hot_share"], options["working_set"])
    choice = machine.choose(options["guest"])
    guest = machine.make(choice, options["layout"], options["ram"], options["vcpus"], options["backing"])
    try:
        guest.boot(workload, options["fill"])
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
        outcome = process.wait()
        if as_json:
            body = process.epilogue(outcome)
            show_document("run", body)
        elif outcome == "migrated":
            click.echo("the guest was migrated away and runs elsewhere")
