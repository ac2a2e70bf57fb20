"""Syncs of a VM that runs and rewrites a set of pages, in stock QEMU: work that our guest can be given, too.

The VM is a PC with our own firmware (boot.py) as its flash, padded to a length that is no multiple of 64 pages: its
program runs at CPL 3, which KVM runs everywhere, also where it is itself virtualised. Its migration never ends: the
rewritten set does not fit its downtime limit. What reads it decides when QEMU syncs (gate.py). Its first syncs are
traced without clears, for the times, the others with them, for the counts (see trace_events.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from precopy.bench.pacing import PacedSync, Pacing
from precopy.bench.peers.qemu.boot import build_rom
from precopy.bench.peers.qemu.gate import Gate, MigrationEndedError
from precopy.bench.peers.qemu.launcher import Json, Machine, accelerator, dying_with_us, qmp_options, require_qemu
from precopy.bench.peers.qemu.program import LOW_RAM_END, READY, Guest
from precopy.bench.peers.qemu.trace_log import CLEAR, TRACED
from precopy.errors import GuestError, PeerLost, PeerRefused, Unsupported, UsageError
from precopy.units import PAGE_SIZE

FLASH_BYTES = 1_966_080
"""480 pages, no multiple of 64: the length of the flash whose clears the patch series merges."""

_LOG, _FLASH = "trace.log", "guest.flash"
_UNLIMITED = 1 << 40
"""Bytes a second that no link reaches."""
_SOON_MS, _FEW_BYTES_PER_S = 1, 2 * PAGE_SIZE * 1000
"""The downtime limit, and the bandwidth that QEMU is to reckon with where it can be told one (8.2 and later): it syncs
when less is unsent than that carries in the limit, a page or two. QEMU 7.2 reckons with the bandwidth that it sees."""
_FIRST_ROUNDS, _UNUSED = 2, 8
"""Syncs at once: of the setup, and after all of RAM. Paced ones that do not count: those in the 100 ms for which QEMU
still reckons with the bandwidth of all of RAM."""
_COUNTED = 4
"""A quarter as many syncs have their clears traced, after the others: the number of clears does not vary."""
_POLL_S = 0.05
"""Seconds between two looks at QEMU."""


@dataclass(frozen=True)
class QemuRun:
    """``syncs`` of the running VM, in order, with equal work or not, and clears in a sync (median); ``ramblock`` and
    ``mtree`` are what QEMU's monitor says of its layout."""

    version: str
    dirty_ring: bool
    syncs: tuple[PacedSync, ...]
    clear_ioctls: int
    ramblock: str
    mtree: str


def trace_running(
    *,
    qemu: str | None = None,
    ram: int = 512 << 20,
    pages: int = 1301,
    interval_s: float = 0.02,
    syncs: int = 50,
    dirty_ring: bool = False,
    timeout: float = 120.0,
) -> QemuRun:
    """``qemu`` is the path of the QEMU that is run (None: the installed one); its guest has ``ram`` bytes and rewrites
    ``pages`` pages as fast as it can. Syncs come ``interval_s`` seconds apart, or farther where the guest needs longer
    for all of its pages (`Pacing`), until ``syncs`` had equal work, or four times as many were made.
    ``dirty_ring``: QEMU tracks by the dirty ring, not by the dirty log. ``timeout`` in seconds, for everything.

    Raises `UsageError`, `Unsupported`, `GuestError`, `PeerLost`, `PeerRefused` and `PeerProtocolError`.
    """
    if syncs < 1 or interval_s <= 0 or timeout <= 0:
        raise UsageError(f"{syncs} syncs {interval_s} s apart in {timeout} s cannot be traced")
    guest = Guest(ram, pages * PAGE_SIZE, seed=secrets.randbits(63) | 1)
    program = require_qemu(qemu)
    with contextlib.ExitStack() as stack:
        try:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="precopy-qemu-")))
            (directory / _FLASH).write_bytes(build_rom(guest).rjust(FLASH_BYTES, b"\xff"))
            log = stack.enter_context((directory / _LOG).open("w+"))
        except OSError as error:
            raise Unsupported(f"no temporary file can be written: {error}", "set TMPDIR to a writable place") from error
        runner = stack.enter_context(asyncio.Runner())
        machine = Machine(_RunningVm(program, ram, directory, dirty_ring))
        stack.callback(lambda: runner.run(machine.disconnect()))
        stack.callback(machine.kill)
        run = _Run(machine, ram, log, Pacing(pages, interval_s), time.monotonic() + timeout)
        try:
            return runner.run(asyncio.wait_for(run.measure(syncs, dirty_ring), timeout))
        except TimeoutError:
            message = f"{syncs} syncs of QEMU were not traced in {timeout:g} s; allow more time, or less RAM"
            raise PeerLost(message, silent=True) from None


@dataclass(frozen=True)
class _RunningVm:
    """How the VM is started."""

    qemu: str
    ram: int
    directory: Path
    dirty_ring: bool
    role: str = "running"

    @property
    def preallocated(self) -> int:
        return self.ram

    def command(self, qmp_fd: int) -> list[str]:
        command = [self.qemu, *accelerator(self.dirty_ring), "-nodefaults", "-no-user-config", "-display", "none"]
        command += ["-smp", "1", "-m", f"{self.ram >> 20}M"]
        command += ["-machine", f"pc,max-ram-below-4g={LOW_RAM_END},memory-backend=ram"]
        command += ["-object", f"memory-backend-ram,id=ram,size={self.ram},prealloc=on"]
        command += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_FLASH}"]
        command += [*qmp_options(qmp_fd), "-msg", "timestamp=on", "-D", _LOG]
        return dying_with_us(command)


class _Run:
    """The VM under measurement. ``deadline`` is by the monotonic clock, in seconds."""

    def __init__(self, machine: Machine, ram: int, log: TextIO, pacing: Pacing, deadline: float) -> None:
        self._machine, self._ram, self._log, self._pacing, self._deadline = machine, ram, log, pacing, deadline

    async def measure(self, syncs: int, dirty_ring: bool) -> QemuRun:
        machine = self._machine
        await machine.connect()
        version = await machine.version()
        while (await machine.registers())["R8"] != READY:
            await asyncio.sleep(_POLL_S)
        before = (await machine.registers())["R15"]
        parameters = {"max_bandwidth": _UNLIMITED, "downtime_limit": _SOON_MS}
        if "avail-switchover-bandwidth" in await machine.execute("query-migrate-parameters"):
            parameters["avail_switchover_bandwidth"] = _FEW_BYTES_PER_S
        await machine.execute("migrate-set-parameters", **parameters)
        made, clears = await self._trace(syncs)
        if (await machine.registers())["R15"] == before:
            raise GuestError("QEMU's guest did not write while it was migrated")
        ramblock = await machine.execute("human-monitor-command", command_line="info ramblock")
        mtree = await machine.execute("human-monitor-command", command_line="info mtree -f")
        return QemuRun(
            version=version,
            dirty_ring=dirty_ring,
            syncs=tuple(made),
            clear_ioctls=statistics.median_low(clears),
            ramblock=ramblock.replace("\r\n", "\n"),
            mtree=mtree.replace("\r\n", "\n"),
        )

    async def _trace(self, syncs: int) -> tuple[list[PacedSync], list[int]]:
        """As many syncs with equal work, and the clears of some more. A guest that had no core in all the time between
        two syncs leaves nothing to be sent, and its migration completes: then another one is begun."""
        made: list[PacedSync] = []
        while True:
            async with self._migration() as gate:
                await asyncio.to_thread(gate.pass_all_of_ram, _FIRST_ROUNDS, _FIRST_ROUNDS * self._ram)
                for _ in range(_UNUSED):
                    await asyncio.to_thread(gate.pass_sync)
                while not self._pacing.done(made, syncs):
                    made += await asyncio.to_thread(gate.pass_sync)
                await self._machine.execute("trace-event-set-state", name=CLEAR, enable=True)
                first = len(gate.syncs)
                for _ in range(max(syncs // _COUNTED, 1)):
                    await asyncio.to_thread(gate.pass_sync)
                return made, [sync.clear_ioctls or 0 for sync in gate.syncs[first:]]

    @contextlib.asynccontextmanager
    async def _migration(self) -> AsyncIterator[Gate]:
        """A migration whose syncs are traced, and which is cancelled at the end. Where it completes before, that is no
        error: the guest then runs on here."""
        machine = self._machine
        for event in TRACED:
            await machine.execute("trace-event-set-state", name=event, enable=event != CLEAR)
        self._log.read()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                await machine.give(theirs.fileno(), "gate")
            gate = Gate(ours, self._log, self._pacing, self._deadline)
            await machine.execute("migrate", uri="fd:gate")
            try:
                yield gate
                await machine.execute("migrate_cancel")
                await self._wait("query-migrate", "cancelled", "completed")
            except MigrationEndedError:
                await self._run_on()
            finally:
                gate.close()

    async def _run_on(self) -> None:
        """The guest, after its migration has completed."""
        answer = await self._wait("query-migrate", "completed", "failed")
        if answer["status"] == "failed":
            raise PeerRefused(f"QEMU's migration failed: {answer.get('error-desc', 'no reason given')}")
        await self._wait("query-status", "postmigrate")
        await self._machine.execute("cont")

    async def _wait(self, query: str, *states: str) -> Json:
        while (answer := await self._machine.execute(query))["status"] not in states:
            await asyncio.sleep(_POLL_S)
        return dict(answer)
