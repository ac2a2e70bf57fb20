"""precopy: live memory migration.

Tracks which pages of a running memory are written, syncs that knowledge out of the kernel with as few system calls as
possible, and moves the memory to another process or host while it is still being written.

For Python programs with state of their own: `Memory`, `replicate`, `receive_memory`, `Standby`, `snapshot`, `restore`,
`compact`. They are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precopy.process import Changed, Changes, Memory
    from precopy.process.replication import Replication, replicate
    from precopy.process.standby import Standby, receive_memory
    from precopy.store import Snapshot, compact, restore, snapshot

__version__ = "0.1.0.dev0"

_WHERE = {
    "Changed": "precopy.process",
    "Changes": "precopy.process",
    "Memory": "precopy.process",
    "Replication": "precopy.process.replication",
    "Snapshot": "precopy.store",
    "Standby": "precopy.process.standby",
    "compact": "precopy.store",
    "receive_memory": "precopy.process.standby",
    "replicate": "precopy.process.replication",
    "restore": "precopy.store",
    "snapshot": "precopy.store",
}

__all__ = [
    "Changed",
    "Changes",
    "Memory",
    "Replication",
    "Snapshot",
    "Standby",
    "compact",
    "receive_memory",
    "replicate",
    "restore",
    "snapshot",
]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    """A name of the public API, whose module is imported now."""
    if name not in _WHERE:
        raise AttributeError(f"module 'precopy' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
