"""What a clear policy would have asked of the kernel in a migration that was recorded: the policy itself is run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from precopy.bitmap import Bitmap
from precopy.defaults import CLEAR_CHUNK_SHIFT
from precopy.dirty import ClearPolicy, clear_policy
from precopy.memory.layout import RamLayout
from precopy.planning.model.metrics import RoundSample
from precopy.planning.model.sync_cost import CLEAR_S
from precopy.planning.model.trace import Trace

_WINDOW_PAGES = 4096
"""Pages that a round takes at a time (16 MiB), as `precopy.migration.page_source.WINDOW_PAGES`."""


@dataclass(frozen=True)
class Calls:
    """Clears in a round: while its pages were read, and in the sync after it."""

    reading: int
    sync: int


class CountingLog:
    """A `precopy.dirty.LogClear` that counts: one call for each block that a clear finds harvested pages in, and for
    each block at all where it is to be made in any case. (A tracker may split one at a long gap.)"""

    def __init__(self, layout: RamLayout) -> None:
        self._blocks = layout.blocks
        self._harvested = Bitmap(layout.end_page)
        self.calls = 0

    def harvest(self, dirty: Bitmap) -> None:
        """A sync took over all of ``dirty``."""
        self._harvested.words[:] = dirty.words

    def clear(self, start: int, count: int) -> None:
        for begin, pages in self._parts(start, count):
            self.calls += self._harvested.take_count(begin, pages) > 0

    def clear_always(self, start: int, count: int) -> None:
        for begin, pages in self._parts(start, count):
            self._harvested.clear_range(begin, pages)
            self.calls += 1

    def _parts(self, start: int, count: int) -> list[tuple[int, int]]:
        """The range's part of each block, where there is one."""
        parts = ((max(start, block.first_page), min(start + count, block.end_page)) for block in self._blocks)
        return [(lo, hi - lo) for lo, hi in parts if lo < hi]


def clear_calls(trace: Trace, policy: ClearPolicy) -> tuple[Calls, ...]:
    """What ``policy`` would have called in each round of ``trace``, of which every page was pending at first."""
    everything = Bitmap(trace.layout.end_page)
    everything.set_runs(trace.layout.runs)
    log, found, made = CountingLog(trace.layout), everything, []
    log.harvest(found)
    _sync(policy, found, log)
    for round_ in trace.rounds:
        reading = _read(policy, trace.layout, found, log)
        found = round_.dirty
        log.harvest(found)
        made.append(Calls(reading, _sync(policy, found, log)))
    return tuple(made)


def _sync(policy: ClearPolicy, found: Bitmap, log: CountingLog) -> int:
    if policy.name == "per-page":
        return found.count()  # which is what it would make, one by one
    before = log.calls
    if policy.unconditional or found.any():
        policy.harvested(found, log)
    return log.calls - before


def _read(policy: ClearPolicy, layout: RamLayout, pending: Bitmap, log: CountingLog) -> int:
    before = log.calls
    if policy.name != "per-page":
        for block in layout.blocks:
            for start, count in pending.view(block.first_page, block.pages).windows(_WINDOW_PAGES):
                policy.before_read(block.first_page + start, count, log)
    return log.calls - before


def with_clear(trace: Trace, clear: str) -> tuple[RoundSample, ...]:
    """The rounds' samples as they would have been under the clear policy called ``clear`` (chunks as recorded, where it
    is that policy): each clear that it makes more or fewer costs what the recorded ones did on average, or `CLEAR_S`
    where there were none. Raises `UsageError` for a name that is no policy."""
    facts = trace.facts
    if clear == facts.clear:
        return trace.samples
    before = clear_calls(trace, clear_policy(facts.clear, trace.layout, facts.clear_chunk_shift))
    after = clear_calls(trace, clear_policy(clear, trace.layout, CLEAR_CHUNK_SHIFT))
    calls = sum(round_.did.clear_calls for round_ in trace.rounds)
    each_s = sum(round_.did.clear_s for round_ in trace.rounds) / calls if calls else CLEAR_S
    changed = []
    for sample, old, new in zip(trace.samples, before, after, strict=True):
        reading = max(each_s * (new.reading - old.reading), -sample.clear_s)
        sync = max(each_s * (new.sync - old.sync), -sample.sync_s)
        changed.append(
            replace(
                sample,
                clear_s=sample.clear_s + reading,
                transfer_s=max(sample.transfer_s + reading, 0.0),
                sync_s=sample.sync_s + sync,
            )
        )
    return tuple(changed)
