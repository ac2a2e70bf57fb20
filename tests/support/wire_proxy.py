"""A proxy on real sockets between a source and a destination, which knows where frames begin and end.

It has its own idea of the bytes on the wire (docs/protocol.md), so that what it does to a frame does not depend on the
code under test. One `Fault` says which frame to harm, and how; all else passes unchanged.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .patience import IN_TIME_S

PREAMBLE_BYTES = 16
_HEADER = struct.Struct("<BxxxIQQ")
HEADER_BYTES = _HEADER.size
_BATCH = struct.Struct("<QII")
TABLE_AT = HEADER_BYTES + _BATCH.size
"""Where in a frame of pages the table of runs begins: behind its checksum and two numbers of runs."""
_PAGE = 4096
_CHUNK = 1 << 18
PREAMBLE = "preamble"
NAMES = {
    1: "Hello",
    2: "Welcome",
    3: "Pages",
    4: "RoundEnd",
    5: "RoundAck",
    6: "DeviceState",
    7: "Compare",
    8: "Prepare",
    9: "Ready",
    10: "Commit",
    11: "Running",
    12: "Abort",
    13: "Alive",
    14: "Point",
    15: "PointAck",
}


class Harm(enum.Enum):
    """What happens to a frame. After `CUT` and `TRUNCATE` both connections are closed; after `SILENCE` both stay
    open and nothing passes in either direction any more. `DRIP` hands the frame on a byte at a time, one each
    `DRIP_S`; after `SLOW` everything from that side passes at `SLOW_BYTES_PER_S`."""

    CUT = "cut before it"
    TRUNCATE = "cut in its middle"
    SILENCE = "silence from it on"
    FLIP = "one byte of it flipped"
    DRIP = "a byte of it now and then"
    SLOW = "slow from it on"


LOST = tuple(harm for harm in Harm if harm is not Harm.SLOW)
"""Harm after which the frame does not arrive whole in time."""
DRIP_S = 0.2
SLOW_BYTES_PER_S = 500_000


@dataclass(frozen=True)
class Frame:
    """A frame that the proxy sees: who sent it, its name, its bytes up to the content, and bytes of content."""

    sender: str
    name: str
    head: bytes
    content: int = 0

    @property
    def has_content(self) -> bool:
        return self.content > 0


@dataclass(frozen=True)
class Fault:
    """Harm to the ``nth`` (from 1) frame called ``frame`` that ``sender`` sends and that ``only`` says yes to, after
    ``rounds`` rounds have ended.

    For `Harm.FLIP`, ``at`` is the byte to flip: counted from the frame's first byte, from its end where negative,
    content included.
    """

    sender: str
    frame: str
    harm: Harm
    nth: int = 1
    at: int = -1
    only: Callable[[Frame], bool] = field(default=lambda _: True)
    rounds: int = 0


class Proxy:
    """Carries bytes between the sockets of a source and of a destination; use it in a ``with`` block.

    ``forwarded`` are the frames that went through, as (time, sender, name); ``struck`` is set when the fault has
    happened, at ``struck_at``. ``delay`` holds back every frame for so many seconds.
    """

    def __init__(
        self, source: socket.socket, destination: socket.socket, fault: Fault | None = None, *, delay: float = 0.0
    ) -> None:
        self._sockets = {"source": source, "destination": destination}
        self._fault, self._delay = fault, delay
        self._matches = 0
        self._drips = {"source": False, "destination": False}
        self._slow = {"source": False, "destination": False}
        self.slow_bytes = 0
        self._silent = threading.Event()
        self._closed = threading.Event()
        self.struck = threading.Event()
        self.struck_at = 0.0
        self.forwarded: list[tuple[float, str, str]] = []
        self._threads = [
            threading.Thread(target=self._carry, args=way, name=f"proxy from the {way[0]}", daemon=True)
            for way in (("source", "destination"), ("destination", "source"))
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def names(self, sender: str) -> list[str]:
        """Names of the frames of ``sender`` that went through."""
        return [name for _, who, name in self.forwarded if who == sender]

    def counts(self) -> Counter[str]:
        """How many frames of each name went through."""
        return Counter(name for _, _, name in self.forwarded)

    def time_of(self, name: str) -> float:
        """When the proxy began to hand on the last frame called ``name``."""
        return max(when for when, _, what in self.forwarded if what == name)

    def cut(self) -> None:
        """Ends both connections now."""
        for sock in self._sockets.values():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends both connections and the proxy's threads."""
        self._closed.set()
        self._silent.set()
        self.cut()
        for thread in self._threads:
            thread.join(IN_TIME_S)
            assert not thread.is_alive()
        for sock in self._sockets.values():
            sock.close()

    def _carry(self, sender: str, to: str) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._pass(self._read_preamble(sender), sender, to)
            while True:
                self._pass(self._read_frame(sender), sender, to)
        # What ends on one side ends on the other, as on a wire.
        with contextlib.suppress(OSError):
            self._sockets[to].shutdown(socket.SHUT_WR)

    def _read_preamble(self, sender: str) -> Frame:
        return Frame(sender, PREAMBLE, self._exactly(sender, PREAMBLE_BYTES))

    def _read_frame(self, sender: str) -> Frame:
        header = self._exactly(sender, HEADER_BYTES)
        number, length, _, _ = _HEADER.unpack(header)
        payload = self._exactly(sender, length)
        content = 0
        if NAMES[number] in ("Pages", "Compare"):
            _, runs, _ = _BATCH.unpack_from(payload)
            content = _PAGE * sum(struct.unpack_from(f"<{2 * runs}Q", payload, _BATCH.size)[1::2])
        return Frame(sender, NAMES[number], header + payload, content)

    def _pass(self, frame: Frame, sender: str, to: str) -> None:
        self._closed.wait(self._delay)
        harm = self._harm(frame)
        if harm is Harm.CUT:
            self.cut()
            raise EOFError
        if harm is Harm.SILENCE:
            self._silent.set()
        if self._silent.is_set():
            self._closed.wait()
            raise EOFError
        size = len(frame.head) + frame.content
        flip = None
        if harm is Harm.FLIP:
            assert self._fault is not None
            flip = self._fault.at % size
        end = size // 2 if harm is Harm.TRUNCATE else size
        self._drips[sender] = harm is Harm.DRIP
        self._slow[sender] = self._slow[sender] or harm is Harm.SLOW
        began = time.perf_counter()
        self._forward(frame, sender, to, end, flip)
        if harm is Harm.TRUNCATE:
            self.cut()
            raise EOFError
        self.forwarded.append((began, sender, frame.name))

    def _forward(self, frame: Frame, sender: str, to: str, end: int, flip: int | None) -> None:
        """Hands on the first ``end`` bytes of a frame, with the one at ``flip`` changed."""
        target, at = self._sockets[to], 0
        part = bytearray(frame.head)
        while at < end:
            if flip is not None and at <= flip < at + len(part):
                part[flip - at] ^= 0x10
            self._hand_on(memoryview(part)[: end - at], sender, target)
            at += len(part)
            if at < end:
                chunk = _CHUNK // 16 if self._slow[sender] else _CHUNK
                part = bytearray(self._exactly(sender, min(chunk, len(frame.head) + frame.content - at)))

    def _hand_on(self, part: memoryview, sender: str, target: socket.socket) -> None:
        if self._drips[sender]:
            for byte in part:
                target.sendall(bytes([byte]))
                if self._closed.wait(DRIP_S):
                    raise EOFError
            return
        if self._slow[sender]:
            self._closed.wait(len(part) / SLOW_BYTES_PER_S)
            self.slow_bytes += len(part)
        target.sendall(part)

    def _harm(self, frame: Frame) -> Harm | None:
        fault = self._fault
        if fault is None or (fault.sender, fault.frame) != (frame.sender, frame.name) or not fault.only(frame):
            return None
        if self.counts()["RoundEnd"] < fault.rounds:
            return None
        self._matches += 1
        if self._matches != fault.nth:
            return None
        self.struck_at = time.perf_counter()
        self.struck.set()
        return fault.harm

    def _exactly(self, sender: str, size: int) -> bytes:
        data = bytearray(size)
        view, sock = memoryview(data), self._sockets[sender]
        while view:
            done = sock.recv_into(view)
            if not done:
                raise EOFError
            view = view[done:]
        return bytes(data)


class ListeningProxy:
    """Waits at the Unix socket ``path`` for one source, and carries it to the destination at ``upstream``."""

    def __init__(self, path: str, upstream: str, fault: Fault | None = None, *, delay: float = 0.0) -> None:
        self.path, self._upstream, self._fault, self._delay = path, upstream, fault, delay
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._accept, name="proxy accept", daemon=True)
        self._ready = threading.Event()
        self._proxy: Proxy | None = None

    def __enter__(self) -> ListeningProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(IN_TIME_S)
        self._listener.close()
        os.unlink(self.path)
        if self._proxy is not None:
            self._proxy.close()

    @property
    def proxy(self) -> Proxy:
        """The proxy, once the source has come."""
        assert self._ready.wait(IN_TIME_S)
        assert self._proxy is not None
        return self._proxy

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            source, _ = self._listener.accept()
            destination = socket.socket(socket.AF_UNIX)
            destination.connect(self._upstream)
            self._proxy = Proxy(source, destination, self._fault, delay=self._delay)
            self._ready.set()
