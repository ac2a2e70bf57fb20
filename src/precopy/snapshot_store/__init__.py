"""Snapshots of a `Memory` in a directory: a full one, then what changed; restored at once, by mapping them."""

from precopy.report.kinds.shared import Snapshot
from precopy.report.kinds.snapshot_compact import Compacted
from precopy.report.kinds.snapshot_list import Stored
from precopy.snapshot_store.exporting import export
from precopy.snapshot_store.maintenance import Verified, compact, snapshots, verify
from precopy.snapshot_store.restoring import open_memory, restore
from precopy.snapshot_store.saving import snapshot

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
