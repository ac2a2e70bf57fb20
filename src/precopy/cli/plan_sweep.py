"""``precopy plan sweep``: every combination of ranges, on all cores or on a Dask cluster."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precopy.cli.options import json_option
from precopy.cli.values import COUNTS, DURATIONS, RATES, SIZES
from precopy.defaults import DOWNTIME_LIMIT_S, MAX_ROUNDS, milliseconds

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from precopy.errors import UsageError
    from precopy.planning.plan.sweep import Columns, Grid
    from precopy.report.kinds.plan_sweep import PlanSweep

_FIELDS = {
    "sync_time": "sync_s",
    "bandwidth": "bandwidth_bytes_per_s",
    "downtime_limit_s": "downtime_limit_s",
    "ram": "ram_bytes",
    "working_set": "working_set_bytes",
    "max_rounds": "max_rounds",
    "switchover_overhead_s": "switchover_overhead_s",
    "dirty_rate": "dirty_rate_bytes_per_s",
}
"""Options and what they are in a plan. The first that varies has a line a value in the table, the last is its edge."""
_CLUSTER_CHUNK = 8000
"""Plans in a task for a cluster: at 40 us or more each, no task is shorter than 0.3 s."""
_CHUNKS_A_CORE, _LEAST_CHUNK, _MOST_CHUNK = 16, 100, 4000
"""Chunks that a process has begun are ended before an interrupt is heard: half a second each."""
_CONNECT_S = 5
_PAGE = 4096
_ADDRESS = r"(tcp|tls)://.+:[0-9]+"


@click.command()
@click.option("--ram", type=SIZES, required=True, help="Memory to be moved.")
@click.option("--dirty-rate", type=RATES, required=True, help="Distinct pages written a second, in bytes or bits.")
@click.option("--working-set", type=SIZES, default=(), help="All that the guest writes.  [default: all of RAM]")
@click.option("--bandwidth", type=RATES, required=True, help="Bandwidth while sending, in bytes (MB/s) or bits (Mb/s).")
@click.option("--sync-time", type=DURATIONS, required=True, help="Time of a sync.")
@click.option(
    "--downtime-limit",
    "downtime_limit_s",
    type=DURATIONS,
    default=milliseconds(DOWNTIME_LIMIT_S),
    show_default=True,
    help="Downtime limit.",
)
@click.option("--max-rounds", type=COUNTS, default=str(MAX_ROUNDS), show_default=True, help="Rounds at most.")
@click.option(
    "--switchover-overhead",
    "--handover",
    "switchover_overhead_s",
    type=DURATIONS,
    default="5ms",
    show_default=True,
    help="Pause, device state, commit.",
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write all plans into this file, a line each.",
)
@click.option("--scheduler", metavar="ADDRESS", default=None, help="Run on the Dask cluster at tcp://HOST:PORT.")
@json_option
def sweep(csv_file: Path | None, scheduler: str | None, as_json: bool, **values: tuple[float, ...]) -> int:
    """Plan every combination of the values of these numbers, and show where plans stop to converge.

    Each takes one value, several (100M,200M,400M), COUNT at equal distances with both ends (100M..2G:20), or at equal
    ratios (100M..2G:20:log).

    \b
    precopy plan sweep --ram 256G --bandwidth 15G --sync-time 1ms..500ms:50 --dirty-rate 100M..15G:50

    --json and --csv have all plans as columns. Units are those of precopy plan.
    """
    import time

    from precopy.cli.facts import show_result
    from precopy.planning.plan.sweep import Axis, Grid, run
    from precopy.report.kinds.plan_sweep import PlanSweep

    grid = Grid(tuple(Axis(field, values[option]) for option, field in _FIELDS.items()))
    _check(grid)
    if csv_file is not None:
        _check_writable(csv_file)
    begun = time.monotonic()
    with _executor(scheduler, grid) as (executor, chunk, where), _progress(grid.plans) as tell:
        columns = _run(lambda: run(grid, executor, chunk, tell), scheduler)
    seconds = time.monotonic() - begun
    swept = PlanSweep.of(grid, columns, where, seconds)
    unwritten = None if csv_file is None else _write_csv(csv_file, swept)
    show_result("plan-sweep", swept, as_json=as_json)
    if unwritten is None:
        return 0
    click.echo(f"precopy: {unwritten}", err=True)  # what was planned is not lost with it
    return unwritten.exit_code


def _check(grid: Grid) -> None:
    from precopy.errors import UsageError
    from precopy.planning.forecast.simulate import MOST_ROUNDS

    options = {field: f"--{option.removesuffix('_s').replace('_', '-')}" for option, field in _FIELDS.items()}
    for axis in grid.axes:
        least = min(axis.values, default=1)
        if axis.field == "max_rounds" and any(value != int(value) for value in axis.values):
            raise UsageError("--max-rounds has to be whole numbers")
        if least <= 0 and axis.field in ("ram_bytes", "bandwidth_bytes_per_s", "downtime_limit_s", "max_rounds"):
            raise UsageError(f"{options[axis.field]} begins at {least:g}; it has to be above 0")
        if axis.field == "ram_bytes" and least < _PAGE:
            raise UsageError(f"--ram begins at {least:g} bytes; a page has {_PAGE}")
        if axis.field == "max_rounds" and max(axis.values) > MOST_ROUNDS:
            raise UsageError(f"--max-rounds is {max(axis.values):g}; a plan has at most {MOST_ROUNDS} rounds")


@contextlib.contextmanager
def _executor(scheduler: str | None, grid: Grid) -> Iterator[tuple[Executor, int, str]]:
    """What runs chunks, how many plans one has, and where that is, in words."""
    if scheduler is not None:
        with _cluster(scheduler) as (executor, workers):
            yield executor, _CLUSTER_CHUNK, f"{workers} worker{'' if workers == 1 else 's'} of {scheduler}"
        return
    import multiprocessing
    import os
    import signal
    import threading
    from concurrent.futures import ProcessPoolExecutor

    from precopy.abi.system_calls import die_with_parent

    cores = len(os.sched_getaffinity(0))
    chunk = min(max(_LEAST_CHUNK, grid.plans // (cores * _CHUNKS_A_CORE)), _MOST_CHUNK)
    workers = min(cores, -(-grid.plans // chunk))
    forked = multiprocessing.get_context("fork")  # nothing is imported again in a worker
    executor = ProcessPoolExecutor(workers, forked, initializer=die_with_parent, initargs=(os.getpid(),))
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is not a worker's business
        try:
            executor.submit(int).result()  # forks all of them, before there is any thread
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield executor, chunk, "1 process" if workers == 1 else f"{workers} processes"
    except BaseException:
        # This process is about to end: another Ctrl-C adds nothing, nor does what the executor's thread makes of it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.excepthook = lambda _: None
        for worker in list((executor._processes or {}).values()):
            worker.kill()
        _end_messages(executor)
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


def _end_messages(executor: ProcessPoolExecutor) -> None:
    """Has the executor's thread, which the interpreter waits for at its end, wait for no message of a worker that was
    killed in the middle of one: this process has both ends of the pipes, so the kernel does not end them."""
    for queue, end in (("_result_queue", "_writer"), ("_call_queue", "_reader")):
        getattr(getattr(executor, queue), end).close()


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[tuple[Executor, int]]:
    import logging
    import re

    from precopy.errors import PeerLost, UsageError, missing_extra

    if re.fullmatch(_ADDRESS, address) is None:
        raise UsageError(f"{address!r} is no scheduler's address; write it like tcp://HOST:PORT")
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise missing_extra("--scheduler needs", "distributed", "cluster") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is said once, below
    try:
        client = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise PeerLost(f"no Dask scheduler answers at {address} ({type(error).__name__})") from None
    with client:
        workers = len(client.ncores())
        if not workers:
            raise PeerLost(f"the Dask scheduler at {address} has no workers")
        yield client.get_executor(), workers


def _run(work: Callable[[], Columns], scheduler: str | None) -> Columns:
    """Turns what executors raise into errors of ours."""
    from concurrent.futures import BrokenExecutor, CancelledError

    from precopy.errors import PeerLost, PrecopyError, Unsupported

    try:
        return work()
    except BrokenExecutor:
        raise PrecopyError("a process of the sweep was killed; is there enough memory?") from None
    except (ImportError, AttributeError) as error:
        if scheduler is None:
            raise
        raise Unsupported(
            f"the workers of {scheduler} cannot run this precopy: {error}", "install the same version there"
        ) from None
    except (CancelledError, OSError) as error:
        if scheduler is None:
            raise
        raise PeerLost(f"the Dask scheduler at {scheduler} was lost ({type(error).__name__})") from None


@contextlib.contextmanager
def _progress(plans: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr, and nothing otherwise."""
    import sys

    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("plans"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("plans", total=plans)
        yield lambda done: bar.update(task, completed=done)


def _check_writable(path: Path) -> None:
    """Before anything is planned; the file is not touched. Raises `UsageError`."""
    import os

    from precopy.errors import UsageError

    # os.path says no of what the system does not answer for, where pathlib raises.
    there = os.path.exists(path)
    if not os.access(path if there else path.parent, os.W_OK):
        why = "its directory is not there" if not os.path.isdir(path.parent) else "it may not be written"
        raise UsageError(f"cannot write {path}: {why}")


def _write_csv(path: Path, swept: PlanSweep) -> UsageError | None:
    """A line of names, then a line a plan; what is fixed is not in it, and what is infinite is ``inf``. Returns why it
    could not be written."""
    import csv

    from precopy.errors import UsageError, raise_without_descriptor

    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(swept.columns)
            writer.writerows(zip(*swept.columns.values(), strict=True))
    except OSError as error:
        raise_without_descriptor("open", str(path), error)
        return UsageError(f"cannot write {path}: {error.strerror}")
    return None
