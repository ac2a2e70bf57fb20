"""A two-way stream of bytes between source and destination."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from precopy.units import SLOWEST_BYTES_PER_S

__all__ = ["SLOWEST_BYTES_PER_S", "Buffer", "ByteStream", "IoVec"]

IoVec = npt.NDArray[np.uint64]
"""Shape (buffers, 2): address and length in bytes of each."""

Buffer = bytes | bytearray | memoryview


class ByteStream(Protocol):
    """Blocking, ordered, reliable or broken.

    Every call raises `PeerLost` where the peer is gone, where nothing passes for `timeout` seconds, and where the
    whole call takes longer than that and what its bytes take at `SLOWEST_BYTES_PER_S`: a peer cannot hold it up with
    a byte now and then.
    """

    @property
    def timeout(self) -> float:
        """Seconds that the peer may be silent, or take nothing."""
        ...

    @property
    def peer(self) -> str:
        """The other end's name, for messages."""
        ...

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Sends all bytes of all ``buffers``, in order, without joining them. At most IOV_MAX (1024) buffers. They may
        be changed once it returns: what was in them is sent."""
        ...

    def send_pages(self, head: Buffer, views: Sequence[memoryview], addresses: IoVec) -> None:
        """Sends ``head``, then the memory that ``views`` show and ``addresses`` (address and length in bytes of each)
        name. That memory may be read until the peer has answered, not only during this call; what is written to it
        meanwhile may or may not be sent."""
        ...

    def receive_into(self, buffers: Sequence[Buffer], within: float = math.inf) -> None:
        """Fills all ``buffers`` in order, in at most ``within`` seconds. At most IOV_MAX buffers."""
        ...

    def limit(self, seconds: float | None) -> None:
        """All calls from now on together may take ``seconds``; None ends the limit."""
        ...

    def abort(self) -> None:
        """Makes any call that another thread is in, and every later one, raise `PeerLost`."""
        ...

    def close(self) -> None:
        """Lets the peer read what was sent, then closes. May be called twice."""
        ...
