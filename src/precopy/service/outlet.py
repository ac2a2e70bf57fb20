"""What is said to one client while what it asked for goes on.

Law: **No client stops a migration.** An event is written only as far as the client's socket takes it at once; what it
does not take waits in a short queue, of which the oldest are dropped. What must not be lost has room of its own: what
`Outlet.surely` is given lies in the socket when the call returns, so that the client finds it there even where this
process is killed at the next moment.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from precopy.errors import PeerError
from precopy.transport import SocketStream

QUEUE = 256
"""Events that wait for a client: half a minute of progress."""
_ROOM_BYTES = 64 << 10
"""Bytes of events that a socket holds for a client that does not read. Its buffer has the same room again for lines
that must not be lost."""


class Outlet:
    """Lines to the client behind ``stream``; any thread may call any method."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._queue: deque[bytes] = deque()
        self._rest = b""  # of a line of which a part is sent
        self.dropped = 0
        self._gone = False
        stream.keep_unsent(_ROOM_BYTES)

    def event(self, line: bytes) -> None:
        """Sends ``line`` soon, or never where the client does not read."""
        with self._lock:
            self._queue.append(line)
            if len(self._queue) > QUEUE:
                self._queue.popleft()
                self.dropped += 1
            self._flush()

    def surely(self, line: bytes) -> None:
        """Sends ``line`` now, before the events that still wait."""
        with self._lock:
            self._queue.appendleft(line)
            self._stream.keep_unsent(2 * _ROOM_BYTES)
            self._flush(most=1)

    def last(self, line: bytes, left_out: Callable[[int], bytes]) -> None:
        """Sends the last ``line``, for which the client may take its time-out. Events that it has not taken by now are
        dropped; where any were, what ``left_out`` makes of their number comes before the last line. Raises `PeerError`
        where the client does not take it."""
        with self._lock:
            self._stream.keep_unsent(4 * _ROOM_BYTES)
            self._flush()
            self.dropped += len(self._queue)
            self._queue.clear()
            if not self._gone:
                self._stream.send([self._rest, left_out(self.dropped) if self.dropped else b"", line])

    def _flush(self, most: int = QUEUE + 1) -> None:
        """As much of what waits as the socket takes now, ``most`` lines of it."""
        try:
            while not self._gone:
                if self._rest:
                    self._rest = self._rest[self._stream.send_now(self._rest) :]
                    if self._rest:
                        return
                if not self._queue or not most:
                    return
                most -= 1
                self._rest = self._queue.popleft()
        except PeerError:  # a client that left does not stop what it asked for
            self._gone = True
            self._queue.clear()
