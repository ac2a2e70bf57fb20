"""A guest's process: the guest with its control socket, the client's end of that socket, and pairs of processes.

Names are loaded when they are first used: a client needs `precopy.service.socket` alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precopy.service.client import migrate_guest
    from precopy.service.daemon import GuestProcess
    from precopy.service.pair import ProcessFailed, ProcessPair
    from precopy.service.request import Request
    from precopy.service.server import ControlServer
    from precopy.service.socket import Command, RemoteFailure, ask, default_address

_WHERE = {
    "Command": "socket",
    "ControlServer": "server",
    "GuestProcess": "daemon",
    "ProcessFailed": "pair",
    "ProcessPair": "pair",
    "RemoteFailure": "socket",
    "Request": "request",
    "ask": "socket",
    "default_address": "socket",
    "migrate_guest": "client",
}

__all__ = [
    "Command",
    "ControlServer",
    "GuestProcess",
    "ProcessFailed",
    "ProcessPair",
    "RemoteFailure",
    "Request",
    "ask",
    "default_address",
    "migrate_guest",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
