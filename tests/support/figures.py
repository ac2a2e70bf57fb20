"""Figures that explain one another: identities of results, and printed figures read back as what they can stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import pytest

from precopy.migration import Attempt, Migrated, Round

SCALES = {
    "": 1.0,
    "B": 1.0,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "TiB": 2.0**40,
    "B/s": 1.0,
    "kB/s": 1e3,
    "MB/s": 1e6,
    "GB/s": 1e9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "%": 0.01,
    "x": 1.0,
}
FIGURE = re.compile(r"([-+]?\d+(?:\.(\d+))?)(?: ?(" + "|".join(map(re.escape, sorted(SCALES, key=len)[::-1])) + r"))?")


@dataclass(frozen=True)
class Printed:
    """What a printed figure may stand for, by its last digit."""

    low: float
    high: float

    @classmethod
    def of(cls, text: str) -> Printed:
        """Raises `AssertionError` where ``text`` is no figure, whole, with its unit."""
        match = FIGURE.fullmatch(text.strip())
        assert match is not None, text
        scale = SCALES[match[3] or ""]
        value, half = float(match[1]) * scale, 0.5000001 * 10.0 ** -len(match[2] or "") * scale
        return cls(value - half, value + half)

    def __add__(self, other: Printed) -> Printed:
        return Printed(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Printed) -> Printed:
        return Printed(self.low - other.high, self.high - other.low)

    def __mul__(self, other: Printed) -> Printed:
        ends = [one * two for one in (self.low, self.high) for two in (other.low, other.high)]
        return Printed(min(ends), max(ends))

    def meets(self, other: Printed) -> bool:
        """Whether both may stand for the same."""
        return self.low <= other.high and other.low <= self.high

    def within(self, other: Printed) -> bool:
        """Whether this may be at most what ``other`` stands for."""
        return self.low <= other.high


def pages_add_up(rounds: tuple[Round, ...], pages: int) -> None:
    """What is to be sent in each round comes from somewhere and goes somewhere, and nothing is more than there is."""
    left = pages
    for one in rounds:
        assert one.pending_pages == left + one.again_pages + (one.new_dirty_pages if one.number > 1 else 0)
        assert one.pending_pages == one.sent_pages + one.zero_pages + one.left_pages
        assert 0 <= one.new_dirty_pages <= one.dirty_pages <= pages
        assert one.pending_pages <= pages
        assert one.found_twice_pages == 0 or one.final
        left = one.left_pages
    assert all(one.again_pages == 0 or before.torn_batches for before, one in pairwise(rounds))


def times_add_up(rounds: tuple[Round, ...]) -> None:
    for one in rounds:
        assert one.sync_s == pytest.approx(one.log_sync_s + one.bitmap_sync_s + one.log_clear_s)
        assert one.send_s + one.scan_s + one.clear_s <= one.transfer_s + 1e-9
        assert one.ack_s <= one.send_s
        assert one.sent_bytes == pytest.approx(one.bandwidth_bytes_per_s * one.send_s)


def result_adds_up(done: Migrated, on_the_wire: int | None = None) -> None:
    """Bytes, times and pages of a migration; ``on_the_wire``: all that its stream was given."""
    pages = done.ram_bytes // 4096
    pages_add_up(done.rounds, pages)
    times_add_up(done.rounds)
    assert done.sent_bytes == sum(one.sent_bytes for one in done.rounds) + done.other_bytes
    assert done.moving_s == pytest.approx(done.total_s - done.verify_s - done.setup_s)
    assert done.throughput_bytes_per_s == pytest.approx(done.sent_bytes / done.moving_s)
    in_rounds = sum(one.sync_s + one.transfer_s for one in done.rounds)
    assert in_rounds <= done.moving_s
    assert bool(done.compared_pages) == bool(done.verify_bytes) == bool(done.verify_s)
    assert done.compared_pages in (0, pages)
    if done.verdicts:
        assert done.verdicts[-1].elapsed_s <= done.total_s - done.verify_s
    if on_the_wire is not None:
        assert on_the_wire == done.setup_bytes + done.sent_bytes + done.verify_bytes


def attempt_adds_up(attempt: Attempt) -> None:
    """The same of a migration that did not complete."""
    pages_add_up(attempt.rounds, attempt.ram_bytes // 4096)
    times_add_up(attempt.rounds)
    assert attempt.sent_bytes == sum(one.sent_bytes for one in attempt.rounds) + attempt.other_bytes
    assert sum(one.sync_s + one.transfer_s for one in attempt.rounds) <= attempt.total_s
    assert attempt.other_bytes >= 0
