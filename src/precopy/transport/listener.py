"""Listening for streams: at a TCP port, or at a Unix socket that only its user can connect to."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
import weakref
from collections.abc import Callable

from precopy.errors import ADVICE, PeerError, UsageError, raise_without_descriptor
from precopy.transport.address import UNIX_PATH_BYTES, Address
from precopy.transport.sockets import SocketStream

_MODE = 0o600
_BACKLOG = 128
"""Connections that may wait to be accepted; further ones are told to try again."""


class Listener:
    """Listens at ``address``; a Unix socket's file is removed when it is closed.

    Only this user may connect to a Unix socket: it has mode 0600 before it listens, under any umask. A stale socket
    file, which no process listens at, is replaced. Raises `UsageError` where the address is in use or unusable,
    `KernelCallError` where this process has no descriptor left.
    """

    def __init__(self, address: Address) -> None:
        self._remove: Callable[[], object] = lambda: None
        try:
            if address.path is not None:
                _remove_stale(address.path)
                self._socket = _bound(address.path)
                # Also where an interrupt keeps `close` from being called: at the latest when the interpreter ends.
                self._remove = weakref.finalize(self, _remove_own, address.path, os.lstat(address.path).st_ino)
                self.address = address
            else:
                family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
                self._socket = socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG)
                self.address = Address(host=address.host, port=self._socket.getsockname()[1])
        except (OSError, UnicodeError) as error:
            raise_without_descriptor("socket", str(address), error)
            said = getattr(error, "strerror", None) or str(error)
            raise UsageError(f"cannot listen at {address}: {said}{listening_advice(address, error)}") from error

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self, timeout: float) -> SocketStream:
        """The next connection, waited for without limit; ``timeout`` is the stream's. Raises `PeerError`, and
        `KernelCallError` where this process has no descriptor left: the connection waits then."""
        try:
            sock, peer = self._socket.accept()
        except OSError as error:
            raise_without_descriptor("accept", str(self.address), error)
            raise PeerError(f"no connection at {self.address}: {error.strerror or error}") from error
        name = f"the peer at {self.address}" if self.address.path is not None else f"tcp:{peer[0]}:{peer[1]}"
        return SocketStream(sock, name, timeout)

    def wake(self) -> None:
        """Makes `accept`, in another thread, raise `PeerError`."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        self._remove()


_TCP_ADVICE = {
    errno.EADDRINUSE: "; another program listens there: use another port, or 0 for one that is free",
    errno.EADDRNOTAVAIL: "; this machine does not have that address: use one that it has, or 0.0.0.0 for all of them",
    errno.EACCES: "; it takes a privilege: use a port from 1024 on, or 0 for one that is free",
    errno.EPERM: "; it is forbidden here: use another port, or 0 for one that is free",
}


def listening_advice(address: Address, error: Exception) -> str:
    """What to do where listening at ``address`` failed; empty where the system's message is enough."""
    number, path = getattr(error, "errno", None), address.path
    taken = number == errno.EADDRINUSE
    if path is None:
        if isinstance(error, socket.gaierror | UnicodeError):
            return "; use an address of this machine, or a name that stands for one"
        return _TCP_ADVICE.get(number or 0, "")
    folder = os.path.dirname(path) or "."
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # the file was removed meanwhile, or may not be looked at
        mode = stat.S_IFSOCK
    if taken and not stat.S_ISSOCK(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a file that is no socket"
        return f"; {kind} has this name, and is left as it is: use another path"
    if taken:
        return "; another program listens there: use another path, or end that program"
    if not os.path.isdir(folder):
        what = "no directory" if os.path.lexists(folder) else "not there"
        return f"; {folder} is {what}: use a path in a directory that is there"
    return f"; {ADVICE[number]}" if number in ADVICE else ""


def _bound(path: str) -> socket.socket:
    """A Unix socket that listens at ``path``, for this user alone.

    The umask is the whole process's, so it stays as it is. Linux gives the file the socket's own mode, less the umask;
    what a umask took from this user is put back. The file gets its name when the socket listens: a client that waits
    for the file, and then connects, would be refused between bind and `listen`.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), _MODE)
        aside = _beside(path)
        if aside is None or os.path.lexists(path):  # bind says what is there
            _listen(sock, path)
            return sock
        try:
            _listen(sock, aside)
            _name(aside, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(aside)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen(sock: socket.socket, path: str) -> None:
    sock.bind(path)
    if stat.S_IMODE(os.lstat(path).st_mode) != _MODE:
        os.chmod(path, _MODE)
    sock.listen(_BACKLOG)


def _name(aside: str, path: str) -> None:
    """Gives the file ``aside`` the name ``path``, too. Raises `OSError`, as bind does where ``path`` is there."""
    try:
        os.link(aside, path, follow_symlinks=False)
    except FileExistsError as error:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from error
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise
        os.rename(aside, path)


def _beside(path: str) -> str | None:
    """A name in the same directory that no other process knows; None where it would be longer than a socket's may
    be: a short name in a deep directory."""
    aside = os.path.join(os.path.dirname(path), f".{secrets.token_hex(4)}")
    return aside if len(os.fsencode(aside)) <= UNIX_PATH_BYTES else None


def _remove_own(path: str, inode: int) -> None:
    """Removes a socket file, unless by now it is another's."""
    with contextlib.suppress(OSError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)


def _remove_stale(path: str) -> None:
    """Removes a socket file that no process listens at; leaves all else, so that bind says what is there.

    Two processes may find the same file stale, and one may listen there by the time that the other removes it. So it
    gets a name that no other process knows before it is looked at once more.
    """
    with contextlib.suppress(OSError):
        if not _is_stale(path):
            return
        aside = _beside(path)
        if aside is None:
            os.unlink(path)
            return
        os.rename(path, aside)
        try:
            if not _is_stale(aside):
                os.link(aside, path)  # which fails where a third process has come to listen there since
        finally:
            os.unlink(aside)


def _is_stale(path: str) -> bool:
    """Whether it is a socket that no process has. Raises `OSError`.

    The probe is a datagram socket: a stream socket in use refuses it for its type, and so its owner never notices.
    """
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False  # connecting to a plain file is refused, too
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:
                raise
    return False
