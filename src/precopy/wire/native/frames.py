"""The frames of the stream: one for each event. docs/protocol.md draws when each is sent and gives its bytes.

Control records are msgpack maps; a batch of pages is a table of runs (see `PageBatch`), followed on the wire by the
content of its content runs, which never passes through these records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from precopy.bitmap import Runs
from precopy.errors import PeerProtocolError
from precopy.memory.layout import MAX_PAGES
from precopy.wire.events import WireEvent

MAX_BATCH_PAGES = 4096
MAX_BATCH_RUNS = 1000
"""Content runs of a batch are one sendmsg and one recvmsg_into: IOV_MAX (1024) bounds them, less the table."""
MAX_BATCH_BYTES = 24 + 16 * (MAX_BATCH_RUNS + MAX_BATCH_PAGES)
"""A head, as many runs as a batch may have, without their content, and an id."""

_BATCH_HEAD = struct.Struct("<QII")
_ID = struct.Struct("<Q")
_RUN_BYTES = 16


@dataclass(frozen=True)
class PageBatch:
    """Runs of ram_addr pages: those whose content follows, and those that are all zero.

    On the wire: checksum u64, number of content runs u32, of zero runs u32, then (first page u64, pages u64) for each
    run, then the id u64, all little-endian; then the content of the content runs, in order. The checksum is xxh3_64
    over the runs and the content. Version 1.1 has no id: its batches are counted as they come.
    """

    id: int
    content: Runs
    zero: Runs
    table: bytes
    checksum: int = 0

    @classmethod
    def of(cls, id: int, content: Runs, zero: Runs, buffers: Iterable[memoryview]) -> PageBatch:
        """The batch of these runs, with the checksum of ``buffers``, one for each content run."""
        table = np.empty((len(content) + len(zero), 2), "<u8")
        for column, (first, second) in enumerate(((content.starts, zero.starts), (content.lengths, zero.lengths))):
            table[: len(content), column] = first
            table[len(content) :, column] = second
        packed = table.tobytes()
        return cls(id, content, zero, packed, _digest(packed, buffers))

    @cached_property
    def pages(self) -> int:
        """Pages of all runs."""
        return self.content.pages + self.zero.pages

    def matches(self, buffers: Iterable[memoryview]) -> bool:
        """Whether ``buffers``, one for each content run, are what the checksum was made of."""
        return _digest(self.table, buffers) == self.checksum

    def encode(self, *, with_id: bool = True) -> bytes:
        id = _ID.pack(self.id) if with_id else b""
        return _BATCH_HEAD.pack(self.checksum, len(self.content), len(self.zero)) + self.table + id

    @classmethod
    def decode(cls, payload: bytes, due: int = 0) -> PageBatch:
        """``due`` is the id of a batch that does not say its own. Raises `PeerProtocolError` where the table is not
        what its head says, or claims more than a batch holds."""
        if len(payload) < _BATCH_HEAD.size:
            raise PeerProtocolError(f"a batch of {len(payload)} bytes is shorter than its head")
        checksum, content, zero = _BATCH_HEAD.unpack_from(payload)
        if content > MAX_BATCH_RUNS or zero > MAX_BATCH_PAGES or not content + zero:
            raise PeerProtocolError(f"a batch claims {content} content runs and {zero} zero runs")
        end = _BATCH_HEAD.size + (content + zero) * _RUN_BYTES
        if len(payload) not in (end, end + _ID.size):
            raise PeerProtocolError(f"a batch of {len(payload)} bytes cannot hold the {content + zero} runs it claims")
        table = np.frombuffer(payload, "<u8", 2 * (content + zero), _BATCH_HEAD.size).reshape(-1, 2)
        # Bounds are checked before anything is summed or used, so nothing can wrap.
        furthest, longest = table.max(axis=0).tolist()
        if longest > MAX_BATCH_PAGES or furthest >= MAX_PAGES:
            raise PeerProtocolError("a batch holds a run that is longer or further up than any can be")
        starts, lengths = table.astype(np.int64).T
        pages = int(lengths.sum())
        if pages > MAX_BATCH_PAGES or not lengths.all():
            raise PeerProtocolError(f"a batch claims {pages} pages in {content + zero} runs")
        return cls(
            due if len(payload) == end else _ID.unpack_from(payload, end)[0],
            Runs(starts[:content], lengths[:content]),
            Runs(starts[content:], lengths[content:]),
            payload[_BATCH_HEAD.size : end],
            checksum,
        )


def _digest(table: bytes, buffers: Iterable[memoryview]) -> int:
    state = xxhash.xxh3_64(table)
    update = state.update
    for buffer in buffers:
        update(buffer)
    return state.intdigest()


Frame = WireEvent
"""Each event is one frame here."""
