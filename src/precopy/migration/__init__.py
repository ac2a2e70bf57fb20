"""Moving a running guest: both sides of a migration, its rounds, its switchover, and what is told of it."""

from precopy.migration.destination import Destination
from precopy.migration.hello_reader import HelloReader
from precopy.migration.options import MigrationOptions
from precopy.migration.recorder import Recorder
from precopy.migration.results import (
    EVENTS,
    Attempt,
    Committing,
    Event,
    Migrated,
    Note,
    Range,
    Verdict,
    event_name,
)
from precopy.migration.session import GuestIs
from precopy.migration.source import Source
from precopy.planning.model.downtime import Downtime
from precopy.planning.model.round import Round
from precopy.progress import Arriving, Progress, Received

__all__ = [
    "EVENTS",
    "Arriving",
    "Attempt",
    "Committing",
    "Destination",
    "Downtime",
    "Event",
    "GuestIs",
    "HelloReader",
    "Migrated",
    "MigrationOptions",
    "Note",
    "Progress",
    "Range",
    "Received",
    "Recorder",
    "Round",
    "Source",
    "Verdict",
    "event_name",
]
