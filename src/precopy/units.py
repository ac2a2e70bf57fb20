"""Addresses and page numbers that cannot be mixed up, and the sizes, rates, counts and durations that people write.

A number has ASCII digits and at most one point: no sign, exponent, comma or separator. After it, or after a blank:

- a size is in bytes and takes ``K``, ``M``, ``G`` or ``T``, which are powers of 1024 with or without ``i`` and ``B``;
- a rate is in bytes a second with ``B`` (``125MB/s``) or the letter alone (``125M``), and in bits with ``b`` or ``bit``
  (``1Gb/s``, ``1Gbit``); K, M, G and T are powers of 1000, ``Ki`` and so on of 1024; ``/s`` may be left out;
- a count takes the letters as a rate does, and names no unit;
- a duration is in ``us``, ``ms`` or ``s``.

Only 0 means the same without a unit; any other size, rate or duration without one is refused, as are a rate in ``bps``,
which is bits to most and bytes to tc(8), and a small ``b`` after a small ``m``, ``g`` or ``t``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple, NewType

from precopy.errors import UsageError

RamPage = NewType("RamPage", int)
"""Index of a page in the ram_addr space, in which all RAM blocks lie side by side."""

GuestPhysicalAddress = NewType("GuestPhysicalAddress", int)
"""Byte address that the guest's CPU sees (gpa)."""

HostAddress = NewType("HostAddress", int)
"""Byte address in this process (hva)."""

PAGE_SIZE = 4096
"""Bytes in a page of every guest that precopy runs itself (x86-64 base pages)."""

SLOWEST_BYTES_PER_S = 64_000
"""Bytes a second. A peer that takes or sends less than this, apart from its time-out, is given up: at this rate a page
takes a sixteenth of a second."""

_NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]+))?[ \t]*([A-Za-z/]*)")
_UNIT = re.compile(r"(?:([KMGTkmgt])([Ii])?)?(B|b|bit|bits|[Bb]ps)?(/s)?")
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_BITS = 8
_MAX = 1 << 62
MAX_SECONDS = 2e6
"""23 days: poll(2), and so a socket's time-out in Python, takes no more than 2**31 ms."""
_MOST_DIGITS = 24
"""Before the point and after it: more than any number that is meant has."""
_QUOTED = 40
"""Characters of what was written that an error repeats."""


class _Written(NamedTuple):
    """A number as it was written: ``digits / 10**decimals``, its text, and what stands behind it."""

    digits: int
    decimals: int
    text: str
    unit: str


def parse_size(text: str) -> int:
    """Bytes of a size such as ``256M``, ``256MiB`` or ``1.5G`` (powers of 1024). Raises `UsageError`."""
    number = _written(text, "a size", "256M or 4GiB")
    power, _, kind, per_s = _unit(number, text, "a size", "256M or 4GiB")
    if per_s or kind not in ("", "B"):
        raise UsageError(f"{_quoted(text)} is not a size: those are bytes, and b is a bit; write it like 256M or 4GiB")
    if not number.unit and number.digits:
        plain = number.text
        raise UsageError(f"{_quoted(text)} has no unit; write {plain}M for MiB (2^20 bytes) or {plain}B for bytes")
    return _whole(number, 1024**power, 1, text, "a size")


def parse_rate(text: str) -> int:
    """Bytes a second of a rate such as ``125M``, ``125MB/s``, ``64MiB/s`` or ``1Gb/s``. Raises `UsageError`."""
    example = "125MB/s (bytes) or 1Gb/s (bits)"
    number = _written(text, "a rate", example)
    power, binary, kind, _ = _unit(number, text, "a rate", example)
    letter = number.unit[:1] if power else ""
    if kind in ("bps", "Bps") or (kind == "b" and letter in ("m", "g", "t")):
        plain = number.text + letter.upper() + ("i" if binary else "")
        raise UsageError(
            f"{_quoted(text)} may mean bits or bytes a second; write {plain}b/s for bits or {plain}B/s for bytes"
        )
    if not number.unit.removesuffix("/s") and number.digits:
        plain = number.text
        raise UsageError(
            f"{_quoted(text)} has no unit; write {plain}MB/s or {plain}B/s for bytes, {plain}Mb/s for bits"
        )
    scale = (1024 if binary else 1000) ** power
    return _whole(number, scale, _BITS if kind in ("b", "bit", "bits") else 1, text, "a rate")


def parse_count(text: str) -> int:
    """A count such as ``20000``, ``20K`` (a power of 1000) or ``20Ki`` (of 1024). Raises `UsageError`."""
    number = _written(text, "a count", "20000 or 20K")
    power, binary, kind, per_s = _unit(number, text, "a count", "20000 or 20K")
    if kind or per_s:
        raise UsageError(f"{_quoted(text)} is not a count, which has no unit; write it like 20000 or 20K")
    scale = (1024 if binary else 1000) ** power
    if number.digits * scale % 10**number.decimals:
        raise UsageError(f"{_quoted(text)} is not a whole number, as a count is")
    return _whole(number, scale, 1, text, "a count")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``300ms``, ``2s`` or ``0.5s``. Raises `UsageError`."""
    number = _written(text, "a duration", "300ms or 2s")
    unit = number.unit.lower()
    if not unit and number.digits:
        plain = number.text
        raise UsageError(f"{_quoted(text)} has no unit; write {plain}ms for milliseconds or {plain}s for seconds")
    if unit and unit not in _SECONDS:
        raise UsageError(f"{_quoted(text)} is not a duration, whose units are us, ms and s; write it like 300ms or 2s")
    seconds = float(number.text) * _SECONDS.get(unit, 1.0)
    if seconds > MAX_SECONDS:
        raise UsageError(f"{_quoted(text)} is too large to be a duration")
    return seconds


def _written(text: str, what: str, example: str) -> _Written:
    match = _NUMBER.fullmatch(text.strip(" \t"))
    if match is None:
        comma = ", with a point and no comma" if re.search("[0-9],[0-9]", text) else ""
        raise UsageError(f"{_quoted(text)} is not {what}; write it like {example}{comma}")
    whole, part, unit = match[1].lstrip("0") or "0", (match[2] or "").rstrip("0"), match[3]
    if len(whole) > _MOST_DIGITS:
        raise UsageError(f"{_quoted(text)} is too large to be {what}")
    if len(part) > _MOST_DIGITS:
        raise UsageError(f"{_quoted(text)} has more digits after the point than {what} has")
    return _Written(int(whole + part), len(part), f"{whole}.{part}" if part else whole, unit)


def _unit(number: _Written, text: str, what: str, example: str) -> tuple[int, bool, str, bool]:
    """The power that the letter stands for, whether ``i`` follows it, B or b (in its spellings), and whether ``/s``."""
    match = _UNIT.fullmatch(number.unit)
    if match is None:
        raise UsageError(f"{_quoted(text)} is not {what}; write it like {example}")
    return _POWER[(match[1] or "").upper()], match[2] is not None, match[3] or "", match[4] is not None


def _whole(number: _Written, scale: int, parts: int, text: str, what: str) -> int:
    """``scale / parts`` times the number, to the nearest whole one."""
    count, of = number.digits * scale, int(10**number.decimals) * parts
    value = (2 * count + of) // (2 * of)
    if value > _MAX:
        raise UsageError(f"{_quoted(text)} is too large to be {what}")
    if number.digits and not value:
        raise UsageError(f"{_quoted(text)} is too small to be {what}: it is less than one")
    return value


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}...")


def check_seconds(what: str, seconds: object, *, zero: bool = False, endless: bool = False) -> float:
    """``seconds`` as a float. Raises `UsageError`, which names ``what``, unless it is a number above 0 (or 0, with
    ``zero``), not infinite unless ``endless``. What is above `MAX_SECONDS` counts as that."""
    value = _real(what, "seconds, such as 0.3", seconds)
    if not (value > 0 or (zero and value == 0)) or (math.isinf(value) and not endless):
        wanted = "at least 0" if zero else "above 0"
        raise UsageError(f"{what} has to be {wanted}{'' if endless else ' and finite'}: it is {seconds}")
    return value if math.isinf(value) else min(value, MAX_SECONDS)


def check_bandwidth(bytes_per_s: object, least: int) -> None:
    """Raises `UsageError` unless the largest bandwidth is a finite number of bytes a second from ``least`` on."""
    what = "the largest bandwidth"
    if not least <= _real(what, "bytes a second, such as 125_000_000", bytes_per_s) < math.inf:
        raise UsageError(f"{what} has to be at least {least} bytes a second and finite: it is {bytes_per_s}")


def check_bytes(what: str, size: object) -> int:
    """``size`` as an int. Raises `UsageError`, which names ``what``, unless it is a whole number."""
    if isinstance(size, bool) or not isinstance(size, Integral):
        raise UsageError(f"{what} is a whole number of bytes, such as 64 << 20, not {shown(size)}")
    return int(size)


def check_integer(what: str, number: object) -> int:
    """``number`` as an int. Raises `UsageError`, which names ``what``, unless it is a whole number."""
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise UsageError(f"{what} is a whole number, not {shown(number)}")
    return int(number)


def check_count(what: str, number: object, least: int) -> int:
    """``number`` as an int. Raises `UsageError`, which names ``what``, unless it is a whole number from ``least``
    on."""
    if isinstance(number, bool) or not isinstance(number, Integral) or int(number) < least:
        raise UsageError(f"{what} is a whole number from {least} on, not {shown(number)}")
    return int(number)


def check_flag(what: str, value: object) -> bool:
    """``value`` as a bool. Raises `UsageError`, which names ``what``, unless it is True or False, numpy's included."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):  # which is not imported here
        return bool(value)
    raise UsageError(f"{what} is True or False, not {shown(value)}")


def check_choice(what: str, value: object, choices: Sequence[str]) -> None:
    """Raises `UsageError`, which names ``what``, unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        named = list(map(repr, choices))
        one_of = f"one of {', '.join(named)}" if len(named) > 2 else " or ".join(named)
        raise UsageError(f"{what} is {one_of}, not {shown(value)}")


def check_callback(what: str, function: object) -> None:
    """Raises `UsageError`, which names ``what``, unless ``function`` is None or can be called."""
    if function is not None and not callable(function):
        raise UsageError(f"{what} is a function that is called with one argument, not {shown(function)}")


def shown(value: object) -> str:
    """A value that a program gave, fit for a sentence: on one line, and not long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."


def _real(what: str, of: str, value: object) -> float:
    """``value``, which a program may have given as anything."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{what} is a number of {of}, not {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise UsageError(f"{what} is too large a number: {shown(value)}") from None


def format_size(size: float) -> str:
    """A size for people, in powers of 1024: ``format_size(1966080) == '1.9 MiB'``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def counted(number: int, what: str) -> str:
    """``counted(1, 'snapshot') == '1 snapshot'``, of what has a plural in s."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def format_rate(rate: float) -> str:
    """A rate for people, in powers of 1000: ``format_rate(2.5e9) == '2.50 GB/s'``."""
    return _in_thousands(rate, "B/s")


def format_bits(rate: float) -> str:
    """A rate of ``rate`` bytes a second in bits, as links are sold: ``format_bits(125e6) == '1.00 Gb/s'``."""
    return _in_thousands(rate * _BITS, "b/s")


def _in_thousands(rate: float, unit: str) -> str:
    for prefix in ("", "k", "M"):
        if abs(rate) < 1000:
            digits = ".0f" if not prefix or abs(rate) >= 100 else ".3g"
            return f"{rate:{digits}} {prefix}{unit}"
        rate /= 1000
    return f"{rate:.2f} G{unit}"


def format_duration(seconds: float) -> str:
    """A duration for people, with the unit that leaves one to four digits before the point; less than
    a microsecond has two digits after it."""
    if seconds < 1e-3:
        us = 1e6 * seconds
        return f"{us:.2f} us" if 0.005 <= us < 0.995 else f"{us:.0f} us"
    if seconds < 1:
        return f"{1e3 * seconds:.1f} ms"
    return f"{seconds:.2f} s"
