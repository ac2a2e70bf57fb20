"""``precopy migrate``: asks a guest's process to move the guest, and shows its progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precopy.cli.options import (
    ConvergenceOptions,
    TransferOptions,
    clear_option,
    convergence_options,
    json_option,
    timeout_option,
    tracker_option,
    transfer_options,
)
from precopy.cli.values import ADDRESS, CONTROL, HOST_PORT
from precopy.errors import PrecopyError, UsageError
from precopy.names import EverydayClearPolicyName, WantedTrackerName

if TYPE_CHECKING:
    from precopy.migration import Event
    from precopy.transport import Address


@click.command()
@click.argument("control", type=CONTROL)
@click.argument("address", type=ADDRESS)
@tracker_option
@clear_option
@transfer_options
@convergence_options
@click.option(
    "--verify", is_flag=True, help="Before the commit, compare both memories byte for byte and check the guest."
)
@timeout_option
@click.option(
    "--metrics",
    type=HOST_PORT,
    default=None,
    metavar="HOST:PORT",
    help="Serve metrics for Prometheus there while it runs; port 0: one that is free, printed.",
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Write rounds and dirty bitmaps into this new file, for `precopy replay` and `precopy compare`.",
)
@json_option
@click.option("--json-lines", is_flag=True, help="Print each event as a line of JSON while it runs, then the document.")
def migrate(
    control: Address,
    address: Address,
    *,
    tracker: WantedTrackerName | None,
    clear: EverydayClearPolicyName,
    transfer: TransferOptions,
    convergence: ConvergenceOptions,
    verify: bool,
    timeout: float,
    metrics: Address | None,
    record: Path | None,
    as_json: bool,
    json_lines: bool,
) -> None:
    """Move the guest behind CONTROL to the process that waits at ADDRESS (`precopy receive`).

    Ctrl-C cancels: the guest stays where it is. On any failure before the commit it stays there, too.
    """
    from precopy.abi.filesystem import absolute_path
    from precopy.cli.facts import host_facts, show_result
    from precopy.migration import MigrationOptions
    from precopy.report.kinds.migrate import Migration
    from precopy.service import Command, ask, migrate_guest

    if as_json and json_lines:
        raise UsageError("--json and --json-lines exclude each other: the last line of the latter is the document")
    wanted = MigrationOptions(
        tracker=tracker or "",
        clear=clear,
        clear_chunk_shift=transfer.clear_chunk_shift,
        max_bandwidth=transfer.max_bandwidth,
        downtime_limit_s=transfer.downtime_limit_s,
        max_rounds=transfer.max_rounds,
        policy=convergence.policy,
        max_total=convergence.max_total,
        on_timeout=convergence.on_timeout,
        throttle_mode=convergence.throttle_mode,
        max_throttle=convergence.max_throttle,
        verify=verify,
    )
    if record is not None and not record.name:
        raise UsageError("--record needs the name of a file")
    host: dict[str, Any] | None = host_facts()
    try:
        with contextlib.ExitStack() as stack:
            listeners = _listeners(stack, metrics, json_lines)

            def tell(event: Event) -> None:
                for listener in listeners:
                    listener(event)

            file = "" if record is None else absolute_path(record)  # the guest's process may be anywhere
            workload = ask(control, Command("status"))["workload"]
            done = migrate_guest(control, address, wanted, timeout, tell, record=file)
    except PrecopyError as error:
        if not (as_json or json_lines):
            _report_attempt(error.attempt)
        raise
    if not (as_json or json_lines):
        from precopy.report.console import show
        from precopy.report.kinds.migrate import terms_line

        what = f"{done.guest} guest migrated to {address} (session {done.session}), clear policy {done.clear}"
        show(what, terms_line(wanted))
        host = None
    show_result("migrate", Migration.of(done, workload), host, as_json=as_json or json_lines)


def _listeners(stack: contextlib.ExitStack, metrics: Address | None, json_lines: bool) -> list[Callable[[Event], None]]:
    """Who is told of events until ``stack`` is left. Raises `Unsupported` and `UsageError` for ``metrics``."""
    listeners: list[Callable[[Event], None]] = []
    if metrics is not None:
        from precopy.service.metrics import MetricsServer, MigrationMetrics

        figures = MigrationMetrics()
        server = stack.enter_context(MetricsServer(metrics, figures))
        listeners.append(figures.update)
        if not metrics.port:
            click.echo(f"metrics: {server.url}", err=True)
    if json_lines:
        # No line on the terminal besides: what is printed meanwhile has to go to stdout.
        return [*listeners, _print_event]
    from precopy.report.live import LiveProgress

    listeners.append(_print_note)
    return [*listeners, stack.enter_context(LiveProgress()).update]


def _print_note(event: Event) -> None:
    from precopy.migration import Note

    if isinstance(event, Note):
        click.echo(f"precopy: {event.text}", err=True)


def _print_event(event: Event) -> None:
    from precopy.report.documents import document, to_json
    from precopy.report.kinds import body_of
    from precopy.report.kinds.migrate_event import MigrateEvent

    click.echo(to_json(document("migrate-event", body_of("migrate-event", MigrateEvent.of(event)))))


def _report_attempt(attempt: object) -> None:
    """The rounds of a migration that did not complete, and its last verdict; nothing before the first round."""
    from precopy.migration import Attempt
    from precopy.report.console import show
    from precopy.report.kinds.migrate import attempt_line, rounds_table
    from precopy.report.verdicts import after_round

    if not isinstance(attempt, Attempt) or not attempt.rounds:
        return
    show(*rounds_table(attempt.rounds), attempt_line(attempt))
    show(*(after_round(verdict) for verdict in attempt.verdicts[-1:]))
