"""Files that take a few KiB on disk and claim gigabytes: read with memory for what is there (law 5)."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Runs
from precopy.snapshot_store.chain import visible
from support.patience import IN_TIME_S

MOST_MIB = 64

PROGRAM = textwrap.dedent(
    """
    import functools, os, shutil, sys

    import numpy as np
    import xxhash

    from precopy import snapshot_store as store
    from precopy.errors import PrecopyError
    from precopy.memory.packing import Compression
    from precopy.snapshot_store.format import Form, Header, Parent, Table, table_bytes
    from precopy.bitmap import Runs, NO_RUNS

    TIB4 = 4 << 40
    NO_SUMS, NO_LENGTHS = np.empty(0, np.uint64), np.empty(0, np.int64)

    def header(number, parent, **fields):
        claims = dict(form=Form.PACKED, compression=Compression.NONE, content_runs=0, content_pages=0, zero_runs=0,
                      zero_pages=0, data_bytes=0, table_checksum=0)
        claims.update(fields)
        made = Header(number=number, id=f"{number:016x}", parent=parent, created_s=0.0, size=TIB4, page_size=4096,
                      table_bytes=0, **claims)
        claims["table_bytes"] = table_bytes(made)
        return Header(number=number, id=made.id, parent=parent, created_s=0.0, size=TIB4, page_size=4096, **claims)

    @functools.cache  # of half a gigabyte, for many a shape and act
    def zeros_checksum(length):
        digest = xxhash.xxh3_64()
        while length:
            digest.update(bytes(min(length, 1 << 20)))
            length -= min(length, 1 << 20)
        return digest.intdigest()

    def put(where, made, table=None):
        with open(os.path.join(where, f"{made.number:08d}.snapshot"), "wb") as file:
            file.write(made.encode())
            file.truncate(made.file_bytes)
            if table is not None:
                file.seek(made.table_offset)
                file.write(table)

    def with_table(number, parent, table, **fields):
        encoded = table.encode()
        return header(number, parent, table_checksum=xxhash.xxh3_64_intdigest(encoded), **fields), encoded

    def hole(form, runs, zero=0, compression=Compression.NONE):
        def build(where):
            claims = dict(form=form, compression=compression, content_runs=runs, content_pages=runs, zero_runs=zero,
                          zero_pages=zero, data_bytes=TIB4 if form is Form.IMAGE else runs * 4096)
            parent = None if form is Form.IMAGE else Parent(1, f"{1:016x}")
            if parent is not None:
                put(where, *with_table(1, None, Table(NO_RUNS, NO_RUNS, NO_SUMS, NO_LENGTHS), form=Form.IMAGE,
                                       data_bytes=TIB4))
            made = header(1 if parent is None else 2, parent, **claims)
            made = header(made.number, parent, **claims, table_checksum=zeros_checksum(made.table_bytes))
            put(where, made)
        return build

    def chain(where):
        '''An honest chain of a memory of 4 TiB, all of it zero but for one page.'''
        page = bytes([7]) * 4096
        sums = np.array([xxhash.xxh3_64_intdigest(page)], np.uint64)
        one = Runs.of((5, 1))
        first, table = with_table(1, None, Table(one, NO_RUNS, sums, NO_LENGTHS), form=Form.IMAGE, data_bytes=TIB4,
                                  content_runs=1, content_pages=1)
        put(where, first, table)
        with open(os.path.join(where, "00000001.snapshot"), "r+b") as file:
            file.seek(4096 + 5 * 4096)
            file.write(page)
        for number in range(2, 6):
            zero = Runs.of((0, (1 << 30) - 2 * number))
            made, table = with_table(number, Parent(number - 1, f"{number - 1:016x}"),
                                     Table(NO_RUNS, zero, NO_SUMS, NO_LENGTHS), zero_runs=1, zero_pages=zero.pages)
            put(where, made, table)

    def content_of_holes(where):
        '''All that its table says is there, page by page, and the file has none of it.'''
        put(where, *with_table(1, None, Table(NO_RUNS, NO_RUNS, NO_SUMS, NO_LENGTHS), form=Form.IMAGE, data_bytes=TIB4))
        runs = 1 << 16
        group = xxhash.xxh3_64_intdigest(bytes(256 * 4096))
        content = Runs(np.arange(runs, dtype=np.int64) * 2, np.ones(runs, np.int64))
        table = Table(content, NO_RUNS, np.full(runs // 256, group, np.uint64), NO_LENGTHS)
        put(where, *with_table(2, Parent(1, f"{1:016x}"), table, content_runs=runs, content_pages=runs,
                               data_bytes=runs * 4096))

    SHAPES = {
        "holes": content_of_holes,
        "image": hole(Form.IMAGE, 1 << 25),
        "packed": hole(Form.PACKED, 1 << 25),
        "zero": hole(Form.PACKED, 0, 1 << 25),
        "both": hole(Form.PACKED, 1 << 24, 1 << 24),
        "compressed": hole(Form.PACKED, 1 << 24, 0, Compression.ZSTD),
        "chain": chain,
    }
    where, out = sys.argv[1], sys.argv[2]

    def most():
        '''KiB, of this program alone: ru_maxrss counts what its parent held before it was started, too.'''
        with open("/proc/self/status") as status:
            return int(next(line.split()[1] for line in status if line.startswith("VmHWM")))

    def opened():
        memory = store.open_memory(where, TIB4)
        assert bytes(memory.view[:8]) == bytes(8)

    ACTS = {
        "snapshots": lambda: store.snapshots(where),
        "verify": lambda: store.verify(where),
        "restore": opened,
        "export": lambda: store.export(where, out),
        "compact": lambda: store.compact(where),
    }
    for shape, build in SHAPES.items():
        for act, run in ACTS.items():
            shutil.rmtree(where, ignore_errors=True)
            os.mkdir(where)
            build(where)
            before = most()
            why = "done"
            try:
                run()
            except PrecopyError as error:
                why = str(error).replace(where, "")[:100]
            took = most() - before >> 10
            print(f"{shape} {act} {took} {why}", flush=True)
    """
)


def test_memory_is_taken_for_what_is_there_only(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "s"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=5 * IN_TIME_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7 * 5
    for line in lines:
        shape, act, took, why = line.split(maxsplit=3)
        assert int(took) < MOST_MIB, line
        if shape in ("chain", "holes") or act == "snapshots" or (shape, act) == ("image", "compact"):
            assert why == "done", line
        elif act != "verify":
            assert "its table has a hole" in why, line


PAGES = 24
runs = st.lists(st.integers(0, PAGES - 1), max_size=PAGES, unique=True).map(sorted)


@given(tables=st.lists(st.tuples(runs, runs), min_size=1, max_size=6))
def test_what_shows_of_a_chain(tables: list[tuple[list[int], list[int]]]) -> None:
    """Against a page at a time."""
    tables = [
        (content, sorted(set(zero) - set(content)) if number else []) for number, (content, zero) in enumerate(tables)
    ]
    shown, zeroed = visible(
        [(Runs.from_indexes(np.array(c, np.int64)), Runs.from_indexes(np.array(z, np.int64))) for c, z in tables]
    )
    expected: list[list[int]] = [[] for _ in tables]
    gone: list[int] = []
    for page in range(PAGES):
        newest = max((number for number, (c, z) in enumerate(tables) if page in c or page in z), default=None)
        if newest is not None and page in tables[newest][0]:
            expected[newest].append(page)
        elif newest is not None and page in tables[0][0]:
            gone.append(page)
    assert [one.indexes().tolist() for one in shown] == expected
    assert zeroed.indexes().tolist() == gone
