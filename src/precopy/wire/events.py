"""What the two ends of a migration or a replication tell each other, in no particular format.

A format (`precopy.wire.format`) makes bytes of these events and events of bytes. No event carries the content of pages:
after `Pages` and `Compare` it follows on the stream, one buffer for each content run of the batch, and is read straight
to where it goes.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from precopy.bitmap import Runs
from precopy.memory.layout import RamLayout

MAX_TORN = 1 << 16
"""Batches of a round that may be torn; one that has more is refused."""
MAX_DIFFERENT = 16
"""Pages and broken invariants that `Ready` names at most."""
_MOST_SECONDS = 1e6
"""Seconds (11 days) that a peer may say it took for one step; more is no measurement."""


class Role(enum.Enum):
    """The two ends of a migration."""

    SOURCE = "source"
    DESTINATION = "destination"

    @property
    def other(self) -> Role:
        return Role.DESTINATION if self is Role.SOURCE else Role.SOURCE


@dataclass(frozen=True)
class BlockClaim:
    """A RAM block as the peer describes it: its first ram_addr page and its length in pages."""

    name: str
    first_page: int
    pages: int


@dataclass(frozen=True)
class Hello:
    """The source's opening: what it is about to send. ``session`` names this migration on both sides."""

    session: str
    machine: str
    page_size: int
    blocks: tuple[BlockClaim, ...]

    @classmethod
    def of(cls, session: str, machine: str, layout: RamLayout) -> Hello:
        blocks = tuple(BlockClaim(block.name, block.first_page, block.pages) for block in layout.blocks)
        return cls(session, machine, layout.page_size, blocks)


@dataclass(frozen=True)
class Welcome:
    """The destination accepts."""

    session: str


class PageBatch(Protocol):
    """Runs of ram_addr pages: those whose content follows, and those that are all zero."""

    @property
    def id(self) -> int:
        """Counts the batches of a session, for whatever they are sent, from 0."""

    @property
    def content(self) -> Runs: ...

    @property
    def zero(self) -> Runs: ...

    @property
    def pages(self) -> int:
        """Pages of all runs."""

    def matches(self, buffers: Iterable[memoryview]) -> bool:
        """Whether ``buffers``, one for each content run, are what was sent, as far as the format can tell."""


@dataclass(frozen=True)
class Pages:
    """A batch of pages to put into memory."""

    batch: PageBatch


@dataclass(frozen=True)
class Compare:
    """A batch of pages to hold against memory, byte for byte, without changing it."""

    batch: PageBatch


@dataclass(frozen=True)
class Alive:
    """The source is busy with a long sync and has nothing to send yet."""


@dataclass(frozen=True)
class RoundEnd:
    """All batches of a round were sent: how many, and their pages. ``final``: the guest is paused, none will follow."""

    number: int
    batches: int
    pages: int
    final: bool


@dataclass(frozen=True)
class RoundAck:
    """All of a round has arrived. ``torn`` are the ids, ascending, of its batches whose content did not match their
    checksum: the guest wrote while they were sent, so their pages have to come again."""

    number: int
    pages: int
    torn: tuple[int, ...] = ()


@dataclass(frozen=True)
class Point:
    """All batches since the last round or point were sent, and with them the memory is that of one moment at which it
    was not written: how many batches, and their pages. ``number`` counts points from 1."""

    number: int
    batches: int
    pages: int


@dataclass(frozen=True)
class PointAck:
    """All of a point has arrived, and the memory is that of the point."""

    number: int


@dataclass(frozen=True)
class DeviceState:
    """The vCPUs' state, opaque here."""

    state: bytes


@dataclass(frozen=True)
class Prepare:
    """All that belongs to the guest was sent: get it ready to run, but do not run it. ``compared`` pages were sent
    for comparison."""

    compared: int


def _check_seconds(what: str, seconds: float) -> None:
    """Raises `ValueError`, which msgspec reports as a frame that cannot be read."""
    if not 0 <= seconds < _MOST_SECONDS:  # false for NaN, too
        raise ValueError(f"{what} is said to have taken {seconds} s")


@dataclass(frozen=True)
class Ready:
    """The guest could run; loading its state took ``load_s`` seconds. ``different`` are ram_addr pages (the first few)
    that did not compare equal, of ``different_pages``; ``broken`` are violations of the guest's own invariant."""

    compared: int
    load_s: float = 0.0
    different: tuple[int, ...] = ()
    different_pages: int = 0
    broken: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_seconds("loading the state", self.load_s)


@dataclass(frozen=True)
class Commit:
    """The source gives the guest away: from here on it never resumes it by itself."""


@dataclass(frozen=True)
class Running:
    """The guest runs at the destination, ``resume_s`` seconds after the commit arrived. Receiving it took the
    destination ``user_s`` and ``system_s`` of CPU time, verification and vCPUs not counted."""

    resume_s: float
    user_s: float = 0.0
    system_s: float = 0.0

    def __post_init__(self) -> None:
        _check_seconds("resuming", self.resume_s)
        _check_seconds("receiving", self.user_s)
        _check_seconds("receiving", self.system_s)


@dataclass(frozen=True)
class Abort:
    """The sender gives up, and why. After a commit it says that the destination did not and will not run the guest."""

    reason: str = field(default="")


WireEvent = (
    Hello
    | Welcome
    | Pages
    | RoundEnd
    | RoundAck
    | DeviceState
    | Compare
    | Prepare
    | Ready
    | Commit
    | Running
    | Abort
    | Alive
    | Point
    | PointAck
)
