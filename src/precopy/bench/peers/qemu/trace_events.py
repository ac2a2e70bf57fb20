"""What a sync of the dirty bitmap costs stock QEMU, by its own trace events, in a VM that was captured.

A VM is migrated into nothing, again and again. Its migrations take turns: in one, only the start and the end of each
sync are traced, for the time; in the next, also each CLEAR_DIRTY_LOG, for the count. Tracing a clear takes QEMU longer
than the clear itself takes the kernel (measured: 1.4 to 1.8 us against 0.6), so no single migration gives both.

A migration's first sync lies in its setup and its last one is made with the guest stopped; between them lies one only
if the migration takes longer than the 100 ms over which QEMU works out its bandwidth, which is why the bandwidth is
limited here.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from precopy.bench.peers.qemu.captured import accelerators, parse_command, provide_files
from precopy.bench.peers.qemu.launcher import Machine, dying_with_us, qmp_options, require_qemu
from precopy.bench.peers.qemu.trace_log import (
    CLEAR,
    SYNC_END,
    SYNC_START,
    MigrationTrace,
    TracedSync,
    no_trace,
    parse_trace,
)
from precopy.errors import PeerLost, PeerRefused, Unsupported, UsageError

_LOG = "trace.log"
_SINK = "exec:cat >/dev/null"
_SETTLE, _RUN, _POLL = 4.0, 0.1, 0.01
"""Seconds that the guest runs before the first migration (SeaBIOS waits 2.5 s for a key, and maps its memory anew when
it boots); seconds between two migrations; seconds between two queries of its state."""

_MIN_BANDWIDTH, _RAM_SENT_IN_S = 8 << 20, 100
"""The bandwidth limit: this many bytes a second, or the whole RAM, pages of zeros included, in this many seconds,
whichever is more."""


@dataclass(frozen=True)
class QemuSyncs:
    """Syncs of one VM under stock QEMU.

    ``accel`` is ``kvm`` or ``tcg``; ``status`` is QEMU's word for the VM's state just before its first migration
    (``running``, or ``internal-error`` where KVM has given up on the guest, which then writes nothing); ``ram`` is
    bytes; ``command`` is what was captured, with RAM replaced if asked for; ``ramblock`` and ``mtree`` are QEMU's
    answers to ``info ramblock`` and ``info mtree -f`` at the same time as ``status``: firmware that runs maps other
    sections than those of a VM that was just reset, so the layout is taken from the VM that is timed.

    ``timed`` are syncs of migrations without the tracing of clears, ``counted`` those of the others, of which there
    were ``counted_migrations``, with ``deferred_clear_ioctls`` in total between their syncs.
    """

    version: str
    accel: str
    status: str
    ram: int
    command: tuple[str, ...]
    ramblock: str
    mtree: str
    timed: tuple[TracedSync, ...]
    counted: tuple[TracedSync, ...]
    counted_migrations: int
    deferred_clear_ioctls: int

    @property
    def sync_s(self) -> float:
        """Median seconds of a sync, clears not traced: the fair figure."""
        return statistics.median(sync.sync_s for sync in self.timed)

    @property
    def sync_all_events_s(self) -> float:
        """Median seconds of a sync with each clear traced, which costs time."""
        return statistics.median(sync.sync_s for sync in self.counted)

    @property
    def clear_ioctls(self) -> int:
        """Median CLEAR_DIRTY_LOG calls of a sync."""
        return statistics.median_low(sync.clear_ioctls or 0 for sync in self.counted)


def trace_syncs(
    command: str, *, qemu: str | None = None, ram: int | None = None, syncs: int = 9, timeout: float = 120.0
) -> QemuSyncs:
    """Runs the VM of a captured ``command`` and migrates it into nothing until ``syncs`` syncs were timed and as many
    counted, at least; all the syncs of the last migration are there.

    ``qemu`` is the path of the QEMU that is run (None: the installed one).
    ``ram`` bytes replace what the command line says. ``timeout`` in seconds, for everything. No disk is written: QEMU
    runs with ``-snapshot``, in a temporary directory that has the flash files that `provide_files` makes; and with
    ``-nodefaults``, as the captures were made: no RAM block is there whose device the command line does not name.

    Raises `UsageError`, `Unsupported` (QEMU, its QMP client, its firmware, KVM or its trace is missing), `PeerLost`
    (QEMU did not start, ended, or was not done in time), `PeerRefused` and `PeerProtocolError`.
    """
    if syncs < 1 or timeout <= 0:
        raise UsageError(f"{syncs} syncs in {timeout} s cannot be traced")
    words = parse_command(command, ram)
    program = require_qemu(qemu, kvm=accelerators(words) == {"kvm"})
    with contextlib.ExitStack() as stack:
        try:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="precopy-qemu-")))
            log = stack.enter_context((directory / _LOG).open("w+"))
        except OSError as error:
            raise Unsupported(f"no temporary file can be written: {error}", "set TMPDIR to a writable place") from error
        provide_files(words, directory)
        runner = stack.enter_context(asyncio.Runner())
        machine = Machine(_TracedVm(program, words, directory))
        stack.callback(lambda: runner.run(machine.disconnect()))
        stack.callback(machine.kill)
        try:
            return runner.run(asyncio.wait_for(_trace(machine, words, log, syncs), timeout))
        except TimeoutError:
            message = f"QEMU's syncs were not traced in {timeout:g} s; allow more time, or less RAM"
            raise PeerLost(message, silent=True) from None


@dataclass(frozen=True)
class _TracedVm:
    """How the VM is started."""

    qemu: str
    words: tuple[str, ...]
    directory: Path
    role: str = "traced"
    preallocated: int = 0

    def command(self, qmp_fd: int) -> list[str]:
        command = [self.qemu, *self.words[1:], "-nodefaults", "-snapshot", "-display", "none"]
        command += qmp_options(qmp_fd)
        command += ["-msg", "timestamp=on", "-D", _LOG]
        command += ["-trace", f"enable={SYNC_START}", "-trace", f"enable={SYNC_END}"]
        return dying_with_us(command)


async def _trace(machine: Machine, words: tuple[str, ...], log: TextIO, syncs: int) -> QemuSyncs:
    await machine.connect()
    kvm: bool = (await machine.execute("query-kvm"))["enabled"]
    ram: int = (await machine.execute("query-memory-size-summary"))["base-memory"]
    await machine.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    await machine.execute("migrate-set-parameters", max_bandwidth=max(_MIN_BANDWIDTH, ram // _RAM_SENT_IN_S))
    await asyncio.sleep(_SETTLE)
    status: str = (await machine.execute("query-status"))["status"]
    ramblock, mtree = await _monitor(machine, "info ramblock"), await _monitor(machine, "info mtree -f")
    timed: list[TracedSync] = []
    counted: list[MigrationTrace] = []
    while len(timed) < syncs or sum(len(run.syncs) for run in counted) < syncs:
        timed += (await _migrate(machine, log, clears=False)).syncs
        if kvm:
            await machine.execute("trace-event-set-state", name=CLEAR, enable=True)
        counted.append(await _migrate(machine, log, clears=True))
        if kvm:
            await machine.execute("trace-event-set-state", name=CLEAR, enable=False)
    return QemuSyncs(
        version=await machine.version(),
        accel="kvm" if kvm else "tcg",
        status=status,
        ram=ram,
        command=words,
        ramblock=ramblock,
        mtree=mtree,
        timed=tuple(timed),
        counted=tuple(sync for run in counted for sync in run.syncs),
        counted_migrations=len(counted),
        deferred_clear_ioctls=sum(run.deferred_clear_ioctls for run in counted),
    )


async def _monitor(machine: Machine, command: str) -> str:
    answer: str = await machine.execute("human-monitor-command", command_line=command)
    return answer.replace("\r\n", "\n")


async def _migrate(machine: Machine, log: TextIO, *, clears: bool) -> MigrationTrace:
    """Migrates the VM into nothing, and lets it run on here."""
    await machine.execute("migrate", uri=_SINK)
    status = ""
    while status != "completed":
        event = await machine.next_event()
        status = event["data"]["status"] if event["event"] == "MIGRATION" else status
        if status in ("failed", "cancelled"):
            answer = await machine.execute("query-migrate")
            raise PeerRefused(f"QEMU's migration {status}: {answer.get('error-desc', 'no reason given')}")
    # QEMU reports completion a moment before it lets the guest run again.
    while (await machine.execute("query-status"))["status"] != "postmigrate":
        await asyncio.sleep(_POLL)
    trace = parse_trace(log.read(), clears=clears)
    if not trace.syncs:
        raise no_trace()
    await machine.execute("cont")
    await asyncio.sleep(_RUN)
    return trace
