"""precopy's own stream format, without I/O: frames, their bytes, and which side may send what when."""

from precopy.wire.events import (
    Abort,
    Alive,
    Commit,
    Compare,
    DeviceState,
    Hello,
    Pages,
    Point,
    PointAck,
    Prepare,
    Ready,
    Role,
    RoundAck,
    RoundEnd,
    Running,
    Welcome,
)
from precopy.wire.native.codec import Codec
from precopy.wire.native.frames import Frame, PageBatch
from precopy.wire.native.states import State

__all__ = [
    "Abort",
    "Alive",
    "Codec",
    "Commit",
    "Compare",
    "DeviceState",
    "Frame",
    "Hello",
    "PageBatch",
    "Pages",
    "Point",
    "PointAck",
    "Prepare",
    "Ready",
    "Role",
    "RoundAck",
    "RoundEnd",
    "Running",
    "State",
    "Welcome",
]
