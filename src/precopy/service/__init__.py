"""A guest's process: the guest with its control socket, the client's end of that socket, and pairs of processes."""

from precopy.service.client import migrate_guest
from precopy.service.daemon import GuestProcess
from precopy.service.pair import ProcessFailed, ProcessPair
from precopy.service.server import ControlServer
from precopy.service.socket import RemoteFailure, Request, ask, default_address

__all__ = [
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
