"""Streams between machines and processes: Unix and TCP sockets."""

from precopy.transport.address import Address, parse_address
from precopy.transport.listener import Listener, listening_advice
from precopy.transport.reception import NAMED_STRANGERS, Greeted, receive_greeting
from precopy.transport.sockets import SocketStream, connect

__all__ = [
    "NAMED_STRANGERS",
    "Address",
    "Greeted",
    "Listener",
    "SocketStream",
    "connect",
    "listening_advice",
    "parse_address",
    "receive_greeting",
]
