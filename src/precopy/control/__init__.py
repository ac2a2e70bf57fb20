"""A guest's process: the guest with its control socket, the client's end of that socket, and pairs of processes."""

from precopy.control.client import migrate_guest
from precopy.control.pair import ProcessFailed, ProcessPair
from precopy.control.process import GuestProcess
from precopy.control.server import ControlServer
from precopy.control.socket import RemoteFailure, Request, ask, default_address

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
