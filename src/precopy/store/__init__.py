"""Snapshots of a `Memory` in a directory: a full one, then what changed; restored at once, by mapping them."""

from precopy.store.exporting import export
from precopy.store.maintenance import Compacted, Stored, Verified, compact, listing, verify
from precopy.store.restoring import restore
from precopy.store.snapshots import Snapshot, snapshot

__all__ = [
    "Compacted",
    "Snapshot",
    "Stored",
    "Verified",
    "compact",
    "export",
    "listing",
    "restore",
    "snapshot",
    "verify",
]
