"""A sync of the KVM dirty log as one native call (extra ``fast``): the get ioctls of all slots, the merge into what is
pending, the counts and the marks of chunks, without the interpreter and its lock. Importing this imports numba.

Laws 1 and 2: where a get fails, those before it have fetched bits that may be cleared from now on, so they are reported
all the same, and the error is the one that `precopy.abi.ioctl.call` raises.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from precopy.abi import kvm
from precopy.abi.ioctl import failure
from precopy.abi.native_calls import CLOCK_MONOTONIC, clock_gettime, errno_location, ioctl
from precopy.bitmap import Bitmap, Words
from precopy.bitmap.native import FLAGS, NUMBERS, READ_WORDS, WORDS, compiled, take, types
from precopy.dirty.merge import Merge, Merged

_SECONDS = types.float64[::1]


@compiled(types.float64(NUMBERS))
def _now(timespec: Any) -> float:
    clock_gettime(CLOCK_MONOTONIC, timespec.ctypes.data)
    return float(timespec[0] + timespec[1] * 1e-9)


@compiled(types.UniTuple(types.int64, 2)(types.int32, types.uint64, NUMBERS, NUMBERS, _SECONDS, NUMBERS))
def _fetch(vm: int, request: int, arguments: Any, calls: Any, spent: Any, timespec: Any) -> tuple[int, int]:
    """Makes ``request`` with each of ``arguments``, which are addresses; returns which one failed and errno, or -1."""
    start = _now(timespec)
    for at in range(arguments.size):
        if ioctl(vm, request, arguments[at]) < 0:
            return at, errno_location()[0]
        end = _now(timespec)
        calls[at] += 1
        spent[at] += end - start
        start = end
    return -1, 0


@compiled(
    types.Tuple((types.int64, types.int64, types.uint64, types.uint64, types.float64))(
        types.int32, types.uint64, NUMBERS, NUMBERS, _SECONDS, NUMBERS,
        WORDS, WORDS, WORDS, READ_WORDS, FLAGS, types.int64, types.boolean,
    )
)  # fmt: skip
def _sync(
    vm: int, request: int, arguments: Any, calls: Any, spent: Any, timespec: Any,
    found: Words, pending: Words, spare: Words, source: Words, marked: Any, word_shift: int, empty: bool,
) -> tuple[int, int, int, int, float]:  # fmt: skip
    """`_fetch`, then `precopy.bitmap.native.take`: what these return, and the seconds that the latter took."""
    failed, errno = _fetch(vm, request, arguments, calls, spent, timespec)
    if failed >= 0:
        return failed, errno, 0, 0, 0.0
    start = _now(timespec)
    pages, new = take(found, pending, spare, source, marked, word_shift, empty)
    return -1, 0, pages, new, _now(timespec) - start


class NativeGets:
    """The GET_DIRTY_LOG calls of slots of the VM of descriptor ``vm``, ready to be made: ``arguments`` and what each is
    of, for errors. ``shared`` is the bitmap that they fetch into."""

    def __init__(self, vm: int, arguments: Sequence[kvm.DirtyLog], targets: Sequence[str], shared: Bitmap) -> None:
        self._vm, self._targets, self._shared = vm, targets, shared
        self._arguments = arguments  # the kernel reads them by their addresses
        self._addresses = np.array([ctypes.addressof(argument) for argument in arguments], np.int64)
        self._timespec = np.zeros(2, np.int64)
        self._calls: npt.NDArray[np.int64] = np.zeros(len(arguments), np.int64)
        self._spent = np.zeros(len(arguments), np.float64)

    def take_counts(self) -> tuple[list[int], list[float]]:
        """Calls made since this was asked last, by slot, and the seconds spent in them."""
        counts = self._calls.tolist(), self._spent.tolist()
        self._calls.fill(0)
        self._spent.fill(0)
        return counts

    def fetch(self) -> None:
        """Makes all calls. Raises what `precopy.abi.ioctl.call` raises; those before the one that failed are made."""
        failed, errno = _fetch(
            self._vm, kvm.GET_DIRTY_LOG.number, self._addresses, self._calls, self._spent, self._timespec
        )
        if failed >= 0:
            raise failure(kvm.GET_DIRTY_LOG, errno, target=self._targets[failed])

    def sync(self, found: Bitmap, merge: Merge, *, empty: bool) -> Merged:
        """As `precopy.dirty.log.MergingLog.harvest_into`."""
        marked, word_shift = merge.flags
        failed, errno, pages, new, merge_s = _sync(
            self._vm, kvm.GET_DIRTY_LOG.number, self._addresses, self._calls, self._spent, self._timespec,
            found.words, merge.pending.words, merge.dirty.words, self._shared.words, marked, word_shift, empty,
        )  # fmt: skip
        if failed >= 0:
            found.add(self._shared)
            raise failure(kvm.GET_DIRTY_LOG, errno, target=self._targets[failed])
        merge.forget()
        return Merged(pages, new, merge_s)
