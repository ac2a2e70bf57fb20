"""``precopy bench migrate``: a migration beside the raw socket and beside QEMU's own, in turn.

Each repeat measures, one after the other: the raw socket, precopy between two processes, and every QEMU that is here
between two processes, by the dirty log and by the dirty ring, with one channel and with multifd's two. All go over Unix
sockets with memory that was touched before, random content, and one vCPU that rewrites the same number of pages. So a
machine whose speed drifts moves all of them, and the ratios stay. What fails in one repeat is noted, and the others are
made.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from precopy.bench.failed import Failed, T, attempt
from precopy.bench.peers.ceiling import socket_ceiling
from precopy.bench.peers.qemu.launcher import find_qemus, qemu_name, require_qemu
from precopy.bench.peers.qemu.migrate import measure_migration
from precopy.dirty import MigrationBitmap, clear_policy
from precopy.errors import PrecopyError, Unsupported
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import machine_layout
from precopy.migration import Migrated, MigrationOptions
from precopy.migration.page_source import BATCH_PAGES
from precopy.report.kinds.bench_migrate import IdleSync, Overhead, QemuMigration, Repeat, Setup
from precopy.service import ProcessPair, migrate_guest
from precopy.units import PAGE_SIZE

_SYNCS, _WARM_UP = 300, 20
_SETTLE_S = 0.5
"""Seconds that the guest runs before it is migrated, with precopy and with QEMU."""


def measure(
    setup: Setup, repeats: int, against_qemu: bool, tell: Callable[[str], None]
) -> tuple[list[Repeat], list[Failed]]:
    """``repeats`` times all of them, in turn. ``tell`` is told what is measured next. Returns the repeats in which
    precopy was measured, and what failed; a QEMU that cannot be measured here at all is tried once."""
    done: list[Repeat] = []
    failed: list[Failed] = []
    unusable = attempt(QEMU, require_qemu) if against_qemu else None
    failed += [unusable] if isinstance(unusable, Failed) else []
    peers = [] if unusable is None or failed else _peers()
    first = next(iter(peers), None)

    def tried(number: int, what: str, work: Callable[[], T]) -> T | None:
        tell(f"{number}/{repeats}: {what}")
        made = attempt(f"{what}, repeat {number}", work)
        if not isinstance(made, Failed):
            return made
        failed.append(made)
        return None

    def with_peer(number: int, peer: _Peer) -> QemuMigration | None:
        made = tried(number, peer.name, lambda: _migrate_qemu(setup, peer))
        if made is None and failed[-1].kind == Unsupported.__name__:
            peers.remove(peer)
        return made

    for number in range(1, repeats + 1):
        ceiling = tried(number, "raw socket", lambda: socket_ceiling(setup.ram, BATCH_PAGES * PAGE_SIZE))
        ours = None if ceiling is None else tried(number, "precopy", lambda: _migrate(setup))
        if ceiling is None or ours is None:
            continue
        qemus = {peer: with_peer(number, peer) for peer in tuple(peers)}
        others = (qemu for peer, qemu in qemus.items() if peer != first and qemu is not None)
        done.append(Repeat(ceiling, *ours, qemus.get(first) if first else None, tuple(others)))
    return done, failed


QEMU = "QEMU"
"""How the name of what failed begins, where it was a peer."""


@dataclass(frozen=True)
class _Peer:
    """A QEMU, what it tracks by, and how many channels carry its pages."""

    qemu: str
    dirty_ring: bool
    channels: int

    @property
    def name(self) -> str:
        return f"{qemu_name(self.qemu)}, dirty {'ring' if self.dirty_ring else 'log'}, channels: {self.channels}"


def _peers() -> list[_Peer]:
    return [_Peer(*way) for way in itertools.product(find_qemus(), (False, True), (1, 2))]


def _migrate_qemu(setup: Setup, peer: _Peer) -> QemuMigration:
    return measure_migration(
        qemu=peer.qemu,
        dirty_ring=peer.dirty_ring,
        channels=peer.channels,
        ram=setup.ram,
        rewritten=setup.rewritten,
        write_rate=setup.write_rate,
        downtime_limit_s=setup.downtime_limit_s,
        settle=_SETTLE_S,
    )


def idle_sync(ram: int) -> IdleSync:
    """Times syncs of an idle KVM guest with the q35 layout. Raises `Unsupported`, `OutOfMemory`."""
    with KvmGuest(GuestMemory(machine_layout("q35", ram))) as guest:
        layout = guest.memory.layout
        guest.boot(Workload("idle"))
        guest.resume()
        guest.dirty.start()
        try:
            bitmap = MigrationBitmap(guest.dirty, clear_policy("merged", layout))
            times = [bitmap.sync().sync_s for _ in range(_SYNCS + _WARM_UP)][_WARM_UP:]
        finally:
            guest.dirty.stop()
        guest.pause()
    return IdleSync(len(layout.sections), _SYNCS, statistics.median(times), min(times), max(times))


def _migrate(setup: Setup) -> tuple[Migrated, Overhead]:
    same = ["--ram", f"{setup.ram}B", "--guest", "kvm"]
    run = [*same, "--fill", "1"]
    if setup.rewritten:
        run += ["--workload", "sequential", "--working-set", f"{setup.rewritten}B"]
        run += ["--write-rate", "max" if setup.write_rate is None else str(setup.write_rate)]
    else:
        run += ["--workload", "idle"]
    options = MigrationOptions(downtime_limit_s=setup.downtime_limit_s, verify=setup.verify)
    with ProcessPair(run, [*same, "--prealloc"]) as pair:
        time.sleep(_SETTLE_S)
        done = migrate_guest(pair.source, pair.address, options)
        if not pair.ask(pair.destination, "check")["ok"]:
            raise PrecopyError("the guest's invariant is broken at the destination")
        pair.ask(pair.destination, "quit")
        source, destination = (pair.finish(name) for name in ("source", "destination"))
    ram = done.ram_bytes
    return done, Overhead(source["peak_resident_bytes"] - ram, destination["peak_resident_bytes"] - ram)
