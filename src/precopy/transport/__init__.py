"""Streams between machines and processes: Unix and TCP sockets."""

from precopy.transport.accept import NAMED_STRANGERS, Accepted, Strangers, accept_peer
from precopy.transport.address import Address, parse_address
from precopy.transport.listener import Listener, listening_advice
from precopy.transport.sockets import SocketStream, connect

__all__ = [
    "NAMED_STRANGERS",
    "Accepted",
    "Address",
    "Listener",
    "SocketStream",
    "Strangers",
    "accept_peer",
    "connect",
    "listening_advice",
    "parse_address",
]
