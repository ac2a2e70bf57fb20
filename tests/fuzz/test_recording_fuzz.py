"""Damaged and hostile recordings: each ends in one sentence, or in a trace that can be replayed. Law 5 for files."""

from __future__ import annotations

import importlib.util
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precopy.errors import PrecopyError, SnapshotDamaged, UsageError
from precopy.planning import OURS
from precopy.planning.model.trace import Trace
from precopy.planning.replay.replay import Replayer
from precopy.recording.files import read_recording
from precopy.recording.format import HEAD, MAX_PAGES, OPENING, Kind, checksum, split
from precopy.units import PAGE_SIZE
from support.peak import forget_peak, peak_kib
from support.traces import BANDWIDTH, hot_and_cold, record, write

ZSTD = importlib.util.find_spec("zstandard") is not None
OLD = Path(__file__).parents[1] / "golden/recordings/version-1.recording"
TRACE = record(hot_and_cold(BANDWIDTH / PAGE_SIZE, 64), mid_round=1)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "recording"
    write(TRACE, path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recording"


def read(path: Path, data: bytes) -> Trace | None:
    """The trace, replayed; None where one sentence says that there is none."""
    path.write_bytes(data)
    try:
        trace = read_recording(path)
        if trace.ram_bytes < 1 << 30:
            Replayer(trace).run(OURS)
    except PrecopyError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert len(text) < 700
        return None
    return trace


def blocks(data: bytes) -> list[tuple[int, int, bytes]]:
    """(offset, kind, payload) of each."""
    found, at = [], len(OPENING)
    while at < len(data):
        kind, length, _ = HEAD.unpack_from(data, at)
        found.append((at, kind, data[at + HEAD.size : at + HEAD.size + length]))
        at += HEAD.size + length
    return found


def joined(parts: list[tuple[int, bytes]], opening: bytes = OPENING) -> bytes:
    """A file of these blocks, all of whose checksums are right."""
    data = opening
    for kind, payload in parts:
        data += HEAD.pack(kind, len(payload), checksum(kind, payload, len(data))) + payload
    return data


def payload(record: Any, words: bytes) -> bytes:
    text = msgspec.json.encode(record)
    return len(text).to_bytes(4, "little") + text + words


def test_a_copy_made_here_is_as_good(good: bytes, path: Path) -> None:
    assert joined([(kind, content) for _, kind, content in blocks(good)]) == good
    assert read(path, good) == TRACE


def test_every_flipped_byte_is_found(good: bytes, path: Path) -> None:
    """Or it makes a block longer than the file, which then ends in its middle."""
    places = {at + n for at, _, content in blocks(good) for n in [*range(24), 60, HEAD.size + len(content) - 1]}
    for at in sorted({*range(len(OPENING)), *places, *range(0, len(good), 211)}):
        for mask in (1, 0x80):
            damaged = bytearray(good)
            damaged[min(at, len(good) - 1)] ^= mask
            path.write_bytes(damaged)
            try:
                trace = read_recording(path)
            except PrecopyError:
                continue
            assert "cut short" in trace.note
            assert trace.rounds == TRACE.rounds[: len(trace.rounds)]


def test_blocks_elsewhere_are_found(good: bytes, path: Path) -> None:
    """A checksum is of a block in its place."""
    (first, *_), (at, _, content) = blocks(good)[1:3]
    length = HEAD.size + len(content)
    path.write_bytes(good[:first] + good[at : at + length] + good[first:])
    with pytest.raises(SnapshotDamaged, match=f"the block at byte {first}: it does not match its checksum"):
        read_recording(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), opening=st.booleans())
def test_random_bytes(path: Path, data: bytes, opening: bool) -> None:
    assert read(path, OPENING * opening + data) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kinds=st.lists(st.sampled_from([0, *Kind, 5, 255]), max_size=5), contents=st.lists(st.binary(max_size=60)))
def test_random_blocks(path: Path, kinds: list[int], contents: list[bytes]) -> None:
    assert read(path, joined(list(zip(kinds, contents, strict=False)))) is None


numbers = st.sampled_from([0, -1, 1, 63, 64, 2**31, 2**40, 2**63 - 1, 2**64, 1e-300, 1e300, -1e-9, 0.5, 1e9])
values = st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=5), st.just([]), st.just({}))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a record has its plain values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return [path]
    return [leaf for key, inner in items for leaf in leaves(inner, (*path, key))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=3 * settings().max_examples)
@given(data=st.data())
@pytest.mark.parametrize("version", [1, 2])
def test_no_record_does_harm(good: bytes, path: Path, version: int, data: st.DataObject) -> None:
    """Any value of any record may be any other, and all checksums be right."""
    good = OLD.read_bytes() if version == 1 else good
    parts = [(kind, content) for _, kind, content in blocks(good)]
    number = data.draw(st.integers(0, len(parts) - 1))
    kind, content = parts[number]
    record, words = split(content)
    changed = msgspec.json.decode(record)
    where = data.draw(st.sampled_from(leaves(changed)))
    inner = changed
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = data.draw(values)
    try:
        parts[number] = (kind, payload(changed, words))
    except OverflowError:
        return  # no such JSON can be
    read(path, joined(parts, good[: len(OPENING)]))


@pytest.mark.parametrize("pages", [MAX_PAGES, MAX_PAGES - 64, 1 << 40])
def test_claims_are_not_allocated(good: bytes, path: Path, pages: int) -> None:
    """A layout of up to 4 TiB, with bitmaps that are a few bytes long."""
    parts = [(kind, content) for _, kind, content in blocks(good)]
    begun = msgspec.json.decode(split(parts[0][1])[0])
    begun["blocks"] = [{"name": "ram", "first_page": 0, "pages": pages}]
    forget_peak()
    before = peak_kib()
    assert read(path, joined([(Kind.BEGIN, payload(begun, b"")), *parts[1:]])) is None
    assert peak_kib() - before < 64 << 10


@pytest.mark.parametrize("packing", ["zlib", "zstd"] if ZSTD else ["zlib"])
@pytest.mark.parametrize("length", [0, 2047, 2049, 100 << 20])
def test_a_bitmap_that_unpacks_to_another_length(good: bytes, path: Path, packing: str, length: int) -> None:
    parts = [(kind, content) for _, kind, content in blocks(good)]
    number = next(n for n, (kind, _) in enumerate(parts) if kind == Kind.ROUND)
    record = msgspec.json.decode(split(parts[number][1])[0])
    record["dirty"] = {"packing": packing, "pages": 0}
    path.write_bytes(joined([*parts[:number], (Kind.ROUND, payload(record, _packed(packing, bytes(length))))]))
    with pytest.raises(SnapshotDamaged, match=r"cannot be decompressed|is not as long as the layout's"):
        read_recording(path)


@pytest.mark.parametrize("packing", ["zlib", "zstd"] if ZSTD else ["zlib"])
def test_another_number_of_pages(good: bytes, path: Path, packing: str) -> None:
    parts = [(kind, content) for _, kind, content in blocks(good)]
    number = next(n for n, (kind, _) in enumerate(parts) if kind == Kind.ROUND)
    record = msgspec.json.decode(split(parts[number][1])[0])
    record["dirty"] = {"packing": packing, "pages": 5}
    words = _packed(packing, bytes([7]) + bytes(2047))
    path.write_bytes(joined([*parts[:number], (Kind.ROUND, payload(record, words))]))
    with pytest.raises(SnapshotDamaged, match="its bitmap has 3 pages and not 5"):
        read_recording(path)


def test_a_file_of_one_byte_less_or_more(good: bytes, path: Path) -> None:
    path.write_bytes(good[:-1])
    assert "cut short" in read_recording(path).note
    path.write_bytes(good + b"\0")
    assert "cut short" in read_recording(path).note
    path.write_bytes(OPENING)
    with pytest.raises(UsageError, match="before one began"):
        read_recording(path)


def _packed(packing: str, content: bytes) -> bytes:
    if packing == "zlib":
        return zlib.compress(content)
    import zstandard

    return zstandard.ZstdCompressor().compress(content)
