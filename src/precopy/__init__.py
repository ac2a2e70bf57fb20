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

from precopy import moved

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
    from precopy.machines.process import Changed, Changes, Memory
    from precopy.machines.process.attachment import Attachment, attach
    from precopy.replication.replication import Replication, replicate
    from precopy.replication.standby import Standby, receive_memory
    from precopy.snapshot_store import (
        Snapshot,
        Stored,
        Verified,
        compact,
        open_memory,
        restore,
        snapshot,
        snapshots,
        verify,
    )

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
    "Attachment": "precopy.machines.process.attachment",
    "Changed": "precopy.machines.process",
    "Changes": "precopy.machines.process",
    "Memory": "precopy.machines.process",
    "Replication": "precopy.replication.replication",
    "Snapshot": "precopy.snapshot_store",
    "Standby": "precopy.replication.standby",
    "Stored": "precopy.snapshot_store",
    "Verified": "precopy.snapshot_store",
    "attach": "precopy.machines.process.attachment",
    "compact": "precopy.snapshot_store",
    "open_memory": "precopy.snapshot_store",
    "receive_memory": "precopy.replication.standby",
    "replicate": "precopy.replication.replication",
    "restore": "precopy.snapshot_store",
    "snapshot": "precopy.snapshot_store",
    "snapshots": "precopy.snapshot_store",
    "verify": "precopy.snapshot_store",
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


moved.install()


def __getattr__(name: str) -> Any:
    """A name of the public API, whose module is imported now."""
    if name not in _WHERE:
        raise AttributeError(f"module 'precopy' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
