"""``precopy demo``: a running guest, moved between two processes, once for each clear policy, and checked."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from precopy.cli.options import (
    CLEAR_NAMES,
    json_option,
    machine_options_with,
    policy_options,
    tracker_option,
    workload_options,
)
from precopy.errors import PrecopyError, VerificationFailed

if TYPE_CHECKING:
    from precopy.report.tables import DemoRow

_AFTERLIFE_S = 0.4


@click.command()
@machine_options_with("memory")
@workload_options
@click.option(
    "--clear",
    type=click.Choice(["ours", "lineage", "all", *CLEAR_NAMES]),
    default="ours",
    show_default=True,
    help="Clear policies to show: one, ours, those of the seed's thread (lineage), or all.",
)
@policy_options
@tracker_option
@click.option("--tcp", is_flag=True, help="Over TCP on this machine instead of a Unix socket.")
@json_option
def demo(clear: str, tcp: bool, as_json: bool, **options: Any) -> int:
    """Live-migrate a running guest between two processes, once for each clear policy.

    Each time the guest keeps writing while it is moved. Before it runs at the destination, both paused memories are
    compared byte for byte and the guest's own invariant is checked; then it runs on there, and is checked again.

    With --guest memory: a numpy simulation over --ram bytes runs on while it is replicated to another process and
    saved in snapshots; then the copy and a restored snapshot are compared with what it had.
    """
    if options["guest"] == "memory":
        from precopy.cli.demo_memory import demo_memory

        return demo_memory(options["ram"], as_json)
    from precopy.cli import machine
    from precopy.dirty import ALL_POLICIES, CLEAR_POLICIES, LINEAGE

    choice = machine.choose(options["guest"])
    policies = {"ours": CLEAR_POLICIES, "lineage": LINEAGE, "all": ALL_POLICIES}.get(clear, (clear,))
    if not as_json:
        _introduce(choice, options)
    rows = []
    with noticed_interrupts() as interrupts:
        for policy in policies:
            rows.append(_run_once(policy, choice.kind, tcp, options))
            if interrupts:  # one that came inside an import, and was swallowed there
                raise KeyboardInterrupt
    _report(rows, choice, as_json)
    failed = [row for row in rows if not row.verified]
    if not failed:
        return 0
    failure = VerificationFailed(f"{failed[0].clear}: {failed[0].verdict}")
    if not as_json:
        raise failure
    click.echo(f"precopy: {failure}", err=True)  # stdout has its one document already
    return failure.exit_code


@contextlib.contextmanager
def noticed_interrupts() -> Iterator[list[int]]:
    """Notes each SIGINT besides raising `KeyboardInterrupt` for it, which C code that imports may clear."""
    seen: list[int] = []

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield seen
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _run_once(policy: str, kind: str, tcp: bool, options: dict[str, Any]) -> DemoRow:
    """One migration and its checks. Raises what kept it from being tried; a failed check is in the row."""
    from precopy.control import ProcessPair, migrate_guest
    from precopy.migration import MigrationOptions
    from precopy.report.live import LiveProgress
    from precopy.report.tables import DemoRow

    same = ["--ram", f"{options['ram']}B", "--layout", options["layout"], "--vcpus", str(options["vcpus"])]
    same += ["--guest", kind, "--backing", options["backing"]]
    run = [
        *same,
        "--workload",
        options["workload"],
        "--write-rate",
        "max" if options["write_rate"] is None else str(options["write_rate"]),
    ]
    run += ["--hot-share", str(options["hot_share"]), "--fill", str(options["fill"])]
    if options["working_set"]:
        run += ["--working-set", f"{options['working_set']}B"]
    wanted = MigrationOptions(
        tracker=options["tracker"] or "",
        clear=policy,
        clear_chunk_shift=options["clear_chunk_shift"],
        max_bandwidth=options["max_bandwidth"],
        downtime_limit=options["downtime_limit"],
        max_rounds=options["max_rounds"],
        verify=True,
    )
    with ProcessPair(run, [*same, "--prealloc"], tcp=tcp) as pair, LiveProgress() as live:
        try:
            done = migrate_guest(pair.source, pair.address, wanted, on_event=live.update)
            first = pair.ask(pair.destination, "check")
            time.sleep(_AFTERLIFE_S)
            second = pair.ask(pair.destination, "check")
        except PrecopyError as error:
            if error.exit_code != VerificationFailed.exit_code:
                raise
            return DemoRow(policy, None, False, str(error))
    if not (first["ok"] and second["ok"]):
        broken = (first["broken"] + second["broken"])[0]
        return DemoRow(policy, done, False, f"the guest's invariant broke at the destination: {broken}")
    if second["steps"] <= first["steps"] and options["workload"] != "idle":
        return DemoRow(policy, done, False, "the guest makes no steps at the destination")
    return DemoRow(policy, done, True, "yes")


def _introduce(choice: Any, options: dict[str, Any]) -> None:
    from precopy.units import format_size

    rate = f"{options['write_rate']} pages a second" if options["write_rate"] else "as many pages as it can"
    what = "does nothing" if options["workload"] == "idle" else f"writes {rate} ({options['workload']})"
    click.echo(
        f"guest: {choice.kind} ({choice.why}), {format_size(options['ram'])} of RAM, layout {options['layout']}; it "
        f"{what} while it is moved from one process to another"
    )


def _report(rows: list[DemoRow], choice: Any, as_json: bool) -> None:
    from precopy.cli.facts import machine_facts
    from precopy.report.documents import document, migration_body, to_json

    if as_json:
        runs = [
            {
                **(migration_body(row.migrated) if row.migrated else {"completed": False}),
                "clear": row.clear,
                "verified": row.verified,
                "verdict": row.verdict,
            }
            for row in rows
        ]
        body = {"machine": machine_facts(), "guest": choice.kind, "why": choice.why, "runs": runs}
        click.echo(to_json(document("demo", 1, body)))
        return
    from precopy.report.tables import demo_table, show

    show(demo_table(rows))
    click.echo(
        "verified: before it ran on, both memories were the same byte for byte; at the destination the guest\n"
        "went on, and every page there holds what the guest's own count of writes says that it must hold."
        if all(row.verified for row in rows)
        else "NOT verified: see above."
    )
