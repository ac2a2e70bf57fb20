"""A `precopy.ports.ByteStream` over a blocking socket.

Time-outs are the kernel's (SO_RCVTIMEO, SO_SNDTIMEO) and not Python's, because Python's would make the socket
non-blocking, and MSG_WAITALL, with which one recvmsg fills hundreds of buffers, works on blocking sockets only.

The kernel's time-outs only bring a call back; `_Patience` decides whether it goes on. A recvmsg takes no longer than
its time-out in all. A sendmsg or splice to a Unix socket waits that long for room for each of its parts, of which a
batch has up to 64, so its time-out is a 64th of what may pass.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from precopy.errors import PeerLost, raise_without_descriptor
from precopy.transport.address import Address
from precopy.units import SLOWEST_BYTES_PER_S

if TYPE_CHECKING:  # numpy, which `precopy status` does without
    from precopy.abi.splice import PagePipe
    from precopy.ports.stream import Buffer, IoVec

_BUFFER_BYTES = 4 << 20
"""Socket buffers asked for: two batches of 2 MiB."""
_LINGER_S = 2.0
"""Seconds that closing waits for the peer to read the last bytes."""
_TAKES_NOTHING, _IS_SILENT = "takes nothing", "is silent"
_SEND_PARTS = 64
"""Parts of the time-out, of which a single wait for room takes one."""
_LEAST_WAIT_S = 0.001
"""The kernel counts in ticks of up to 10 ms, so shorter waits would only come back more often."""
_NEAR = 0.9
"""Share of a time-out that is near enough to it."""
_NOT_NOW = (errno.EAGAIN, errno.EWOULDBLOCK)
_NO_SPLICE = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.EBADF)


class SocketStream:
    """``timeout`` is how many seconds the peer may be silent, or not take what is sent. ``copy_free`` allows
    `send_pages` to hand pages to the kernel instead of copying them, over a Unix socket: there it doubles throughput,
    while over TCP on one machine it was slower than copying (docs/adr/0004-copy-free-sending.md)."""

    def __init__(self, sock: socket.socket, peer: str, timeout: float, *, copy_free: bool = True) -> None:
        self._socket, self.peer, self.timeout = sock, peer, timeout
        self._limit = self._limit_s = math.inf
        sock.setblocking(True)
        self._receive_s = math.nan
        self._receive_timeout(timeout)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(max(timeout / _SEND_PARTS, _LEAST_WAIT_S)))
        self._pipe: PagePipe | None = None
        self._copy_free = copy_free and sock.family == socket.AF_UNIX
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)

    def _receive_timeout(self, seconds: float) -> None:
        """Brings a receiving call back after ``seconds``, or a little earlier: a time-out that is near enough stays, so
        that setting it costs no system call for each frame. `_Patience` has the call go on for what is left."""
        if not _NEAR * seconds <= self._receive_s <= seconds:
            self._receive_s = seconds
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))

    def _page_pipe(self) -> PagePipe | None:
        """The pipe for copy-free sending, made when it is first needed; None where pages are to be copied."""
        if self._pipe is None and self._copy_free:
            from precopy.abi.splice import PagePipe  # noqa: PLC0415 - see above

            try:
                self._pipe = PagePipe()
            except OSError:
                self._copy_free = False
        return self._pipe

    def _drop_pipe(self) -> None:
        self._copy_free = False
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def limit(self, seconds: float | None) -> None:
        self._limit_s = math.inf if seconds is None else seconds
        self._limit = time.monotonic() + self._limit_s

    def send(self, buffers: Sequence[Buffer]) -> None:
        rest = buffers
        total = sum(map(len, buffers))
        patience = _Patience(self, total, _TAKES_NOTHING)
        while total:
            try:
                done = self._socket.sendmsg(rest)
            except OSError as error:
                patience.again(error)
                continue
            total -= done
            if total:
                patience.moved()
                rest = _after(rest, done)

    def send_pages(self, head: Buffer, views: Sequence[memoryview], addresses: IoVec) -> None:
        """Without copying over a Unix socket (see `precopy.abi.splice`), otherwise with one sendmsg."""
        pipe = self._page_pipe() if views else None
        if pipe is None:
            self.send([head, *views])
            return
        self.send([head])
        try:
            patience = _Patience(self, int(addresses[:, 1].sum()), _TAKES_NOTHING)
            pipe.send(self._socket.fileno(), addresses, patience.moved, patience.again)
        except OSError as error:
            if pipe.moved or error.errno not in _NO_SPLICE:
                raise self._lost(error, _TAKES_NOTHING) from error
            self._drop_pipe()
            self.send(views)

    def receive_into(self, buffers: Sequence[Buffer], within: float = math.inf) -> None:
        rest = buffers
        total = sum(map(len, buffers))
        patience = _Patience(self, total, _IS_SILENT, within)
        while total:
            self._receive_timeout(patience.wait_s)
            try:
                done = self._socket.recvmsg_into(cast("list[bytearray]", rest), 0, socket.MSG_WAITALL)[0]
            except OSError as error:
                patience.again(error)
                continue
            if done == 0:
                raise PeerLost(f"{self.peer} closed the connection")
            total -= done
            if total:
                patience.moved()
                rest = _after(rest, done)

    def receive_some(self, most: int) -> bytes:
        """At least one byte and at most ``most``, or none where the peer has closed. Raises `PeerLost`."""
        patience = _Patience(self, most, _IS_SILENT)
        while True:
            self._receive_timeout(patience.wait_s)
            try:
                return self._socket.recv(most)
            except OSError as error:
                patience.again(error)

    def receive_now(self, most: int) -> bytes | None:
        """What is there, at most ``most`` bytes; None where nothing is yet, no bytes where the peer has closed. Raises
        `PeerLost`."""
        try:
            return self._socket.recv(most, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._lost(error, _IS_SILENT) from error

    def send_now(self, data: bytes) -> int:
        """Sends what the socket takes without waiting; returns how many bytes. Raises `PeerLost`."""
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(error, _TAKES_NOTHING) from error

    def keep_unsent(self, size: int) -> None:
        """About how many bytes the kernel keeps that the peer has not taken; it may keep less."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def wait_forever(self) -> None:
        """Lets the peer be silent for as long as it likes: for answers that take their time."""
        self.timeout = math.inf

    def abort(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._drop_pipe()
        with contextlib.suppress(OSError):
            # Unread input would turn the close into a reset, which may overtake what we sent last: the reason for
            # giving up. So say that nothing more comes, and read what still does for a little while.
            self._socket.shutdown(socket.SHUT_WR)
            until = time.monotonic() + _LINGER_S
            while (left := until - time.monotonic()) > 0:
                self._receive_timeout(left)
                if not self._socket.recv(1 << 20):
                    break
        self._socket.close()

    def drop(self) -> None:
        """Closes without waiting for the peer to read what was sent last."""
        self._drop_pipe()
        self._socket.close()

    def _lost(self, error: OSError, silence: str) -> PeerLost:
        if error.errno in _NOT_NOW:
            return PeerLost(f"{self.peer} {silence} for {self.timeout:g} s", silent=True)
        return PeerLost(f"the connection to {self.peer} broke: {error.strerror}")


class _Patience:
    """How long one call with ``size`` bytes to move may go on; `moved` and `again` raise `PeerLost` at its end."""

    def __init__(self, stream: SocketStream, size: int, silence: str, within: float = math.inf) -> None:
        self._stream, self._size, self._silence = stream, size, silence
        self._began = self._moved_at = time.monotonic()
        self._until = min(self._began + min(stream.timeout + size / SLOWEST_BYTES_PER_S, within), stream._limit)
        if self._began >= stream._limit:
            raise self._too_long(self._began)

    @property
    def wait_s(self) -> float:
        """What one wait in the kernel may take; infinite where nothing bounds it."""
        now = time.monotonic()
        return max(min(self._stream.timeout - (now - self._moved_at), self._until - now), _LEAST_WAIT_S)

    def moved(self) -> None:
        """A part of it has been moved, and the rest has not."""
        self._moved_at = time.monotonic()
        if self._moved_at >= self._until:
            raise self._too_long(self._moved_at)

    def again(self, error: OSError) -> None:
        """Nothing was moved, for this ``error``."""
        if error.errno not in _NOT_NOW:
            raise self._stream._lost(error, self._silence) from error
        now = time.monotonic()
        if now - self._moved_at >= self._stream.timeout - _LEAST_WAIT_S:
            raise self._stream._lost(error, self._silence) from error
        if now >= self._until:
            raise self._too_long(now) from error

    def _too_long(self, now: float) -> PeerLost:
        if now >= self._stream._limit:  # the limit is for the whole exchange, not for this call
            took = f"took longer than {self._stream._limit_s:.2g} s"
            return PeerLost(f"the exchange with {self._stream.peer} {took}", silent=True)
        did = "take" if self._silence == _TAKES_NOTHING else "send"
        return PeerLost(
            f"{self._stream.peer} did not {did} {self._size} bytes within {now - self._began:.2g} s", silent=True
        )


def _timeval(seconds: float) -> bytes:
    """``struct timeval``; an infinity waits for ever, as 0 does to the kernel, and nothing else does."""
    whole, micro = divmod(0 if math.isinf(seconds) else max(round(seconds * 1e6), 1), 1_000_000)
    return struct.pack("ll", whole, micro)


def _after(buffers: Sequence[Buffer], done: int) -> list[memoryview]:
    """What is left of ``buffers`` after their first ``done`` bytes."""
    left: list[memoryview] = []
    for buffer in buffers:
        size = len(buffer)
        if done < size:
            left.append(memoryview(buffer)[done:])
        done = max(done - size, 0)
    return left


def connect(address: Address, timeout: float) -> SocketStream:
    """A stream to the listener at ``address``. Raises `PeerLost` where there is none, `KernelCallError`
    where this process has no descriptor left."""
    try:
        if address.path is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                # Blocking, so that where many come at once each waits for its turn instead of being sent away.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout))
                sock.connect(address.path)
            except OSError:
                sock.close()
                raise
        else:
            sock = socket.create_connection((address.host, address.port), timeout)
    except (OSError, UnicodeError) as error:  # a host name may be refused before any name server is asked
        raise_without_descriptor("socket", str(address), error)
        raise PeerLost(f"cannot connect to {address}: {getattr(error, 'strerror', None) or error}") from error
    return SocketStream(sock, str(address), timeout)
