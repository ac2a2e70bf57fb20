"""A source and a destination QEMU on this host, with one guest between them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from precopy.bench.peers.qemu.boot import build_rom
from precopy.bench.peers.qemu.launcher import Config, Json, Machine, require_qemu
from precopy.bench.peers.qemu.program import READY, Guest
from precopy.errors import (
    GuestError,
    NotConverged,
    OutOfMemory,
    PeerLost,
    PeerProtocolError,
    PeerRefused,
    Unsupported,
    UsageError,
)
from precopy.memory.system_memory import available_memory

T = TypeVar("T")
Side = Literal["source", "destination"]

_ROM, _SOCKET = "guest.rom", "migrate.sock"
_UNLIMITED = 1 << 40
"""Bytes a second that no link reaches; QEMU's default would be 128 MiB a second."""

_OVERHEAD = 256 << 20
"""Bytes for both processes beyond the guest's RAM."""

_BOOTS = 4
_READY_POLL, _FIGURES_POLL = 0.05, 0.005
"""Seconds."""


@dataclass(frozen=True)
class Completed:
    """A migration that completed: QEMU's last ``query-migrate`` answer, and what was seen from outside.

    ``wall_s`` is seconds from the ``migrate`` command until QEMU reported completion; ``stop_to_resume_s``
    is seconds from the source's STOP event to the destination's RESUME event, both stamped with this host's
    clock.
    """

    answer: Json
    wall_s: float
    stop_to_resume_s: float


class QemuPair:
    """Both machines, from ``with`` until its end; no process, socket or file is left behind.

    Use it from one thread, without a running event loop. Entering raises `Unsupported` if this machine
    lacks something, `OutOfMemory` if the two machines would not fit, `GuestError` if the guest does not
    come up; every method raises `PeerLost` if a QEMU ends or does not answer, and `PeerRefused` if it says
    no.
    """

    def __init__(
        self,
        *,
        ram: int,
        rewritten: int,
        write_rate: int | None = None,
        timeout: float = 120.0,
        qemu: str | None = None,
        dirty_ring: bool = False,
        channels: int = 1,
    ) -> None:
        """``qemu`` is the path of the QEMU that is run (None: the installed one);
        ``ram``, ``rewritten`` in bytes; ``write_rate`` in pages a second (None: as fast as the CPU can).
        ``dirty_ring``: it tracks by the dirty ring, not by the dirty log. ``channels`` carry pages: more than one is
        QEMU's multifd.

        ``timeout`` in seconds, for coming up and for migrating, each. Raises `UsageError`.
        """
        if timeout <= 0:
            raise UsageError(f"a time-out of {timeout} s cannot be kept")
        self.guest = Guest(ram, rewritten, write_rate, seed=secrets.randbits(63) | 1)
        self._timeout = timeout
        self._qemu, self._dirty_ring, self._channels = qemu, dirty_ring, channels
        self._closing = contextlib.ExitStack()
        self._machines: dict[Side, Machine] = {}

    def __enter__(self) -> Self:
        qemu = require_qemu(self._qemu)
        _require_memory(2 * self.guest.ram + _OVERHEAD)
        rom = build_rom(self.guest)
        with contextlib.ExitStack() as stack:
            directory = _make_directory(stack, rom)
            self._runner = stack.enter_context(asyncio.Runner())
            for side in ("destination", "source"):
                config = Config(
                    side,
                    qemu,
                    self.guest.ram,
                    _ROM,
                    directory,
                    incoming=side == "destination",
                    dirty_ring=self._dirty_ring,
                )
                machine = self._machines[side] = Machine(config)
                stack.callback(self._disconnect, machine)
                stack.callback(machine.kill)
            self._run(self._come_up())
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()

    def version(self) -> str:
        """QEMU's version, such as ``7.2.22 (Debian ...)``."""
        return self._run(self._machines["source"].version())

    def pages_written(self, side: Side) -> int:
        """Pages that the guest has written since it came up, as that side's vCPU has counted them."""
        return self._run(self._machines[side].registers())["R15"]

    def measure_write_rate(self, side: Side, duration: float) -> float:
        """Pages a second that the guest writes on that side, over ``duration`` seconds."""
        before, start = self.pages_written(side), time.perf_counter()
        time.sleep(duration)
        after, end = self.pages_written(side), time.perf_counter()
        return (after - before) / (end - start)

    def read_ram(self, side: Side, address: int, size: int) -> bytes:
        """``size`` bytes of guest-physical memory at ``address``, also of a guest that is paused."""
        return self._run(self._machines[side].read_ram(address, size))

    def migrate(self, downtime_limit_s: float, max_bandwidth: int | None = None) -> Completed:
        """Migrates the guest, once, from source to destination.

        ``downtime_limit_s`` in seconds, ``max_bandwidth`` in bytes a second (None: not limited).

        Raises `NotConverged` when the time is up (the guest then runs on at the source) and `PeerRefused`
        if QEMU gives up.
        """
        if not 0 < downtime_limit_s <= 2000:
            raise UsageError(f"{downtime_limit_s} s is not a downtime limit that QEMU takes (up to 2000 s)")
        return self._run(self._migrate(downtime_limit_s, max_bandwidth or _UNLIMITED))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def _disconnect(self, machine: Machine) -> None:
        self._run(machine.disconnect())

    async def _come_up(self) -> None:
        source, destination = self._machines["source"], self._machines["destination"]
        await destination.connect()
        await source.connect()
        (source.config.directory / _ROM).unlink()
        for attempt in range(_BOOTS):
            if attempt:  # seen once in some hundred boots where KVM is itself virtualised: start it again
                await source.execute("system_reset")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeout / _BOOTS):
                    while (await source.registers())["R8"] != READY:
                        await asyncio.sleep(_READY_POLL)
                    return
        raise GuestError(f"the guest in QEMU did not come up in {self._timeout:.0f} s")

    async def _migrate(self, downtime_limit_s: float, max_bandwidth: int) -> Completed:
        source, destination = self._machines["source"], self._machines["destination"]
        names = ["events", *(["multifd"] if self._channels > 1 else [])]
        for side in (destination, source):
            capabilities = [{"capability": name, "state": True} for name in names]
            await side.execute("migrate-set-capabilities", capabilities=capabilities)
            if self._channels > 1:
                await side.execute("migrate-set-parameters", multifd_channels=self._channels)
        limit_ms = max(1, round(1000 * downtime_limit_s))
        await source.execute("migrate-set-parameters", max_bandwidth=max_bandwidth, downtime_limit=limit_ms)
        await destination.execute("migrate-incoming", uri=f"unix:{_SOCKET}")
        start = time.perf_counter()
        await source.execute("migrate", uri=f"unix:{_SOCKET}")
        try:
            async with asyncio.timeout(self._timeout):
                stopped = await _wait_completed(source)
                wall_s = time.perf_counter() - start
                resumed = await _wait_for(destination, "RESUME")
                answer = await _final_answer(source)
        except TimeoutError:
            raise await _give_up(source, downtime_limit_s) from None
        return Completed(answer, wall_s, resumed - stopped)


async def _wait_completed(source: Machine) -> float:
    """Waits until the source has completed; returns when it stopped the guest (seconds, host's clock)."""
    stopped = None
    while True:
        event = await source.next_event()
        if event["event"] == "STOP":
            stopped = _timestamp(event)
        status = event["data"]["status"] if event["event"] == "MIGRATION" else None
        if status == "completed":
            if stopped is None:
                raise PeerProtocolError("QEMU completed a migration without stopping the guest")
            return stopped
        if status in ("failed", "cancelled"):
            answer = await source.execute("query-migrate")
            raise PeerRefused(f"QEMU's migration {status}: {answer.get('error-desc', 'no reason given')}")


async def _final_answer(source: Machine) -> Json:
    """QEMU's figures; it reports completion a moment before it has worked out total time and downtime."""
    while True:
        answer: Json = await source.execute("query-migrate")
        if answer.get("total-time", 0) > 0:
            return answer
        await asyncio.sleep(_FIGURES_POLL)


async def _wait_for(machine: Machine, name: str) -> float:
    while True:
        event = await machine.next_event()
        if event["event"] == name:
            return _timestamp(event)


def _timestamp(event: Json) -> float:
    return float(event["timestamp"]["seconds"] + 1e-6 * event["timestamp"]["microseconds"])


async def _give_up(source: Machine, downtime_limit_s: float) -> NotConverged | PeerLost:
    answer = await source.execute("query-migrate")
    if answer.get("status") == "completed":
        return PeerLost("QEMU completed the migration, but the guest did not resume at the destination in time")
    await source.execute("migrate_cancel")
    ram = answer.get("ram", {})
    expected = answer.get("expected-downtime", 0) / 1000
    return NotConverged(ram.get("dirty-sync-count", 0), ram.get("remaining", 0), expected, downtime_limit_s)


def _make_directory(stack: contextlib.ExitStack, rom: bytes) -> Path:
    try:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="precopy-qemu-")))
        (directory / _ROM).write_bytes(rom)
    except OSError as error:
        message = f"no temporary file can be written: {error}"
        raise Unsupported(message, "set TMPDIR to a writable place") from error
    return directory


def _require_memory(wanted: int) -> None:
    available = available_memory()
    if available is not None and available < wanted:
        raise OutOfMemory("two QEMU machines", wanted, available)
