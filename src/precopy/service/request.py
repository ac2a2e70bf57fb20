"""What a guest's process is asked for over its control socket."""

from __future__ import annotations

from dataclasses import dataclass, field

from precopy.defaults import TIMEOUT_S
from precopy.migration.options import MigrationOptions
from precopy.service.socket import Command


@dataclass(frozen=True)
class Request(Command):
    """A command and, for migrate, where to and how; ``timeout`` is how long the destination may be silent, ``record``
    the absolute path of a recording that is to be made."""

    address: str = ""
    timeout: float = TIMEOUT_S
    options: MigrationOptions = field(default_factory=MigrationOptions)
    record: str = ""
