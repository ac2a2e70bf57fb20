"""A session, of a migration or a replication: its name, how both ends agree on it, and why one leaves it.

Law 5: **The peer is not trusted.** A session's name goes into messages, files and documents, so one that is not of the
form that `new_session` makes is refused.
"""

from __future__ import annotations

import re
import uuid

from precopy.errors import HelloMismatch, PeerProtocolError, PrecopyError
from precopy.migration.channel import Channel
from precopy.wire.events import Hello, Welcome

_NAME = re.compile("[0-9a-f]{32}")


def new_session() -> str:
    """A name that no other session has: 128 random bits in hexadecimal."""
    return uuid.uuid4().hex


def check_session(hello: Hello) -> None:
    """Raises `HelloMismatch` where the peer names its session as no session is named."""
    if _NAME.fullmatch(hello.session) is None:
        raise HelloMismatch("the source's session is not named as sessions are")


def open_session(channel: Channel, hello: Hello, peer: str) -> None:
    """Sends ``hello`` and waits until ``peer`` welcomes it. Raises `PeerError`."""
    channel.send(hello)
    if channel.expect(Welcome).session != hello.session:
        raise PeerProtocolError(f"the {peer} welcomes another session")


def reason_of(error: BaseException, side: str | None = None) -> str:
    """Why a session ends, in one sentence. ``side`` names who says it to its peer; None where it is said at home."""
    if isinstance(error, PrecopyError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by the user" if side is None else f"the {side} was interrupted by its user"
    return f"internal error{'' if side is None else f' at the {side}'}: {type(error).__name__}"
