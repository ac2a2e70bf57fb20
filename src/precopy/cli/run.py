"""``precopy run``: a guest in the foreground."""

from __future__ import annotations

from typing import Any

import click

from precopy.cli.options import ADDRESS, json_option, machine_options, workload_options


@click.command()
@machine_options
@workload_options
@click.option("--control", type=ADDRESS, default=None, help="Control socket.  [default: one of its own, printed]")
@click.option("--die-with-parent", type=int, default=None, hidden=True)
@json_option
def run(control: Any, as_json: bool, die_with_parent: int | None, **options: Any) -> None:
    """Run a guest in the foreground, with a control socket, until it is migrated away or told to quit.

    The guest writes memory in a known pattern and can check at any pause that none of its writes was lost.
    """
    from precopy.cli import machine
    from precopy.control import GuestProcess, default_address
    from precopy.guests import Workload
    from precopy.report.documents import document, to_json
    from precopy.units import format_size

    if die_with_parent is not None:
        from precopy.abi.process import die_with_parent as ask_kernel

        ask_kernel(die_with_parent)
    workload = Workload(options["workload"], options["write_rate"], options["hot_share"], options["working_set"])
    choice = machine.choose(options["guest"])
    guest = machine.make(choice, options["layout"], options["ram"], options["vcpus"])
    try:
        guest.boot(workload, options["fill"])
    except BaseException:
        guest.close()
        raise
    with GuestProcess(guest, choice.why, control or default_address(), "running") as process:
        if not as_json:
            click.echo(
                f"guest: {choice.kind} ({choice.why}), {format_size(guest.memory.layout.bytes)} in "
                f"{len(guest.memory.layout.blocks)} RAM blocks, workload {workload.pattern}\n"
                f"control: {process.server.address}"
            )
        outcome = process.wait()
        if as_json:
            body = process.epilogue(outcome)
            click.echo(to_json(document("run", 1, body)))
        elif outcome == "migrated":
            click.echo("the guest was migrated away and runs elsewhere")
