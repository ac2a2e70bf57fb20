"""The frames of the stream, as records. docs/protocol.md draws when each is sent and gives its bytes.

Control records are msgpack maps; a batch of pages is a table of runs (see `PageBatch`), followed on the wire by the
content of its content runs, which never passes through these records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import xxhash

from precopy.bitmap import Runs
from precopy.errors import PeerProtocolError
from precopy.memory.layout import MAX_PAGES, RamLayout

MAX_BATCH_PAGES = 4096
MAX_BATCH_RUNS = 1000
"""Content runs of a batch are one sendmsg and one recvmsg_into: IOV_MAX (1024) bounds them, less the table."""
MAX_TORN = 1 << 16
MAX_DIFFERENT = 16
_MOST_SECONDS = 1e6

_BATCH_HEAD = struct.Struct("<QII")
_RUN_BYTES = 16


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


@dataclass(frozen=True)
class PageBatch:
    """Runs of ram_addr pages: those whose content follows, and those that are all zero.

    On the wire: checksum u64, number of content runs u32, of zero runs u32, then (first page u64, pages u64) for each
    run, all little-endian; then the content of the content runs, in order. The checksum is xxh3_64 over the runs and
    the content.
    """

    content: Runs
    zero: Runs
    table: bytes
    checksum: int = 0

    @classmethod
    def of(cls, content: Runs, zero: Runs, buffers: Iterable[memoryview]) -> PageBatch:
        """The batch of these runs, with the checksum of ``buffers``, one for each content run."""
        table = np.empty((len(content) + len(zero), 2), "<u8")
        for column, (first, second) in enumerate(((content.starts, zero.starts), (content.lengths, zero.lengths))):
            table[: len(content), column] = first
            table[len(content) :, column] = second
        packed = table.tobytes()
        return cls(content, zero, packed, _digest(packed, buffers))

    @cached_property
    def pages(self) -> int:
        """Pages of all runs."""
        return self.content.pages + self.zero.pages

    def matches(self, buffers: Iterable[memoryview]) -> bool:
        """Whether ``buffers``, one for each content run, are what the checksum was made of."""
        return _digest(self.table, buffers) == self.checksum

    def encode(self) -> bytes:
        return _BATCH_HEAD.pack(self.checksum, len(self.content), len(self.zero)) + self.table

    @classmethod
    def decode(cls, payload: bytes) -> PageBatch:
        """Raises `PeerProtocolError` where the table is not what its head says, or claims more than a batch holds."""
        if len(payload) < _BATCH_HEAD.size:
            raise PeerProtocolError(f"a batch of {len(payload)} bytes is shorter than its head")
        checksum, content, zero = _BATCH_HEAD.unpack_from(payload)
        if content > MAX_BATCH_RUNS or zero > MAX_BATCH_PAGES or not content + zero:
            raise PeerProtocolError(f"a batch claims {content} content runs and {zero} zero runs")
        if len(payload) != _BATCH_HEAD.size + (content + zero) * _RUN_BYTES:
            raise PeerProtocolError(f"a batch of {len(payload)} bytes cannot hold the {content + zero} runs it claims")
        table = np.frombuffer(payload, "<u8", offset=_BATCH_HEAD.size).reshape(-1, 2)
        # Bounds are checked before anything is summed or used, so nothing can wrap.
        furthest, longest = table.max(axis=0).tolist()
        if longest > MAX_BATCH_PAGES or furthest >= MAX_PAGES:
            raise PeerProtocolError("a batch holds a run that is longer or further up than any can be")
        starts, lengths = table.astype(np.int64).T
        pages = int(lengths.sum())
        if pages > MAX_BATCH_PAGES or not lengths.all():
            raise PeerProtocolError(f"a batch claims {pages} pages in {content + zero} runs")
        return cls(
            Runs(starts[:content], lengths[:content]),
            Runs(starts[content:], lengths[content:]),
            payload[_BATCH_HEAD.size :],
            checksum,
        )


def _digest(table: bytes, buffers: Iterable[memoryview]) -> int:
    state = xxhash.xxh3_64(table)
    update = state.update
    for buffer in buffers:
        update(buffer)
    return state.intdigest()


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
    """All of a round has arrived. ``torn`` are the batches (counted from 0 in the round) whose content did not match
    their checksum: the guest wrote while they were sent, so their pages have to come again."""

    number: int
    pages: int
    torn: tuple[int, ...] = ()


@dataclass(frozen=True)
class Point:
    """All batches since the last round or point were sent, and with them the memory is that of one moment at which
    nobody wrote it: how many, and their pages. ``number`` counts points from 1."""

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
    """The guest runs at the destination, ``resume_s`` seconds after the commit arrived."""

    resume_s: float

    def __post_init__(self) -> None:
        _check_seconds("resuming", self.resume_s)


@dataclass(frozen=True)
class Abort:
    """The sender gives up, and why. After a commit it says that the destination did not and will not run the guest."""

    reason: str = field(default="")


Frame = (
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
