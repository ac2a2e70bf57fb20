"""precopy: live memory migration.

Tracks which pages of a running memory are written, syncs that knowledge out of the kernel with as few system calls as
possible, and moves the memory to another process or host while it is still being written.

For Python programs with state of their own: `Memory`, `replicate`, `receive_memory`, `Standby`, `snapshot`, `restore`,
`compact`; and the errors that they raise, all of them a `PrecopyError`. They are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precopy.errors import (
        BitmapRangeError,
        Cancelled,
        GuestError,
        HelloMismatch,
        KernelCallError,
        LayoutError,
        LayoutTextError,
        LocalProtocolError,
        NotConverged,
        OutcomeUnknown,
        OutOfMemory,
        PeerError,
        PeerLost,
        PeerProtocolError,
        PeerRefused,
        PrecopyError,
        SnapshotDamaged,
        SnapshotError,
        Unsupported,
        UsageError,
        VerificationFailed,
    )
    from precopy.process import Changed, Changes, Memory
    from precopy.process.replication import Replication, replicate
    from precopy.process.standby import Standby, receive_memory
    from precopy.store import Snapshot, compact, restore, snapshot

__version__ = "0.1.0.dev0"

_ERRORS = (
    "BitmapRangeError",
    "Cancelled",
    "GuestError",
    "HelloMismatch",
    "KernelCallError",
    "LayoutError",
    "LayoutTextError",
    "LocalProtocolError",
    "NotConverged",
    "OutOfMemory",
    "OutcomeUnknown",
    "PeerError",
    "PeerLost",
    "PeerProtocolError",
    "PeerRefused",
    "PrecopyError",
    "SnapshotDamaged",
    "SnapshotError",
    "Unsupported",
    "UsageError",
    "VerificationFailed",
)

_WHERE = {
    **dict.fromkeys(_ERRORS, "precopy.errors"),
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
    "BitmapRangeError",
    "Cancelled",
    "Changed",
    "Changes",
    "GuestError",
    "HelloMismatch",
    "KernelCallError",
    "LayoutError",
    "LayoutTextError",
    "LocalProtocolError",
    "Memory",
    "NotConverged",
    "OutOfMemory",
    "OutcomeUnknown",
    "PeerError",
    "PeerLost",
    "PeerProtocolError",
    "PeerRefused",
    "PrecopyError",
    "Replication",
    "Snapshot",
    "SnapshotDamaged",
    "SnapshotError",
    "Standby",
    "Unsupported",
    "UsageError",
    "VerificationFailed",
    "compact",
    "receive_memory",
    "replicate",
    "restore",
    "snapshot",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


def __getattr__(name: str) -> Any:
    """A name of the public API, whose module is imported now."""
    if name not in _WHERE:
        raise AttributeError(f"module 'precopy' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
