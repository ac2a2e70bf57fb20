"""From values to places along an axis, and the ticks that an axis has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from precopy.units import format_duration, format_rate, format_size


@dataclass(frozen=True)
class Quantity:
    """How values are written: ``steps`` are units from the smallest to the largest, ``text`` writes one value."""

    steps: tuple[tuple[float, str], ...]
    text: Callable[[float], str]
    base: int = 10

    def unit(self, largest: float) -> tuple[float, str]:
        """The largest unit that is not above ``largest``."""
        return next((step for step in reversed(self.steps) if largest >= step[0]), self.steps[0])


def count_text(value: float) -> str:
    """A count with its thousands apart: ``22,272``."""
    return f"{value:,.0f}"


SECONDS = Quantity(((1e-6, "us"), (1e-3, "ms"), (1.0, "s")), format_duration)
BYTES = Quantity(((1.0, "B"), (2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"), (2.0**40, "TiB")), format_size, 2)
RATE = Quantity(((1.0, "B/s"), (1e3, "kB/s"), (1e6, "MB/s"), (1e9, "GB/s")), format_rate)


@dataclass(frozen=True)
class Axis:
    """``at`` gives a value's place from 0 to 1; ``ticks`` are places with their labels; ``title`` has the unit."""

    title: str
    at: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]


_MOST_TICKS = 5


def linear(what: str, largest: float, quantity: Quantity, smallest: float = 0.0) -> Axis:
    """From ``smallest`` to ``largest`` or a little more, in one unit."""
    scale, unit = quantity.unit(largest)
    start, top = smallest / scale, largest / scale if largest > 1e-9 * scale else 1.0
    # At the end of the axis stands a tick only where the largest value is near it: bars use all of the width.
    length = (top - start) * 1.02
    step = _nice(length / _MOST_TICKS, quantity.base)
    first, last = math.ceil(start / step - 1e-9), math.floor((start + length) / step + 1e-9)
    numbers = [step * index for index in range(first, last + 1)]
    ticks = tuple(((number - start) / length, f"{number:,.10g}") for number in numbers)
    return Axis(_titled(what, unit), lambda value: min(max((value / scale - start) / length, 0.0), 1.0), ticks)


def logarithmic(what: str, values: Iterable[float], quantity: Quantity) -> Axis:
    """Around ``values``, all above 0. Each tick has its own unit."""
    given = list(values)
    given = [max(number, max(given) * 1e-12) for number in given]
    low, high = math.log(min(given), quantity.base), math.log(max(given), quantity.base)
    room = max(0.06 * (high - low), 0.08 if quantity.base == 10 else 0.3)
    low, high = low - room, high + room
    places = _log_ticks(low, high, quantity)
    # Below its smallest unit a quantity has the same text for several values, and no tick for them.
    texts = {_plain(quantity.text(tick)): (math.log(tick, quantity.base) - low) / (high - low) for tick in places}
    ticks = tuple((place, text) for text, place in texts.items() if len(texts) == 1 or not text.startswith("0 "))

    def at(value: float) -> float:
        return (math.log(max(value, 1e-300), quantity.base) - low) / (high - low)

    return Axis(f"{what}, logarithmic", lambda value: min(max(at(value), 0.0), 1.0), ticks)


def fitting(what: str, values: Iterable[float], quantity: Quantity) -> Axis:
    """Logarithmic where the values (none below 0, one above) are too far apart for a linear axis."""
    given = [value for value in values if value > 0]
    if max(given) / min(given) > _FAR_APART:
        return logarithmic(what, given, quantity)
    return linear(what, max(given), quantity)


_FAR_APART = 12


def around(what: str, values: Iterable[float], quantity: Quantity) -> Axis:
    """As `fitting`, but a linear axis need not begin at 0: for points, not for bars."""
    given = list(values)
    low, high = min(given), max(given)
    if high > _FAR_APART * low:
        return logarithmic(what, given, quantity)
    room = 0.12 * (high - low) or 0.5 * high
    return linear(what, high + room, quantity, low - room if low > 0.3 * high else 0.0)


def counts(what: str, largest: float) -> Axis:
    """From 0 to ``largest`` by powers of ten, with a place for 0: how often something was done."""
    end = math.log10(1 + max(largest, 1)) * 1.02
    powers = [0.0, *(10.0**power for power in range(int(end) + 1))]
    ticks = [(math.log10(1 + count) / end, count_text(count)) for count in powers if math.log10(1 + count) <= end]
    return Axis(f"{what}, logarithmic", lambda value: min(math.log10(1 + value) / end, 1.0), tuple(ticks))


def _titled(what: str, unit: str) -> str:
    return f"{what} ({unit})" if unit else what


def _nice(step: float, base: int) -> float:
    """The next of 1, 2, 5, 10, ... (or of the powers of two) that is not below ``step``."""
    if base == 2:
        return 2.0 ** math.ceil(math.log2(step) - 1e-9)
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))


def _log_ticks(low: float, high: float, quantity: Quantity) -> list[float]:
    """Values between ``low`` and ``high`` (logarithms to the quantity's base) that are easy to read, six at most."""
    first, last = math.ceil(low), math.floor(high)
    if quantity.base == 2:
        step = max(1, math.ceil((last - first + 1) / _MOST_TICKS))
        return [2.0**power for power in range(-(-first // step) * step, last + 1, step)]
    decades = range(first - 1, last + 2)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        places = [factor * 10.0**power for power in decades for factor in factors]
        inside = [place for place in places if low <= math.log10(place) <= high]
        if len(inside) <= _MOST_TICKS + 1:
            return inside
    step = math.ceil(len(inside) / _MOST_TICKS)
    return inside[::step]


def _plain(text: str) -> str:
    """``10 ms`` for ``10.0 ms``."""
    number, _, unit = text.partition(" ")
    return f"{float(number):g} {unit}" if "." in number else text
