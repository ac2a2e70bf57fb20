"""Streams between machines and processes: Unix and TCP sockets."""

from precopy.transport.address import Address, parse_address
from precopy.transport.sockets import Listener, SocketStream, connect

__all__ = ["Address", "Listener", "SocketStream", "connect", "parse_address"]
