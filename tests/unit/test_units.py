"""Sizes, rates, counts and durations: what people write, and what is printed for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import precopy
from precopy.errors import UsageError
from precopy.units import (
    check_bandwidth,
    check_seconds,
    format_bits,
    format_duration,
    format_rate,
    format_size,
    parse_count,
    parse_duration,
    parse_rate,
    parse_size,
)

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1B", 1),
        ("4096B", 4096),
        ("64K", 64 * KIB),
        ("256M", 256 * MIB),
        ("4G", 4 * GIB),
        ("2T", 2 * TIB),
        ("1.5G", GIB + GIB // 2),
        ("0.5k", 512),
        ("16 MiB", 16 * MIB),
        (" 16MB ", 16 * MIB),
        ("7B", 7),
        ("3g", 3 * GIB),
        ("9007199254740993B", 9007199254740993),  # more than a float holds
        ("00.500000000000000000000000000000K", 512),
    ],
)
def test_sizes_are_in_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("0", 0),
        ("125M", 125_000_000),
        ("1.25G", 1_250_000_000),
        ("1.25GB/s", 1_250_000_000),
        ("10K/s", 10_000),
        (" 10K/s ", 10_000),
        ("125MB/s", 125_000_000),
        ("125MB", 125_000_000),
        ("64MiB/s", 64 * MIB),
        ("64Mi", 64 * MIB),
        ("512B/s", 512),
    ],
)
def test_rates_are_in_powers_of_1000(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1Gb/s", 125_000_000),
        ("10Gb", 1_250_000_000),
        ("1000Mb", 125_000_000),
        ("10Gbit", 1_250_000_000),
        ("10gbit/s", 1_250_000_000),
        ("100kb/s", 12_500),
        ("64Mib/s", 8 * MIB),
        ("8b/s", 1),
    ],
)
def test_a_small_b_is_a_bit(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "bits", "bytes_"),
    [
        ("1000Mbps", "1000Mb/s", "1000MB/s"),
        ("866.83mbps", "866.83Mb/s", "866.83MB/s"),
        ("10GBps", "10Gb/s", "10GB/s"),
        ("1gb/s", "1Gb/s", "1GB/s"),
        ("64mib", "64Mib/s", "64MiB/s"),
        ("125000000", "125000000Mb/s", "125000000B/s"),
        ("1.5/s", "1.5Mb/s", "1.5B/s"),
    ],
)
def test_what_may_be_bits_or_bytes_is_refused_with_both(text: str, bits: str, bytes_: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rate(text)
    assert "bits" in str(caught.value)
    assert {bits, bytes_} <= set(str(caught.value).split())
    parse_rate(bits)
    parse_rate(bytes_)


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (parse_size, "512", "write 512M for MiB (2^20 bytes) or 512B for bytes"),
        (parse_duration, "300", "write 300ms for milliseconds or 300s for seconds"),
        (parse_duration, "0.5", "write 0.5ms for milliseconds or 0.5s for seconds"),
        (parse_size, "256Mb", "b is a bit"),
        (parse_size, "256Mbit", "b is a bit"),
        (parse_size, "1M/s", "those are bytes"),
        (parse_count, "20KB", "has no unit"),
        (parse_count, "20K/s", "has no unit"),
        (parse_count, "1.5", "is not a whole number"),
        (parse_duration, "5min", "us, ms and s"),
        (parse_duration, "1,5s", "with a point and no comma"),
        (parse_size, "0.1B", "too small"),
        (parse_rate, "1b/s", "too small"),
        (parse_size, "0." + "0" * 30 + "1G", "more digits after the point"),
    ],
)
def test_a_refusal_says_what_to_write(parse: Callable[[str], float], text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("20000", 20_000), ("20K", 20_000), ("1.5M", 1_500_000)])
def test_counts_are_in_powers_of_1000(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("300ms", 0.3), ("2s", 2.0), ("0.5s", 0.5), ("15us", 15e-6), ("1.5 S", 1.5), (" 20 ms ", 0.02)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


NEITHER = ["", " ", "-1", "+1", "1e3", "nan", "inf", "1.", ".5", "1,5", "0x10", "1 2", "one", "1P", "1KK", "1M\n1"]
NEITHER += ["1_000", "1'000", "1,000M", "1 000M", "1.5.1G", "1e9B", "-1M"]
# Full-width and Arabic digits; the Kelvin sign and the long s, which fold to K and to s where case is ignored.
NEITHER += ["\uff11\uff12M", "\u0661M", "1\u212a", "1\u017f"]


@pytest.mark.parametrize("parse", [parse_size, parse_rate, parse_count, parse_duration])
@pytest.mark.parametrize("text", [*NEITHER, "1x", "ms", "K", "1\u00a0M", "1\u00b5s"])
def test_what_is_no_number_is_refused_and_quoted(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert repr(text).strip("'") in str(caught.value)


@pytest.mark.parametrize("parse", [parse_size, parse_rate, parse_count, parse_duration])
@pytest.mark.parametrize("text", ["9" * 30, "9" * 400])
def test_what_is_too_large_is_refused(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(UsageError, match="too large"):
        parse(text)


@pytest.mark.parametrize("parse", [parse_size, parse_rate, parse_count, parse_duration])
def test_an_error_repeats_no_more_than_the_beginning_of_what_was_written(parse: Callable[[str], float]) -> None:
    for text in ("9" * 100_000, "x" * 100_000):
        with pytest.raises(UsageError) as caught:
            parse(text)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["4194305T", "4294967297G"])
def test_a_size_over_any_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="too large to be a size"):
        parse_size(text)


NUMBER = st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,6})?", fullmatch=True)
LETTERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
BYTES, BITS = ["", "B", "/s", "B/s"], ["b", "b/s", "bit", "bit/s", "bits/s"]
BLANKS = st.sampled_from(["", " ", "\t"])


def nearest(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def right_or_refused(parse: Callable[[str], float], text: str, exact: Fraction) -> None:
    """``exact``, to the nearest whole number; refused where that is too large, or 0 for what is not."""
    if nearest(exact) > 2**62 or (exact > 0 and not nearest(exact)):
        with pytest.raises(UsageError, match=r"too (large|small)"):
            parse(text)
    else:
        assert parse(text) == nearest(exact)


@given(NUMBER, BLANKS, st.sampled_from("KMGT"), st.sampled_from(["", "i"]), st.sampled_from(["", "B"]))
def test_a_size_is_what_a_model_of_it_says(number: str, blank: str, letter: str, binary: str, unit: str) -> None:
    right_or_refused(parse_size, number + blank + letter + binary + unit, Fraction(number) * 1024 ** LETTERS[letter])


@given(NUMBER, BLANKS, st.sampled_from(list(LETTERS)), st.booleans(), st.sampled_from(BYTES + BITS))
def test_a_rate_is_what_a_model_of_it_says(number: str, blank: str, letter: str, binary: bool, unit: str) -> None:
    text = number + blank + letter + ("i" if binary and letter else "") + unit
    value = Fraction(number) * (1024 if binary else 1000) ** LETTERS[letter]
    if not letter and unit in ("", "/s") and value:
        with pytest.raises(UsageError, match="has no unit"):
            parse_rate(text)
        return
    right_or_refused(parse_rate, text, value / 8 if unit in BITS else value)


@given(NUMBER, BLANKS, st.sampled_from(["us", "ms", "s"]))
def test_a_duration_is_what_a_model_of_it_says(number: str, blank: str, unit: str) -> None:
    seconds = Fraction(number) / {"us": 10**6, "ms": 10**3, "s": 1}[unit]
    if seconds > 2_000_000:
        with pytest.raises(UsageError, match="too large"):
            parse_duration(number + blank + unit)
    else:
        assert parse_duration(number + blank + unit) == pytest.approx(float(seconds), rel=1e-12)


@given(st.text(max_size=12))
def test_any_text_gives_a_value_or_a_usage_error(text: str) -> None:
    for parse in (parse_size, parse_rate, parse_count, parse_duration):
        try:
            value = parse(text)
        except UsageError:
            continue
        assert 0 <= value < 2**63


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1966080, "1.9 MiB"),
        (256 * MIB, "256 MiB"),
        (4 * GIB, "4.0 GiB"),
        (100 * GIB, "100 GiB"),
        (3 * TIB, "3.0 TiB"),
        (5000 * TIB, "5000.0 TiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_format_size(size: float, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0 B/s"),
        (999, "999 B/s"),
        (1000, "1 kB/s"),
        (1.5e6, "1.5 MB/s"),
        (12_345, "12.3 kB/s"),
        (125e6, "125 MB/s"),
        (2.5e9, "2.50 GB/s"),
        (1e12, "1000.00 GB/s"),
    ],
)
def test_format_rate(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 us"), (15e-6, "15 us"), (0.001, "1.0 ms"), (0.0493, "49.3 ms"), (1.0, "1.00 s"), (75.5, "75.50 s")],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def last_digit(text: str) -> float:
    """What one more in the last printed digit amounts to, in the text's own unit."""
    number = text.split(maxsplit=1)[0]
    return 10.0 ** -len(number.partition(".")[2])


@given(st.integers(0, 10**15))
def test_a_formatted_size_is_read_as_what_it_shows(size: int) -> None:
    text = format_size(size)
    unit = parse_size(f"1 {text.split()[1]}")
    assert parse_size(text) == pytest.approx(size, abs=0.5 * last_digit(text) * unit + 1)


@given(st.integers(0, 10**15), st.booleans())
def test_a_formatted_rate_is_read_as_what_it_shows(rate: int, bits: bool) -> None:
    text = format_bits(rate) if bits else format_rate(rate)
    unit = parse_rate(f"8 {text.split()[1]}") / 8
    if unit * float(text.split()[0]) >= 1:
        assert parse_rate(text) == pytest.approx(rate, abs=0.501 * last_digit(text) * unit + 1)


@given(st.floats(0, 1e6))
def test_a_formatted_duration_is_read_as_what_it_shows(seconds: float) -> None:
    text = format_duration(seconds)
    unit = parse_duration(f"1 {text.split()[1]}")
    assert parse_duration(text) == pytest.approx(seconds, abs=0.501 * last_digit(text) * unit)


@pytest.mark.parametrize("value", [math.nan, -1.0, -math.inf, "1s", None, b"1", [1]], ids=repr)
def test_a_program_gives_numbers(value: Any) -> None:
    with pytest.raises(UsageError, match="the wait"):
        check_seconds("the wait", value, zero=True, endless=True)
    with pytest.raises(UsageError, match="the largest bandwidth"):
        check_bandwidth(value, 64_000)


@pytest.mark.parametrize("size", ["64M", 1.5, math.nan, None], ids=repr)
def test_a_program_gives_whole_bytes(size: Any, tmp_path: Path) -> None:
    for call in (
        lambda: precopy.Memory(size),
        lambda: precopy.open_memory(tmp_path / "none", size),
        lambda: precopy.Standby("tcp:127.0.0.1:0", max_size=size if size is not None else "none"),
    ):
        with pytest.raises(UsageError, match="whole number of bytes"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [int, float, np.int64, np.float32, Fraction])
def test_any_number_will_do(kind: Callable[[int], Any]) -> None:
    check_seconds("the wait", kind(3))
    check_bandwidth(kind(64_000), 64_000)


def test_what_may_be_zero_or_infinite_is_named() -> None:
    check_seconds("the wait", 0, zero=True)
    check_seconds("the wait", math.inf, endless=True)
    with pytest.raises(UsageError, match="above 0 and finite"):
        check_seconds("the wait", 0)
    with pytest.raises(UsageError, match="at least 0 and finite"):
        check_seconds("the wait", math.inf, zero=True)
    with pytest.raises(UsageError, match="finite"):
        check_bandwidth(math.inf, 64_000)
