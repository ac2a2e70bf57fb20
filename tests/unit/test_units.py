"""Sizes, rates, counts and durations: what people write, and what is printed for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.errors import UsageError
from precopy.units import (
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
        ("1", 1),
        ("4096", 4096),
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
    ],
)
def test_rates_are_in_powers_of_1000(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(("text", "count"), [("0", 0), ("20000", 20_000), ("20K", 20_000), ("1.5M", 1_500_000)])
def test_counts_are_in_powers_of_1000(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("300ms", 0.3), ("2s", 2.0), ("0.5", 0.5), ("15us", 15e-6), ("1.5 S", 1.5), (" 20 ms ", 0.02)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


NEITHER = ["", " ", "-1", "+1", "1e3", "nan", "inf", "1.", ".5", "1,5", "0x10", "1 2", "one", "1P", "1KK", "1M\n1"]


@pytest.mark.parametrize("parse", [parse_size, parse_rate, parse_count, parse_duration])
@pytest.mark.parametrize("text", [*NEITHER, "1x", "ms", "K"])
def test_what_is_no_number_is_refused_and_quoted(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert repr(text).strip("'") in str(caught.value)


@pytest.mark.parametrize("parse", [parse_size, parse_rate, parse_count, parse_duration])
@pytest.mark.parametrize("text", ["9" * 30, "9" * 400])
def test_what_is_too_large_is_refused(parse: Callable[[str], float], text: str) -> None:
    with pytest.raises(UsageError, match="too large"):
        parse(text)


@pytest.mark.parametrize("text", ["4194305T", "4294967297G"])
def test_a_size_over_any_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="too large to be a size"):
        parse_size(text)


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


@given(st.integers(0, 10**15))
def test_a_formatted_size_is_right_within_its_digits(size: int) -> None:
    text = format_size(size)
    assert parse_size(text) == pytest.approx(size, rel=0.051, abs=1)
