"""One migration by stock QEMU, measured: in QEMU's own figures, and by the host's clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from precopy.bench.peers.qemu.launcher import Json
from precopy.bench.peers.qemu.pair import Completed, QemuPair
from precopy.defaults import DOWNTIME_LIMIT_S
from precopy.errors import PeerProtocolError, UsageError
from precopy.report.kinds.bench_migrate import QemuMigration

__all__ = ["QemuMigration", "QemuPair", "measure_migration"]

DEFAULT_RAM = 2 << 30
"""Bytes of guest RAM, filled with random content."""

DEFAULT_REWRITTEN = 256 << 20
"""Bytes of the set that the guest rewrites."""


def measure_migration(
    *,
    ram: int = DEFAULT_RAM,
    rewritten: int = DEFAULT_REWRITTEN,
    write_rate: int | None = None,
    downtime_limit_s: float = DOWNTIME_LIMIT_S,
    max_bandwidth: int | None = None,
    settle: float = 0.5,
    timeout: float = 120.0,
    qemu: str | None = None,
    dirty_ring: bool = False,
    channels: int = 1,
) -> QemuMigration:
    """Starts two QEMUs on this host, migrates a guest over a Unix socket once, and ends them.

    ``ram`` bytes of random content, of which the guest rewrites ``rewritten`` bytes (0: none), 8 bytes a
    page, at ``write_rate`` pages a second (None: as fast as it can); ``downtime_limit_s`` in seconds,
    ``max_bandwidth`` in bytes a second (None: not limited). The guest rewrites for ``settle`` seconds
    before. ``qemu`` is the path of the QEMU that is run (None: the installed one). ``dirty_ring``: it tracks by the
    dirty ring, not by the dirty log; ``channels`` carry pages.
    ``timeout`` limits the start and the migration, each, in seconds. Both sides' memory is
    allocated before. Needs twice ``ram`` of free memory.

    Raises `UsageError`, `Unsupported` (QEMU, KVM or the QMP client is missing), `OutOfMemory`, `GuestError`
    (the guest did not come up), `NotConverged` (not completed in time), `PeerLost`, `PeerRefused` and
    `PeerProtocolError` (QEMU ended, said no, or answered what is not understood).
    """
    if settle <= 0:
        raise UsageError(f"the guest cannot be watched for {settle} s")
    with QemuPair(
        ram=ram,
        rewritten=rewritten,
        write_rate=write_rate,
        timeout=timeout,
        qemu=qemu,
        dirty_ring=dirty_ring,
        channels=channels,
    ) as pair:
        version = pair.version()
        written = pair.measure_write_rate("source", settle)
        completed = pair.migrate(downtime_limit_s, max_bandwidth)
    return replace(
        summarize(completed, version, downtime_limit_s, written),
        tracker="dirty ring" if dirty_ring else "dirty log",
        channels=channels,
    )


def summarize(completed: Completed, version: str, downtime_limit_s: float, write_rate: float) -> QemuMigration:
    """The figures of a completed migration. Raises `PeerProtocolError` if QEMU's answer lacks one."""
    answer = completed.answer
    total_s = _figure(answer, "total-time") / 1000
    transferred = int(_figure(answer, "ram", "transferred"))
    return QemuMigration(
        version=version,
        total_s=total_s,
        downtime_s=_figure(answer, "downtime") / 1000,
        setup_s=_figure(answer, "setup-time") / 1000,
        transferred_bytes=transferred,
        throughput_bytes_per_s=transferred / max(total_s, 1e-3),
        rounds=int(_figure(answer, "ram", "dirty-sync-count")),
        downtime_limit_s=downtime_limit_s,
        wall_s=completed.wall_s,
        wall_throughput_bytes_per_s=transferred / completed.wall_s,
        stop_to_resume_s=completed.stop_to_resume_s,
        write_rate_pages_per_s=write_rate,
    )


def _figure(answer: Json, *path: str) -> float:
    value: Any = answer
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, int):
        raise PeerProtocolError(f"QEMU's answer to query-migrate has no {'/'.join(path)}")
    return value
