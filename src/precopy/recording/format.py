"""The file of a recorded migration, as bytes. No I/O here.

::

    precopy.recording/2\\n
    block, block, ...        kind u32, length u32, xxh3_64 u64, payload of ``length`` bytes

The checksum is of the block's first 8 bytes and its payload, seeded with its offset in the file. All numbers are
little-endian. A payload is the length of its record (u32), the record (JSON), and its bitmap's bytes, if it has one.
The first block is the beginning, then come mid-round samples and rounds, and the end is the last: docs/recordings.md.

Law 5 holds here, too: no field is believed before it was held against its bound, and nothing is allocated because of
one that was not. What fails is a `SnapshotDamaged` that names the offset.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import xxhash

from precopy.bitmap import Bitmap
from precopy.bitmap.words import words_for
from precopy.dirty import LogCounters
from precopy.dirty.clear import MAX_CHUNK_SHIFT, MIN_CHUNK_SHIFT
from precopy.errors import LayoutError, UsageError
from precopy.memory.layout import RamBlock, RamLayout, Section
from precopy.memory.packing import Decompressor
from precopy.names import ALL_CLEAR_POLICIES
from precopy.planning import Estimate, RoundSample
from precopy.planning.model.round import NextSync, Round
from precopy.planning.model.trace import NO_CALLS, RecordedFacts, RecordedOutcome
from precopy.units import GuestPhysicalAddress, RamPage

KIND, VERSION = "precopy.recording", 2
SCHEMA = f"{KIND}/{VERSION}"
OPENING = f"{SCHEMA}\n".encode()
OPENINGS = {f"{KIND}/{version}\n".encode(): version for version in (1, VERSION)}
"""The first bytes of the versions that can be read: `precopy.recording.older` reads those before this one."""
HEAD = struct.Struct("<IIQ")
_LENGTH = struct.Struct("<I")
MAX_RECORD = 4 << 20
MAX_PAGES = 1 << 30
"""4 TiB of 4 KiB pages, as for snapshots. Bitmaps of it take 128 MiB."""
_MOST_SECONDS, _MOST_BYTES, _MOST_RATE = 1e7, 2.0**62, 2.0**93
"""Seconds, bytes, and bytes a second (the most bytes in a nanosecond) that can be meant."""
_CLOCKS = 1e-3
"""Times are read one after the other: this much they may be off, as a share and in seconds."""

R = TypeVar("R")


class Kind(enum.IntEnum):
    """What a block holds."""

    BEGIN = 1
    MID_ROUND = 2
    ROUND = 3
    END = 4


class Packing(enum.Enum):
    """What was done to a bitmap's words."""

    EMPTY = "empty"
    ZLIB = "zlib"
    ZSTD = "zstd"


class Wrong(Exception):
    """Why a block cannot be what was written."""


@dataclass(frozen=True)
class Packed:
    """How many ``pages`` a bitmap has, and how its words were made shorter."""

    packing: Packing
    pages: Annotated[int, msgspec.Meta(ge=0, le=MAX_PAGES)]


NOTHING = Packed(Packing.EMPTY, 0)


PageSize = Annotated[int, msgspec.Meta(ge=512, le=2**30)]


@dataclass(frozen=True)
class BlockRecord:
    name: str
    first_page: Annotated[int, msgspec.Meta(ge=0, le=MAX_PAGES)]
    pages: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGES)]


@dataclass(frozen=True)
class SectionRecord:
    """Of block number ``block``, in pages; ``gpa`` in bytes."""

    block: Annotated[int, msgspec.Meta(ge=0)]
    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_PAGES)]
    pages: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGES)]
    gpa: Annotated[int, msgspec.Meta(ge=0, le=2**60)]


@dataclass(frozen=True)
class Beginning:
    """The first block's record."""

    facts: RecordedFacts
    page_size: PageSize
    blocks: list[BlockRecord]
    sections: list[SectionRecord]

    @classmethod
    def of(cls, layout: RamLayout, facts: RecordedFacts) -> Beginning:
        blocks = [BlockRecord(block.name, block.first_page, block.pages) for block in layout.blocks]
        sections = [
            SectionRecord(layout.blocks.index(section.block), section.offset, section.pages, section.gpa)
            for section in layout.sections
        ]
        return cls(facts, layout.page_size, blocks, sections)

    def layout(self) -> RamLayout:
        """Raises `Wrong`."""
        blocks = tuple(RamBlock(block.name, RamPage(block.first_page), block.pages) for block in self.blocks)
        if any(section.block >= len(blocks) for section in self.sections):
            raise Wrong("a section is of a block that there is not")
        sections = (
            Section(blocks[section.block], section.offset, section.pages, GuestPhysicalAddress(section.gpa))
            for section in self.sections
        )
        try:
            layout = RamLayout(blocks, tuple(sections), self.page_size)
        except LayoutError as error:
            raise Wrong(str(error)) from None
        if layout.end_page > MAX_PAGES:
            raise Wrong(f"its layout ends at page {layout.end_page}, and {MAX_PAGES} is the most")
        return layout


@dataclass(frozen=True)
class MidRoundRecord:
    interval_s: float
    dirty: Packed


@dataclass(frozen=True)
class RoundRecord:
    """A round, without its map, and the sync after it, which found ``dirty``."""

    round: Round
    after: NextSync
    dirty: Packed
    did: LogCounters = NO_CALLS


def encode(kind: Kind, record: object, words: bytes, offset: int) -> bytes:
    """A whole block, to stand at ``offset`` of the file. ``words`` is the bitmap that the record has, packed."""
    text = msgspec.json.encode(record)
    payload = b"".join((_LENGTH.pack(len(text)), text, words))
    return HEAD.pack(kind, len(payload), checksum(kind, payload, offset)) + payload


def checksum(kind: int, payload: bytes, offset: int) -> int:
    hashed = xxhash.xxh3_64(HEAD.pack(kind, len(payload), 0)[:8], seed=offset)
    hashed.update(payload)
    return hashed.intdigest()


def split(payload: bytes) -> tuple[bytes, bytes]:
    """(record, packed words) of a payload. Raises `Wrong`."""
    if len(payload) < _LENGTH.size:
        raise Wrong("it is shorter than its record's length")
    (length,) = _LENGTH.unpack_from(payload)
    end = _LENGTH.size + length
    if length > MAX_RECORD or end > len(payload):
        raise Wrong("its record is longer than the block, or than any")
    return payload[_LENGTH.size : end], payload[end:]


def decode(record: bytes, kind: type[R]) -> R:
    """A record whose numbers are all finite, not negative and of a size that can be meant. Raises `Wrong`."""
    try:
        made = msgspec.json.decode(record, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Wrong(f"its record cannot be read: {error}") from None
    check_numbers(made)
    return made


def check_facts(facts: RecordedFacts) -> None:
    """Raises `Wrong` for what no migration can have been told."""
    overhead, shift = facts.switchover_overhead_s, facts.clear_chunk_shift
    if not all(0 <= part <= _MOST_SECONDS for part in (overhead.value, overhead.low, overhead.high)):
        raise Wrong("the switchover overhead that it expects is no time")
    if facts.clear not in ALL_CLEAR_POLICIES or not MIN_CHUNK_SHIFT <= shift <= MAX_CHUNK_SHIFT:
        raise Wrong(f"no clear policy is called {facts.clear!r}, or none has chunks of 2^{shift} pages")
    if not facts.limits.max_throttle < 1 or facts.max_bandwidth == 0:
        raise Wrong("its limits cannot be meant")


def check_numbers(record: Any) -> None:
    """Raises `Wrong` where a number of a record, or of one in it, is negative, no number, or of a size that cannot be
    meant."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, float | int):
            rate, seconds = field.name.endswith("_per_s"), field.name.endswith("_s")
            most = _MOST_RATE if rate else _MOST_SECONDS if seconds else _MOST_BYTES
            if not 0 <= value <= most:  # false for NaN, too
                raise Wrong(f"its {field.name} is {value}")
        elif is_dataclass(value) and not isinstance(value, Estimate):  # estimates may be infinite: see `check_facts`
            check_numbers(value)


def check_sample(sample: RoundSample, before: RoundSample | None) -> None:
    """Raises `Wrong` where it is not that of the round after ``before`` (None: of the first)."""
    number, began_s = (1, 0.0) if before is None else (before.number + 1, before.ended_s)
    if sample.number != number:
        raise Wrong(f"it is of round {sample.number}, and {number} is the next")
    if not sample.throttled_share < 1 or sample.interval_s <= 0:
        raise Wrong("it took no time, or the guest all of it")
    if sample.ended_s < began_s + sample.interval_s * (1 - _CLOCKS) - _CLOCKS:
        raise Wrong("it ended before it can have been done")


def check_outcome(outcome: RecordedOutcome) -> None:
    """Raises `Wrong`."""
    known = outcome.expected_switchover_overhead_s
    if known is not None and not all(0 <= part <= _MOST_SECONDS for part in (known.value, known.low, known.high)):
        raise Wrong("the switchover overhead that it expected is no time")
    if outcome.completed != (outcome.downtime is not None):
        raise Wrong("it completed without a downtime, or had one without that")


def unpack(words: bytes, packed: Packed, layout: RamLayout) -> Bitmap:
    """The bitmap over ``layout`` that ``packed`` describes. Raises `Wrong`, `Unsupported` without zstandard."""
    out = np.empty(words_for(layout.end_page), np.uint64)
    match packed.packing:
        case Packing.EMPTY:
            raise Wrong("it has a bitmap and says that it is empty")
        case Packing.ZSTD:
            if not Decompressor().into(words, out):
                raise Wrong("its bitmap cannot be decompressed")
        case Packing.ZLIB:
            _inflate(words, out)
    try:
        bitmap = Bitmap(layout.end_page, out)
    except (ValueError, UsageError) as error:
        raise Wrong(f"its bitmap: {error}") from None
    if any(bitmap.count(block.end_page, other.first_page - block.end_page) for block, other in pairwise(layout.blocks)):
        raise Wrong("its bitmap has a page between RAM blocks")
    if bitmap.count() != packed.pages:
        raise Wrong(f"its bitmap has {bitmap.count()} pages and not {packed.pages}")
    return bitmap


def _inflate(words: bytes, out: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
    unzip = zlib.decompressobj()
    try:
        content = unzip.decompress(words, out.nbytes)
        more = b"" if unzip.eof else unzip.decompress(unzip.unconsumed_tail, 1)
    except zlib.error as error:
        raise Wrong(f"its bitmap cannot be decompressed: {error}") from None
    if len(content) != out.nbytes or more:
        raise Wrong("its bitmap is not as long as the layout's")
    out.data.cast("B")[:] = content
