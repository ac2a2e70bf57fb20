"""Moving a running guest: both sides of a migration, its rounds, its switchover, and what is told of it."""

from precopy.migration.destination import Destination, Received
from precopy.migration.options import MigrationOptions
from precopy.migration.results import Downtime, Migrated, Progress, Round
from precopy.migration.source import GuestIs, Source

__all__ = [
    "Destination",
    "Downtime",
    "GuestIs",
    "Migrated",
    "MigrationOptions",
    "Progress",
    "Received",
    "Round",
    "Source",
]
