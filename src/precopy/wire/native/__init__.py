"""precopy's own stream format, without I/O: frames, their bytes, and which side may send what when."""

from precopy.wire.native.codec import Codec
from precopy.wire.native.frames import Frame, PageBatch
from precopy.wire.native.states import State

__all__ = ["Codec", "Frame", "PageBatch", "State"]
