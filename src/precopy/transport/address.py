"""Addresses as users write them: ``unix:/path`` and ``tcp:host:port``."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.errors import UsageError

_UNIX_PATH_BYTES = 107  # sun_path less its terminating zero


@dataclass(frozen=True)
class Address:
    """A Unix socket's path, or a TCP host and port (0 lets the system choose when listening)."""

    path: str | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address that ``text`` names. Raises `UsageError`."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest:
        if len(rest.encode()) > _UNIX_PATH_BYTES:
            raise UsageError(f"the socket path {rest!r} is longer than {_UNIX_PATH_BYTES} bytes; use a shorter one")
        return Address(path=rest)
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        if host and port.isascii() and port.isdigit() and int(port) < 65536:
            return Address(host=host.removeprefix("[").removesuffix("]"), port=int(port))
    raise UsageError(f"{text!r} is not an address; write unix:/path or tcp:host:port")
