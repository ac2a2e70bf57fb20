"""What a guest's process answers over its control socket."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.migration import Arriving, Progress, Received


@dataclass(frozen=True)
class Migrating:
    """A migration under way: ``to`` where, and how far it is. ``progress`` is None before there is any."""

    to: str
    elapsed_s: float
    remaining_pages: int | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Status:
    """What `precopy status` tells. ``session`` is the migration that brought the guest here or took it away, or the one
    under way, of which ``migration`` (at the source) or ``arriving`` (at the destination) say more."""

    state: str
    guest: str
    machine: str
    why: str
    ram_bytes: int
    blocks: int
    pid: int
    uptime_s: float
    session: str | None = None
    last_error: str | None = None
    received: Received | None = None
    migration: Migrating | None = None
    arriving: Arriving | None = None
    turned_away: int = 0
    """Connections of others than a source, while it waited for one."""
    workload: str = ""
    """What the guest was started with; empty where it came from elsewhere and brought its own."""


@dataclass(frozen=True)
class Checked:
    """A check of the guest's invariant: ``pause_s`` is how long it took to stop the vCPUs for it."""

    ok: bool
    steps: int
    pages: int
    broken: tuple[str, ...]
    pause_s: float
