"""Damaged and hostile directories of snapshots: each ends in one sentence, or in memory that can be read to its end.

Law 5 for files. Whatever is flipped or cut is found by `verify` at the latest; a header or table that somebody made
with correct checksums cannot make `restore` map what is not there (which would end this very process: SIGBUS).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precopy import restore, snapshot
from precopy.bitmap import Runs
from precopy.errors import PrecopyError, SnapshotDamaged
from precopy.memory.packing import Compression
from precopy.snapshot_store import compact, export, snapshots, verify
from precopy.snapshot_store.format import HEADER_BYTES, MAX_BYTES, Form, Header, Parent, Table, table_bytes
from precopy.units import PAGE_SIZE
from support.snapshots import Written

PAGES = 12
ZSTD = importlib.util.find_spec("zstandard") is not None


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full snapshot, and increments with and without compression."""
    directory = tmp_path_factory.mktemp("good")
    one = Written(PAGES)
    one.write([0, 1, 5, 6, 11], 3)
    snapshot(one.memory, directory)
    one.write([2, 5], 4)
    one.write([6], 0)
    snapshot(one.memory, directory)
    one.write([5, 9], 5)
    snapshot(one.memory, directory, compress="zstd" if ZSTD else None)
    return directory


@pytest.fixture
def directory(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def whole(directory: Path, at: int | None = None) -> bool:
    """Restores and reads everything; False where that says in one sentence that it cannot be."""
    try:
        rows = np.frombuffer(restore(directory, at).view, np.uint64)
        if rows.nbytes <= 1 << 26:
            rows.sum()
        else:
            rows[:: 1 << 21].sum()
    except PrecopyError as error:
        sentence(error)
        return False
    return True


def sentence(error: PrecopyError) -> None:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 600


def names(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.snapshot"))


def places(size: int) -> Iterator[int]:
    """Every byte that is looked at alone, and some of those that only a checksum covers."""
    yield from range(700)
    yield from range(700, HEADER_BYTES, 97)
    yield from range(HEADER_BYTES, size - 200, 997)
    yield from range(max(size - 200, HEADER_BYTES), size)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_flipped_byte_is_found(directory: Path, number: int) -> None:
    path = names(directory)[number - 1]
    data = path.read_bytes()
    for at in places(len(data)):
        for mask in (1, 0x80):
            with open(path, "r+b") as file:
                file.seek(at)
                file.write(bytes([data[at] ^ mask]))
            damage = verify(directory).damage
            assert number in damage, (at, mask)
            assert "\n" not in damage[number]
            whole(directory)
            snapshots(directory)
        path.write_bytes(data)
    assert not verify(directory).damage


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_other_length_is_found(directory: Path, number: int) -> None:
    path = names(directory)[number - 1]
    data = path.read_bytes()
    for size in [*range(100), *range(100, len(data), 509), len(data) - 1, len(data) + 1, len(data) + PAGE_SIZE]:
        path.write_bytes(data[:size].ljust(size, b"\0"))
        assert number in verify(directory).damage, size
        assert not whole(directory)
        with pytest.raises(PrecopyError):
            export(directory, directory / "out")
        assert not (directory / "out").exists()


def test_a_missing_file_is_found(directory: Path) -> None:
    for path in names(directory)[:2]:
        data = path.read_bytes()
        path.unlink()
        assert 3 in verify(directory).damage
        assert not whole(directory)
        path.write_bytes(data)
    assert whole(directory)


def rewritten(path: Path, header: Header, table: bytes | None = None) -> None:
    """Another header, or table, with all checksums right."""
    data = path.read_bytes()
    old = Header.decode(data[:HEADER_BYTES], "", len(data))
    if table is None:
        table = data[old.table_offset :]
    else:
        header = dataclasses.replace(header, table_checksum=xxhash.xxh3_64_intdigest(table), table_bytes=len(table))
    path.write_bytes(header.encode() + data[HEADER_BYTES : old.table_offset] + table)


numbers = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([0, 4096, 8192, 2**31, 2**32, 2**40, 2**42, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64]),
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "number": numbers,
    "id": st.text(max_size=17),
    "parent": st.none() | st.builds(Parent, numbers, st.sampled_from(["0" * 16, "", "x"])),
    "created_s": st.floats(),
    "size": numbers.map(lambda n: n * PAGE_SIZE) | numbers,
    "page_size": numbers,
    "form": st.sampled_from(Form),
    "compression": st.sampled_from(Compression),
    "content_runs": numbers,
    "content_pages": numbers,
    "zero_runs": numbers,
    "zero_pages": numbers,
    "data_bytes": numbers,
    "table_bytes": numbers,
    "table_checksum": numbers,
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(1, 3), changes=st.fixed_dictionaries({}, optional=FIELDS), fit=st.booleans())
def test_no_header_does_harm(good: Path, tmp_path: Path, number: int, changes: dict[str, Any], fit: bool) -> None:
    directory = tmp_path / "copy"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(good, directory)
    path = names(directory)[number - 1]
    header = dataclasses.replace(Header.decode(path.read_bytes()[:HEADER_BYTES], "", path.stat().st_size), **changes)
    try:
        rewritten(path, header)
    except (OverflowError, ValueError):
        return  # no such file can be
    if fit:
        with open(path, "r+b") as file:  # sparse: what it claims is there
            file.truncate(min(max(header.file_bytes, 0), MAX_BYTES))
    whole(directory)
    for act in (verify, compact):
        try:
            if not changes.get("size", 0) > 1 << 30:
                act(directory)
        except PrecopyError as error:
            sentence(error)
    whole(directory)


runs = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 5, 11, 12, 13, 2**31, 2**32, 2**52, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(0, 13),
        st.sampled_from([0, 1, 2, 11, 12, 2**32, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(0, 13),
    ),
    max_size=4,
)


def claiming(header: Header, content: list[tuple[int, int]], zero: list[tuple[int, int]]) -> Header:
    """``header`` of a table with these runs, of no more pages than there are."""
    return dataclasses.replace(
        header,
        content_runs=len(content),
        content_pages=min(sum(length for _, length in content), PAGES),
        zero_runs=len(zero),
        zero_pages=min(sum(length for _, length in zero), PAGES),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(1, 2), content=runs, zero=runs)
def test_no_table_does_harm(
    good: Path, tmp_path: Path, number: int, content: list[tuple[int, int]], zero: list[tuple[int, int]]
) -> None:
    directory = tmp_path / "copy"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(good, directory)
    path = names(directory)[number - 1]
    header = Header.decode(path.read_bytes()[:HEADER_BYTES], "", path.stat().st_size)
    table = np.array([*content, *zero], "<u8").reshape(-1, 2).tobytes() + bytes(8)
    header = claiming(header, content, zero)
    header = dataclasses.replace(
        header, data_bytes=header.size if header.form is Form.IMAGE else header.content_pages * PAGE_SIZE
    )
    table = table[: table_bytes(header)]
    rewritten(path, header, table)
    with open(path, "r+b") as file:
        file.truncate(header.table_offset)
        file.seek(header.table_offset)
        file.write(table)
    whole(directory)
    verify(directory)


@pytest.mark.skipif(not ZSTD, reason="the package zstandard is not installed")
@pytest.mark.parametrize("pages", [1, 3, 1 << 20])
def test_a_frame_that_unpacks_to_more_is_refused(directory: Path, pages: int) -> None:
    import zstandard

    path = names(directory)[2]
    frame = zstandard.ZstdCompressor().compress(bytes(pages * PAGE_SIZE))
    data = path.read_bytes()
    header = Header.decode(data[:HEADER_BYTES], "", len(data))
    assert header.content_pages == 2
    old = Table.decode(data[header.table_offset :], header, "")
    table = Table(old.content, old.zero, old.sums, np.array([len(frame)], np.int64)).encode()
    checksum = xxhash.xxh3_64_intdigest(table)
    header = dataclasses.replace(header, data_bytes=len(frame), table_checksum=checksum)
    path.write_bytes(header.encode() + frame + table)
    with pytest.raises(SnapshotDamaged, match="cannot be decompressed"):
        restore(directory)


def test_content_and_zero_of_one_page(directory: Path) -> None:
    path = names(directory)[1]
    data = path.read_bytes()
    header = Header.decode(data[:HEADER_BYTES], "", len(data))
    old = Table.decode(data[header.table_offset :], header, "")
    table = Table(old.content, Runs.of((5, 1)), old.sums, old.lengths).encode()
    rewritten(path, header, table)
    with pytest.raises(SnapshotDamaged, match="a page with content and as zero"):
        restore(directory)


@pytest.mark.parametrize(
    ("content", "zero"),
    [([(11, 2)], []), ([(12, 1)], []), ([(0, 12), (12, 0)], []), ([(3, 1), (2, 1)], []), ([(2, 2), (3, 1)], []),
     ([(0, 2**64 - 1)], []), ([(1, 2**63)], []), ([], [(11, 2)]), ([], [(5, 1), (5, 1)])],
)  # fmt: skip
def test_runs_that_no_memory_has(content: list[tuple[int, int]], zero: list[tuple[int, int]], good: Path) -> None:
    header = Header.decode(names(good)[1].read_bytes()[:HEADER_BYTES], "", names(good)[1].stat().st_size)
    table = np.array([*content, *zero], "<u8").reshape(-1, 2).tobytes() + bytes(8 * bool(content))
    header = dataclasses.replace(
        claiming(header, content, zero), table_bytes=len(table), table_checksum=xxhash.xxh3_64_intdigest(table)
    )
    with pytest.raises(SnapshotDamaged):
        Table.decode(table, header, "file")
