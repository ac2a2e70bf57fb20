"""A ring of io_uring with a registered buffer: what a device writes without the kernel noticing it.

The buffer's pages are pinned once, when it is registered; reads into it make no fault ever after. That makes the loss
certain which a read with O_DIRECT only risks. Source: io_uring_setup(2), io_uring_register(2), io_uring_enter(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from types import TracebackType
from typing import Self

_SETUP, _ENTER, _REGISTER = 425, 426, 427  # the same on all machines
_REGISTER_BUFFERS = 0
_GETEVENTS = 1
_READ_FIXED, _READ = 4, 22
_SQES = 0x10000000
_PARAMS_BYTES, _SQE_BYTES, _CQE_BYTES = 120, 64, 16

_libc = ctypes.CDLL(None, use_errno=True)


def unavailable() -> str | None:
    """Why there is no io_uring here, or None."""
    try:
        os.close(_call(_SETUP, 1, ctypes.create_string_buffer(_PARAMS_BYTES)))
    except OSError as error:
        return f"io_uring: {error.strerror} (sysctl kernel.io_uring_disabled, or a seccomp profile)"
    return None


class Ring:
    """One request at a time, waited for."""

    def __init__(self) -> None:
        params = ctypes.create_string_buffer(_PARAMS_BYTES)
        self.fd = _call(_SETUP, 1, params)
        entries = struct.unpack_from("I", params, 0)[0]
        sq = struct.unpack_from("10I", params, 40)  # head, tail, mask, entries, flags, dropped, array
        cq = struct.unpack_from("10I", params, 80)  # head, tail, mask, entries, overflow, cqes
        size = max(sq[6] + 4 * entries, cq[5] + 2 * entries * _CQE_BYTES)
        self._rings = mmap.mmap(self.fd, size)  # both, where there is IORING_FEAT_SINGLE_MMAP (Linux 5.4)
        self._sqes = mmap.mmap(self.fd, entries * _SQE_BYTES, offset=_SQES)
        self._sq_tail, self._array = sq[1], sq[6]
        self._cq_head, self._cq_tail, self._cq_mask, self._cqes = cq[0], cq[1], cq[2], cq[5]

    def register(self, address: int, length: int) -> None:
        """Pins ``length`` bytes as buffer 0."""
        vector = struct.pack("QQ", address, length)
        _call(_REGISTER, self.fd, _REGISTER_BUFFERS, ctypes.create_string_buffer(vector, len(vector)), 1)

    def read(self, fd: int, offset: int, address: int, length: int, *, fixed: bool) -> None:
        """Reads ``length`` bytes of a file; ``fixed``: into the registered buffer."""
        self._sqes[:_SQE_BYTES] = struct.pack(
            "BBHiQQIIQH22x", _READ_FIXED if fixed else _READ, 0, 0, fd, offset, address, length, 0, 1, 0
        )
        tail = self._word(self._sq_tail)
        struct.pack_into("I", self._rings, self._array, 0)
        struct.pack_into("I", self._rings, self._sq_tail, tail + 1)
        _call(_ENTER, self.fd, 1, 1, _GETEVENTS, None, 0)
        head = self._word(self._cq_head)
        assert head != self._word(self._cq_tail)
        at = self._cqes + (head & self._word(self._cq_mask)) * _CQE_BYTES
        result = struct.unpack_from("i", self._rings, at + 8)[0]
        struct.pack_into("I", self._rings, self._cq_head, head + 1)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        assert result == length

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sqes.close()
        self._rings.close()
        os.close(self.fd)

    def _word(self, at: int) -> int:
        return int(struct.unpack_from("I", self._rings, at)[0])


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
