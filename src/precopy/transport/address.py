"""Addresses as users write them: ``unix:/path`` and ``tcp:host:port``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from precopy.errors import UsageError

_MAX_PORT = 65535
_TCP = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\s\[\]:]+)):(?P<port>[0-9]{1,5})", re.ASCII)
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
        if len(os.fsencode(rest)) > _UNIX_PATH_BYTES:
            raise UsageError(f"the socket path {rest!r} is longer than {_UNIX_PATH_BYTES} bytes; use a shorter one")
        return Address(path=rest)
    match = _TCP.fullmatch(rest) if scheme == "tcp" else None
    if match is None or int(match["port"]) > _MAX_PORT:
        raise UsageError(f"{text!r} is not an address; write unix:/path or tcp:host:port")
    return Address(host=match["v6"] or match["host"], port=int(match["port"]))
