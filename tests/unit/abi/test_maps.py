"""Lines of /proc/PID/maps: one parser for all that read them."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from precopy.abi.maps import MAPS, MapsEntry
from precopy.abi.residency import mappings
from precopy.abi.shared_maps import SharedFile, shared_at


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        (b"7f00-8f00 rw-p 00000000 00:00 0 \n", MapsEntry(0x7F00, 0x8F00, "rw-p", 0, "00:00", 0, "")),
        (
            b"1000-3000 r--s 00002000 fd:01 77    /a b/c (deleted)\n",
            MapsEntry(0x1000, 0x3000, "r--s", 0x2000, "fd:01", 77, "/a b/c (deleted)"),
        ),
        (b"1000-3000 ---p 00000000 00:00 0    [heap]", MapsEntry(0x1000, 0x3000, "---p", 0, "00:00", 0, "[heap]")),
    ],
)
def test_a_line(line: bytes, entry: MapsEntry) -> None:
    assert MapsEntry.of(line) == entry


def test_this_process_is_read_by_all(tmp_path: Path) -> None:
    """Also where a file's name holds a line end, which the kernel writes as it is but for a line feed."""
    path = tmp_path / "one\rtwo\x0bthree"
    path.write_bytes(bytes(8192))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapping:
        stat = os.fstat(file.fileno())
        with open(MAPS, "rb") as maps:
            (mine,) = [entry for entry in map(MapsEntry.of, maps) if entry.inode == stat.st_ino]
        assert mine.name == str(path)
        assert (mine.shared, mine.readable, mine.writable, mine.end - mine.start) == (True, True, True, 8192)
        (shared,) = shared_at(mine.start, mine.end)
        assert (shared.file, shared.start, shared.end) == (SharedFile(mine.device, stat.st_ino), mine.start, mine.end)
        (mapped,) = mappings(mine.start, mine.end, swapped=True)
        assert (mapped.start, mapped.end, mapped.swapped) == (mine.start, mine.end, 0)
        assert not mapping[0]
