"""The host's reading of the gaps that each vCPU's program writes down in guest memory (see params.py).

The host only reads. A program writes an entry of its ring before it counts it, and x86 keeps that order; so entries
below the count are whole, unless the program has since gone round the ring, which a second look at the count tells.

Law 5 here, too: guest memory may have come from a peer. What cannot be meant is not measured, and nothing is allocated
by what it says.
"""

from __future__ import annotations

import numpy as np

from precopy.errors import Unsupported
from precopy.machines.workload import params
from precopy.machines.workload.image import params_words, rings_words
from precopy.machines.workload.programs import WORKLOADS
from precopy.memory import GuestMemory
from precopy.ports.stall import Stall

_MOST_KHZ = 100_000_000
"""Ticks in a millisecond: ten times what any CPU has."""
_CLOCKS = 1e-3
"""Share by which two measurements of one clock may differ."""
_WORD = 1 << 64
_MOST_GAPS = 1 << 50
"""More than there can be between two looks: the count is no program's."""


class _Ring:
    """That of one vCPU, and how far it was read. Times are in ticks. Raises `LayoutError`."""

    def __init__(self, memory: GuestMemory, vcpu: int) -> None:
        self._page, self._entries = params_words(memory, vcpu), rings_words(memory, vcpu).reshape(-1, 2)
        self._now, self._first = self.word(params.NOW), self.word(params.FIRST)
        self._read, self._sum = self.word(params.GAPS), self.word(params.GAP_SUM)
        self._recent = self._gaps_before(self._read, min(self._read, params.RING_ENTRIES))
        if self._read > len(self._recent):  # what came before the oldest that is left is not known
            self._first = self._recent[0][0] if self._recent else self._now
        self._gaps = self._unread = self._longest = 0

    def word(self, offset: int) -> int:
        return int(self._page[offset // 8])

    def poll(self) -> None:
        count = self.word(params.GAPS)
        if count != self._read:
            new = min((count - self._read) % _WORD, _MOST_GAPS)
            got = self._gaps_before(count, min(new, params.RING_ENTRIES))
            self._read = count
            self._gaps += new
            self._unread += new - len(got)
            self._longest = max((self._longest, *(length for _, length in got)))

    def take(self) -> tuple[int, int, int, int]:
        """(longest, sum, gaps, unread) since the last time."""
        self.poll()
        total = self.word(params.GAP_SUM)
        taken = self._longest, (total - self._sum) % _WORD, self._gaps, self._unread
        self._sum, self._longest, self._gaps, self._unread = total, 0, 0, 0
        return taken

    def window(self, most: int) -> int:
        """As much of the last ``most`` ticks before it was made as it can tell of."""
        return min(most, max(self._now - self._first, 0))

    def before(self, window: int) -> tuple[int, int, int, int]:
        """As `take`, of the last ``window`` ticks before it was made."""
        start = self._now - window
        inside = [min(length, end - start) for end, length in self._recent if end > start]
        return max(inside, default=0), sum(inside), len(inside), 0

    def _gaps_before(self, count: int, wanted: int) -> list[tuple[int, int]]:
        """(end, length) of the last ``wanted`` gaps of ``count``, oldest first, as far as they are still there."""
        first = count - wanted
        numbers = (first % params.RING_ENTRIES + np.arange(wanted)) % params.RING_ENTRIES
        got = self._entries[numbers].tolist()
        # One more than are counted may be half written.
        gone = self.word(params.GAPS) + 1 - params.RING_ENTRIES - first
        return [(end, length) for end, length in got[max(gone, 0) :]]


class GapMeter:
    """Implements `precopy.ports.StallMeter` for a guest of ``vcpus`` vCPUs, from now on. ``tsc_khz`` is how many ticks
    of its clock go by in a millisecond on this machine (0: not known). Raises `Unsupported` where its gaps cannot be
    told."""

    def __init__(self, memory: GuestMemory, vcpus: int, tsc_khz: int) -> None:
        self._rings = [_Ring(memory, vcpu) for vcpu in range(vcpus)]
        for ring in self._rings:
            _check(ring, tsc_khz)
        self._hz = self._rings[0].word(params.TSC_KHZ) * 1e3

    def poll(self) -> None:
        """As `StallMeter.poll`."""
        for ring in self._rings:
            ring.poll()

    def take(self, window_s: float) -> Stall:
        """As `StallMeter.take`."""
        return self._stall(window_s, [ring.take() for ring in self._rings])

    def before(self, window_s: float) -> Stall:
        """As `StallMeter.before`; the shortest of the vCPUs' windows."""
        window = min(ring.window(int(window_s * self._hz)) for ring in self._rings)
        return self._stall(window / self._hz, [ring.before(window) for ring in self._rings])

    def _stall(self, window_s: float, figures: list[tuple[int, int, int, int]]) -> Stall:
        longest, total, gaps, unread = zip(*figures, strict=True)
        return Stall(
            window_s=window_s,
            longest_s=max(longest) / self._hz,
            stalled_s=sum(total) / len(figures) / self._hz,
            gaps=sum(gaps),
            unread=sum(unread),
        )


def _check(ring: _Ring, tsc_khz: int) -> None:
    khz, workload = ring.word(params.TSC_KHZ), ring.word(params.WORKLOAD)
    if workload < len(WORKLOADS) and WORKLOADS[workload] == "idle" and khz:
        raise Unsupported("an idle guest makes no progress, in which there could be gaps", "use another workload")
    if not 0 < khz <= _MOST_KHZ:
        raise Unsupported("this guest's program does not measure its gaps", "boot it with this version of precopy")
    if abs(khz - tsc_khz) > _CLOCKS * khz:
        raise Unsupported(
            f"this guest's time stamp counter had {khz} kHz where it was booted, and has {tsc_khz or 'unknown'} here",
            "measure it where it was booted",
        )
