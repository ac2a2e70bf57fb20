"""Snapshots of a `Memory` in a directory: a full one, then what changed; restored at once, by mapping them."""

from precopy.store.exporting import export
from precopy.store.maintenance import Compacted, Stored, Verified, compact, snapshots, verify
from precopy.store.restoring import open_memory, restore
from precopy.store.saving import Snapshot, snapshot

__all__ = [
    "Compacted",
    "Snapshot",
    "Stored",
    "Verified",
    "compact",
    "export",
    "open_memory",
    "restore",
    "snapshot",
    "snapshots",
    "verify",
]
