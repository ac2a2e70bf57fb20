"""A session, of a migration or a replication: its name, how both ends agree on it, and why one leaves it.

Law 4: **At most one side has it.** What a session moves, a guest or a program's memory, is this side's until `Commit`
is handed to the stream. From there on only the peer's answer tells: `Running` (it is there), or `Abort` (it is not and
will not be). Without an answer the outcome is unknown, and `OutcomeUnknown` says so (`Handover`).

Law 5: **The peer is not trusted.** A session's name goes into messages, files and documents, so one that is not of the
form that `new_session` makes is refused.
"""

from __future__ import annotations

import enum
import re
import threading
import uuid
from collections.abc import Callable

from precopy.errors import HelloMismatch, OutcomeUnknown, PeerProtocolError, PeerRefused, PrecopyError
from precopy.memory.layout import RamLayout
from precopy.migration.channel import Channel
from precopy.wire.events import Commit, Hello, Running, Welcome

_NAME = re.compile("[0-9a-f]{32}")
ALIVE_S = 0.25
"""Seconds between two signs of life where nothing else is sent, far below any peer's time-out."""


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


class GuestIs(enum.Enum):
    """Where the guest may run, or the memory be written, as far as its source knows."""

    HERE = "here"
    UNKNOWN = "unknown"
    THERE = "there"


class Handover:
    """Gives away what ``session`` moves, at most once. ``remedy``: what to do where the outcome is unknown (empty: what
    is to be done for a guest)."""

    def __init__(self, channel: Channel, session: str, remedy: str = "") -> None:
        self._channel, self._session, self._remedy = channel, session, remedy
        self._lock = threading.Lock()
        self.guest_is = GuestIs.HERE

    def commit(self, check: Callable[[], None] = lambda: None) -> Running:
        """The peer's answer. ``check`` may raise; then nothing is given away. Raises `PeerRefused` where the peer does
        not take it; after any other failure the outcome is unknown."""
        with self._lock:
            check()
            self.guest_is = GuestIs.UNKNOWN
        self._channel.stream.limit(None)  # what an answer may take bounds the rest
        try:
            self._channel.send(Commit())
            running = self._channel.expect(Running)
        except PeerRefused:
            self.guest_is = GuestIs.HERE  # an abort promises that it is not and will not be there
            raise
        self.guest_is = GuestIs.THERE
        return running

    def while_here(self, act: Callable[[], None]) -> None:
        """Does this unless it is given away, or may be."""
        with self._lock:
            if self.guest_is is GuestIs.HERE:
                act()

    def outcome(self, error: BaseException) -> BaseException:
        """What to raise for ``error``: `OutcomeUnknown` after any failure between the commit and its answer."""
        return (
            OutcomeUnknown(self._session, reason_of(error), self._remedy) if self.guest_is is GuestIs.UNKNOWN else error
        )


def reason_of(error: BaseException, side: str | None = None) -> str:
    """Why a session ends, in one sentence. ``side`` is the side that says it to its peer; None where it is said at
    home."""
    if isinstance(error, PrecopyError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by the user" if side is None else f"the {side} was interrupted by its user"
    return f"internal error{'' if side is None else f' at the {side}'}: {type(error).__name__}"


def check_hello(hello: Hello, machine: str, layout: RamLayout) -> None:
    """Raises `HelloMismatch` that names the first thing that does not fit."""
    check_session(hello)
    if hello.machine != machine:
        raise HelloMismatch(f"the source's guest is {hello.machine[:200]!r}, this side runs {machine!r}")
    if hello.page_size != layout.page_size:
        raise HelloMismatch(f"the source's pages have {hello.page_size} bytes, this side's {layout.page_size}")
    theirs = {block.name: block for block in hello.blocks}
    for block in layout.blocks:
        claim = theirs.pop(block.name, None)
        if claim is None:
            raise HelloMismatch(f"RAM block {block.name!r} exists here and not at the source")
        if claim.pages != block.pages:
            size = layout.page_size
            raise HelloMismatch(
                f"RAM block {block.name!r} has {claim.pages * size} bytes at the source and {block.pages * size} here; "
                f"start both sides with the same --ram and --layout"
            )
        if claim.first_page != block.first_page:
            raise HelloMismatch(
                f"RAM block {block.name!r} is at ram_addr page {claim.first_page} at the source and at "
                f"{block.first_page} here"
            )
    if theirs:
        raise HelloMismatch(f"RAM block {next(iter(theirs))[:200]!r} exists at the source and not here")
