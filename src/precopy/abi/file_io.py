"""Reads and writes at a place of a file that go on until all is done.

The kernel moves at most 0x7ffff000 bytes (2 GiB less a page) in one call, and may always move less than it was asked
for. Source: read(2), write(2).
"""

from __future__ import annotations

import os


def read_at(fd: int, into: memoryview, offset: int) -> int:
    """Fills ``into`` from ``offset`` on; returns how many bytes there were: fewer only at the file's end. Raises
    `OSError`."""
    done = 0
    while done < into.nbytes:
        got = os.preadv(fd, [into[done:]], offset + done)
        if not got:
            break
        done += got
    return done


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """Writes all of ``data`` at ``offset``. Raises `OSError`."""
    while data.nbytes:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
