"""Dirty memory: what trackers found, for which clients, what a migration still has to send, and when pages are
re-armed."""

from precopy.dirty.clear import ClearPolicy
from precopy.dirty.clear_policies import clear_policy
from precopy.dirty.dirty_memory import DirtyMemory, DirtySnapshot
from precopy.dirty.log import DirtyLog, LogClear, LogCounters
from precopy.dirty.migration_bitmap import MigrationBitmap, SyncStats

__all__ = [
    "ClearPolicy",
    "DirtyLog",
    "DirtyMemory",
    "DirtySnapshot",
    "LogClear",
    "LogCounters",
    "MigrationBitmap",
    "SyncStats",
    "clear_policy",
]
