"""``precopy demo``: a running guest, moved between two processes, once for each clear policy, and checked."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from precopy.cli.options import (
    MachineOptions,
    TransferOptions,
    WorkloadOptions,
    json_option,
    machine_options_with,
    tracker_option,
    transfer_options,
    workload_options,
)
from precopy.cli.partners import given, option_of
from precopy.cli.say import complain, say
from precopy.errors import NotConverged, PrecopyError, UsageError, VerificationFailed
from precopy.names import (
    ALL_CLEAR_POLICIES,
    CLEAR_POLICIES,
    HISTORIC_CLEAR_POLICIES,
    AnyClearPolicyName,
    WantedTrackerName,
)

if TYPE_CHECKING:
    from precopy.cli.guest_choice import Choice
    from precopy.migration import Attempt
    from precopy.report.kinds.demo import DemoRun

_AFTERLIFE_S = 0.4
_OF_MEMORY = ("ram", "guest", "as_json")
"""What a demonstration of a program's memory takes."""
_SETS: dict[str, Sequence[AnyClearPolicyName]] = {
    "ours": CLEAR_POLICIES,
    "lineage": HISTORIC_CLEAR_POLICIES,
    "all": ALL_CLEAR_POLICIES,
}
_BEST_FIRST = ("deferred", "merged", "clear-bmap", "upstream", "rfc-v1", "before-patch", "per-page")
_ALL_S, _LEAST_S = 40.0, 8.0
"""Seconds that all migrations together may take, and that each may take in any case. With the starts of their
processes, ours finish within a minute on two busy cores."""
_SLOW, _TIMES = 1e8, 4
"""Time that each migration may take in addition: that of its memory at ``_SLOW`` bytes a second, or ``_TIMES`` times
that of its memory at a bandwidth limit."""


@dataclass(frozen=True)
class _Asked:
    """What was asked for, but for the clear policies."""

    machine: MachineOptions
    load: WorkloadOptions
    transfer: TransferOptions
    tracker: WantedTrackerName | None
    tcp: bool


@click.command()
@machine_options_with("memory")
@workload_options
@click.option(
    "--clear",
    type=click.Choice([*_SETS, *ALL_CLEAR_POLICIES]),
    default="ours",
    show_default=True,
    help="Clear policies to show: one, ours, those of QEMU's patch series (lineage), or all.",
)
@transfer_options
@tracker_option
@click.option("--tcp", is_flag=True, help="Over TCP on this machine instead of a Unix socket.")
@json_option
def demo(
    machine: MachineOptions,
    load: WorkloadOptions,
    *,
    clear: str,
    transfer: TransferOptions,
    tracker: WantedTrackerName | None,
    tcp: bool,
    as_json: bool,
) -> int:
    """Live-migrate a running guest between two processes, once for each clear policy.

    Each time the guest keeps writing while it is moved. Before it runs at the destination, both paused memories are
    compared byte for byte and the guest's own invariant is checked; then it runs on there, and is checked again.

    With --guest memory: a numpy simulation over --ram bytes runs on while it is replicated to another process and
    saved in snapshots; then the copy and a restored snapshot are compared with what it had.
    """
    if machine.guest == "memory":
        from precopy.cli.demo_memory import demo_memory

        _check_of_memory()
        return demo_memory(machine.ram, as_json)
    from precopy.cli.facts import host_facts, host_line, show_result
    from precopy.cli.guest_choice import choose
    from precopy.report.kinds.demo import Demo

    choice = choose(machine.guest)
    asked = _Asked(machine, load, transfer, tracker, tcp)
    policies = _SETS.get(clear) or [policy for policy in ALL_CLEAR_POLICIES if policy == clear]
    host = host_facts()
    if not as_json:
        say(host_line(host))
        _introduce(choice, asked)
    rows: list[DemoRun] = []
    began = time.monotonic()
    try:
        with noticed_interrupts() as interrupts:
            for policy in sorted(policies, key=_BEST_FIRST.index):
                where = f"{len(rows) + 1} of {len(policies)}, clear policy {policy}"
                rows.append(_run_once(policy, choice.kind, began, where, asked))
                if interrupts:  # one that came inside an import, and was swallowed there
                    raise KeyboardInterrupt
    except BaseException:
        if rows and not as_json:
            show_result("demo", Demo(choice.kind, tuple(rows)), as_json=False)
        raise
    show_result("demo", Demo(choice.kind, tuple(rows), choice.why), host if as_json else None, as_json=as_json)
    return _end(rows, as_json)


def _check_of_memory() -> None:
    """Raises `UsageError` for an option that says something about a guest that runs, or about its migration."""
    ctx = click.get_current_context()
    for name in given(ctx):
        if name not in _OF_MEMORY:
            raise UsageError(f"{option_of(ctx, name)} has no effect with --guest memory; leave it out")


def _end(rows: list[DemoRun], as_json: bool) -> int:
    """The exit code: 7 where a check failed, 4 where no migration converged. Raises the one that it is, with the table
    above it."""
    wrong = next((row for row in rows if row.attempt is None and not row.verified), None)
    if wrong is not None:
        failure: PrecopyError = VerificationFailed(f"{wrong.clear}: {wrong.verdict}")
    elif all(row.attempt for row in rows):
        failure = PrecopyError(f"{rows[0].clear}: {rows[0].verdict}")
        failure.exit_code = NotConverged.exit_code
    else:
        return 0
    if not as_json:
        raise failure
    complain(f"precopy: {failure}")  # stdout has its one document already
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


def _run_once(policy: AnyClearPolicyName, kind: str, began: float, where: str, asked: _Asked) -> DemoRun:
    """One migration and its checks. Raises what kept it from being tried; a failed check, or why it did not converge,
    is in the row."""
    from precopy.migration import Attempt, MigrationOptions
    from precopy.report.kinds.demo import DemoRun
    from precopy.report.live import LiveProgress
    from precopy.service import ProcessPair, migrate_guest

    same = ["--ram", f"{asked.machine.ram}B", "--layout", asked.machine.layout, "--vcpus", str(asked.machine.vcpus)]
    same += ["--guest", kind, "--backing", asked.machine.backing]
    run = [*same, *_load_options(asked.load)]
    wanted = MigrationOptions(
        tracker=asked.tracker or "",
        clear=policy,
        clear_chunk_shift=asked.transfer.clear_chunk_shift,
        max_bandwidth=asked.transfer.max_bandwidth,
        downtime_limit_s=asked.transfer.downtime_limit_s,
        max_rounds=asked.transfer.max_rounds,
        max_total=_most_s(began, asked.machine.ram, asked.transfer.max_bandwidth),
        verify=True,
    )
    with LiveProgress(where) as live, ProcessPair(run, [*same, "--prealloc"], tcp=asked.tcp) as pair:
        try:
            done = migrate_guest(pair.source, pair.address, wanted, on_event=live.update)
            first = pair.ask(pair.destination, "check")
            time.sleep(_AFTERLIFE_S)
            second = pair.ask(pair.destination, "check")
        except PrecopyError as error:
            if error.exit_code == NotConverged.exit_code and isinstance(error.attempt, Attempt):
                return DemoRun(policy, None, False, _why(error.attempt), error.attempt)
            if error.exit_code != VerificationFailed.exit_code:
                raise
            return DemoRun(policy, None, False, str(error))
    if not (first["ok"] and second["ok"]):
        broken = (first["broken"] + second["broken"])[0]
        return DemoRun(policy, done, False, f"the guest's invariant broke at the destination: {broken}")
    if second["steps"] <= first["steps"] and asked.load.workload != "idle":
        return DemoRun(policy, done, False, "the guest makes no steps at the destination")
    return DemoRun(policy, done, True, "yes")


def _load_options(load: WorkloadOptions) -> list[str]:
    """Those that have an effect, as `precopy run` takes them."""
    options = ["--workload", load.workload, "--fill", str(load.fill)]
    if load.workload != "idle":
        options += ["--write-rate", "max" if load.write_rate is None else str(load.write_rate)]
    if load.workload == "hotset":
        options += ["--hot-share", str(load.hot_share)]
    if load.working_set:
        options += ["--working-set", f"{load.working_set}B"]
    return options


def _why(attempt: Attempt) -> str:
    reason = attempt.verdicts[-1].reason if attempt.verdicts else "it had no time for a round"
    return f"did not converge: {reason}"


def _most_s(began: float, ram: int, max_bandwidth: int | None) -> float:
    left = max(began + _ALL_S - time.monotonic(), _LEAST_S)
    return left + (_TIMES * ram / max_bandwidth if max_bandwidth else ram / _SLOW)


def _introduce(choice: Choice, asked: _Asked) -> None:
    from precopy.units import format_size

    rate = f"{asked.load.write_rate} pages a second" if asked.load.write_rate else "as many pages as it can"
    what = "does nothing" if asked.load.workload == "idle" else f"writes {rate} ({asked.load.workload})"
    say(
        f"guest: {choice.kind} ({choice.why}), {format_size(asked.machine.ram)} of RAM, layout "
        f"{asked.machine.layout}; it {what} while it is moved from one process to another"
    )
