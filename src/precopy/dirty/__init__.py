"""Dirty memory: what trackers found, what a migration still has to send, and when pages are re-armed."""

from precopy.dirty.clear import CLEAR_POLICIES, ClearPolicy, clear_policy
from precopy.dirty.log import DirtyLog, LogCounters
from precopy.dirty.migration_bitmap import MigrationBitmap, SyncStats

__all__ = [
    "CLEAR_POLICIES",
    "ClearPolicy",
    "DirtyLog",
    "LogCounters",
    "MigrationBitmap",
    "SyncStats",
    "clear_policy",
]
