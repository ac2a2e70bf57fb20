"""precopy: live memory migration.

Tracks which pages of a running memory are written, syncs that knowledge out of the kernel with as few system calls as
possible, and moves the memory to another process or host while it is still being written.

For Python programs with state of their own: `Memory`, `replicate`, `receive_memory`, `Standby`, `open_memory`,
`snapshot`, `snapshots`, `restore`, `verify`, `compact`; and the errors that they raise, all of them a `PrecopyError`.
They are loaded when they are first used.
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
        MappingChanged,
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
        UnreportedWrites,
        Unsupported,
        UsageError,
        VerificationFailed,
    )
    from precopy.process import Changed, Changes, Memory
    from precopy.process.attach import Attachment, attach
    from precopy.process.replication import Replication, replicate
    from precopy.process.standby import Standby, receive_memory
    from precopy.store import Snapshot, Stored, Verified, compact, open_memory, restore, snapshot, snapshots, verify

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
    "MappingChanged",
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
    "UnreportedWrites",
    "Unsupported",
    "UsageError",
    "VerificationFailed",
)

_WHERE = {
    **dict.fromkeys(_ERRORS, "precopy.errors"),
    "Attachment": "precopy.process.attach",
    "Changed": "precopy.process",
    "Changes": "precopy.process",
    "Memory": "precopy.process",
    "Replication": "precopy.process.replication",
    "Snapshot": "precopy.store",
    "Standby": "precopy.process.standby",
    "Stored": "precopy.store",
    "Verified": "precopy.store",
    "attach": "precopy.process.attach",
    "compact": "precopy.store",
    "open_memory": "precopy.store",
    "receive_memory": "precopy.process.standby",
    "replicate": "precopy.process.replication",
    "restore": "precopy.store",
    "snapshot": "precopy.store",
    "snapshots": "precopy.store",
    "verify": "precopy.store",
}

__all__ = [
    "Attachment",
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
    "MappingChanged",
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
    "Stored",
    "UnreportedWrites",
    "Unsupported",
    "UsageError",
    "VerificationFailed",
    "Verified",
    "attach",
    "compact",
    "open_memory",
    "receive_memory",
    "replicate",
    "restore",
    "snapshot",
    "snapshots",
    "verify",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


def __getattr__(name: str) -> Any:
    """A name of the public API, whose module is imported now."""
    if name not in _WHERE:
        raise AttributeError(f"module 'precopy' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
