"""What a sync of the dirty bitmap costs stock QEMU, by its own trace events, in a VM that was captured.

A VM is migrated into nothing, again and again. Its migrations take turns: in one, only the start and the end of each
sync are traced, for the time; in the next, also each CLEAR_DIRTY_LOG, for the count. Tracing a clear takes QEMU longer
than the clear itself takes the kernel (measured: 1.4 to 1.8 us against 0.6), so no single migration gives both.

Facts: the `log` backend of trace events, which Debian's builds have, writes a line with its time for each event under
``-msg timestamp=on``, by one write(2), and takes the time before that write: a sync's time includes that
of one line. ``dirty_pages`` of migration_bitmap_sync_end counts new dirty pages since the rate was last worked out,
over one second or more, and so may add up several syncs. The slot of kvm_clear_dirty_log is the kernel's, with the
address space (1: SMM) in its upper 16 bits. A migration's first sync lies in its setup and its last one is made with
the guest stopped; between them lies one only if the migration takes longer than the 100 ms over which QEMU works out
its bandwidth, which is why the bandwidth is limited here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TextIO

from precopy.bench.peers.qemu.captured import accelerators, parse_command, provide_files
from precopy.bench.peers.qemu.launcher import Machine, dying_with_us, qmp_options, require_qemu
from precopy.errors import PeerLost, PeerProtocolError, PeerRefused, Unsupported, UsageError

Phase = Literal["setup", "iterate", "complete"]

_START, _END, _CLEAR = "migration_bitmap_sync_start", "migration_bitmap_sync_end", "kvm_clear_dirty_log"
_EVENT = re.compile(
    r"(?:(?P<thread>\d+)@(?P<seconds>\d+)\.(?P<fraction>\d{6}):"
    r"|(?P<moment>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) )"
    rf"(?P<event>{_START}|{_END}|{_CLEAR})(?: (?P<rest>.*))?"
)
"""QEMU 7.2 and 10.0: ``thread@seconds.microseconds:event``; 11.1: ``date and time event``, without a thread."""
_DIRTY_PAGES = re.compile(r"dirty_pages (\d+)")
_SLOT = re.compile(r"slot#(\d+) start 0x[0-9a-f]+ size 0x[0-9a-f]+")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOG = "trace.log"
_SINK = "exec:cat >/dev/null"
_SETTLE, _RUN, _POLL = 4.0, 0.1, 0.01
"""Seconds that the guest runs before the first migration (SeaBIOS waits 2.5 s for a key, and maps its memory anew when
it boots); seconds between two migrations; seconds between two queries of its state."""

_MIN_BANDWIDTH, _RAM_SENT_IN_S = 8 << 20, 100
"""The bandwidth limit: this many bytes a second, or the whole RAM, pages of zeros included, in this many seconds,
whichever is more."""


@dataclass(frozen=True)
class TracedSync:
    """One sync of the migration's dirty bitmap.

    ``sync_s`` is seconds from its start to its end; ``dirty_pages`` is what its end reports. ``clear_ioctls`` are
    CLEAR_DIRTY_LOG calls made between the two, ``clears_by_slot`` the same by KVM memory slot; None where clears were
    not traced. ``phase`` is the migration's: its setup (all pages are dirty), its rounds, or its completion, with
    the guest stopped.
    """

    phase: Phase
    sync_s: float
    dirty_pages: int
    clears_by_slot: Mapping[int, int] | None

    @property
    def clear_ioctls(self) -> int | None:
        return None if self.clears_by_slot is None else sum(self.clears_by_slot.values())


@dataclass(frozen=True)
class MigrationTrace:
    """The syncs of one migration, in order, and the CLEAR_DIRTY_LOG calls that it made outside of them."""

    syncs: tuple[TracedSync, ...]
    deferred_clear_ioctls: int


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
        command += ["-msg", "timestamp=on", "-D", _LOG, "-trace", f"enable={_START}", "-trace", f"enable={_END}"]
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
            await machine.execute("trace-event-set-state", name=_CLEAR, enable=True)
        counted.append(await _migrate(machine, log, clears=True))
        if kvm:
            await machine.execute("trace-event-set-state", name=_CLEAR, enable=False)
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
        raise Unsupported("QEMU has logged no trace events", "use a build with the trace backend `log`, as Debian's")
    await machine.execute("cont")
    await asyncio.sleep(_RUN)
    return trace


def parse_trace(text: str, *, clears: bool = True) -> MigrationTrace:
    """The syncs of one migration, from the lines that QEMU has logged; lines of anything else are passed over.

    ``clears`` says whether CLEAR_DIRTY_LOG calls were traced. Raises `PeerProtocolError` where a line of these events
    cannot be read, or starts and ends do not fit together.
    """
    reader = _Reader(clears)
    for line in text.splitlines():
        if match := _EVENT.fullmatch(line.rstrip()):
            reader.take(int(match["thread"] or 0), _microseconds(match), match["event"], match["rest"] or "")
        elif any(event in line for event in (_START, _END, _CLEAR)):
            raise PeerProtocolError(f"QEMU's trace is not understood: {line.strip()!r}")
    return reader.finish()


def _microseconds(line: re.Match[str]) -> int:
    """Since 1970."""
    if line["moment"] is None:
        return 1_000_000 * int(line["seconds"]) + int(line["fraction"])
    try:
        return (datetime.fromisoformat(line["moment"]) - _EPOCH) // timedelta(microseconds=1)
    except ValueError:
        raise PeerProtocolError(f"QEMU's trace has a time that cannot be: {line['moment']!r}") from None


@dataclass
class _Reader:
    """One migration's events, in order; times in microseconds."""

    clears: bool
    thread: int | None = None
    started: int | None = None
    slots: Counter[int] = field(default_factory=Counter)
    ended: list[tuple[int, int, Counter[int]]] = field(default_factory=list)
    deferred: int = 0

    def take(self, thread: int, time: int, event: str, rest: str) -> None:
        if event == _START:
            if self.started is not None:
                raise PeerProtocolError("QEMU's trace has a sync that starts within another")
            self.thread, self.started, self.slots = thread, time, Counter()
        elif event == _END:
            if self.started is None or time < self.started:
                raise PeerProtocolError("QEMU's trace has a sync that ends before it starts")
            self.ended.append((time - self.started, int(_read(_DIRTY_PAGES, event, rest)), self.slots))
            self.started = None
        elif thread == self.thread:  # another thread clears for the display; 11.1 does not say which it was
            slot = int(_read(_SLOT, event, rest))
            if self.started is None:
                self.deferred += 1
            else:
                self.slots[slot] += 1

    def finish(self) -> MigrationTrace:
        if self.started is not None:
            raise PeerProtocolError("QEMU's trace has a sync that does not end")
        syncs = tuple(
            TracedSync(self._phase(number), 1e-6 * time, dirty_pages, dict(slots) if self.clears else None)
            for number, (time, dirty_pages, slots) in enumerate(self.ended)
        )
        return MigrationTrace(syncs, self.deferred)

    def _phase(self, number: int) -> Phase:
        if number == 0:
            return "setup"
        return "complete" if number == len(self.ended) - 1 else "iterate"


def _read(pattern: re.Pattern[str], event: str, rest: str) -> str:
    match = pattern.fullmatch(rest)
    if match is None:
        raise PeerProtocolError(f"QEMU's trace of {event} is not understood: {rest!r}")
    return match[1]
