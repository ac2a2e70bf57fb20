"""Addresses as users write them: ``unix:/path`` and ``tcp:host:port``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from precopy.abi.filesystem import absolute_path, usable_path
from precopy.errors import UsageError

_MAX_PORT = 65535
_TCP = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\s\[\]:\0]+)):(?P<port>[0-9]{1,5})", re.ASCII)
UNIX_PATH_BYTES = 107  # sun_path less its terminating zero
_MOST_DIGITS = 20
_SHOWN = 200
"""Characters of an address that cannot be meant, in the sentence about it."""


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

    def absolute(self) -> Address:
        """The same for a process with another working directory. Raises `UsageError`."""
        return self if self.path is None else Address(path=absolute_path(self.path))


def parse_address(text: str) -> Address:
    """The address that ``text`` names. Raises `UsageError`."""
    if not isinstance(text, str):  # a program may give anything
        raise UsageError(f"an address is a str such as tcp:host:port or unix:/path, not {text!r}")
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest:
        size = len(os.fsencode(usable_path(rest)))
        if size > UNIX_PATH_BYTES:
            raise UsageError(
                f"the socket path {rest[:_SHOWN]!r} has {size} bytes, longer than {UNIX_PATH_BYTES} bytes, which is "
                f"what a socket's path may have; use a shorter one"
            )
        return Address(path=rest)
    match = _TCP.fullmatch(rest) if scheme == "tcp" else None
    if match is None or int(match["port"]) > _MAX_PORT:
        raise UsageError(f"{text[:_SHOWN]!r} is not an address{_why_not(scheme, rest)}")
    return Address(host=match["v6"] or match["host"], port=int(match["port"]))


def _why_not(scheme: str, rest: str) -> str:
    """What is wrong with it, and what to write instead, as the end of a sentence."""
    host, colon, port = rest.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) < _MOST_DIGITS else None
    if scheme != "tcp" or not rest:
        return "; write unix:/path or tcp:host:port"
    if ":" in host and not host.startswith("["):
        return "; write an IPv6 address in brackets, such as tcp:[::1]:7000"
    if not colon or rest.endswith("]"):
        why = "it has no port"
    elif not host:
        why = "it has no host, such as 0.0.0.0 to listen at every IPv4 address"
    elif number is None:
        why = f"{port[:_SHOWN]!r} is not a port"
    elif number > _MAX_PORT:
        why = f"{number} is not a port, the largest port is {_MAX_PORT}"
    else:
        why = f"{host[:_SHOWN]!r} is not a host"
    return f": {why}; write tcp:host:port"
