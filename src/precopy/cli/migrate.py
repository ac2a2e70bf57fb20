"""``precopy migrate``: asks a guest's process to move the guest, and shows how it goes."""

from __future__ import annotations

from typing import Any

import click

from precopy.cli.options import (
    ADDRESS,
    CONTROL,
    clear_option,
    json_option,
    policy_options,
    timeout_option,
    tracker_option,
)


@click.command()
@click.argument("control", type=CONTROL)
@click.argument("address", type=ADDRESS)
@tracker_option
@clear_option
@policy_options
@click.option(
    "--verify", is_flag=True, help="Before the commit, compare both memories byte for byte and check the guest."
)
@timeout_option
@json_option
def migrate(control: Any, address: Any, tracker: str | None, timeout: float, as_json: bool, **options: Any) -> None:
    """Move the guest behind CONTROL to whoever waits at ADDRESS (see `precopy receive`).

    Ctrl-C cancels: the guest stays where it is. On any failure before the commit it stays there, too.
    """
    from precopy.control import migrate_guest
    from precopy.migration import MigrationOptions
    from precopy.report.documents import document, migration_body, to_json
    from precopy.report.live import LiveProgress

    with LiveProgress() as live:
        done = migrate_guest(control, address, MigrationOptions(tracker=tracker or "", **options), timeout, live.update)
    if as_json:
        click.echo(to_json(document("migrate", 1, migration_body(done))))
        return
    from precopy.report.tables import rounds_table, show, tracker_line

    show(
        f"{done.guest} guest migrated to {address} (session {done.session}), clear policy {done.clear}",
        tracker_line(done),
    )
    show(rounds_table(done))
