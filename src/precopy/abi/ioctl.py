"""ioctl request numbers, and the one way that precopy makes an ioctl.

A request number packs direction, argument size, a type letter and a number (Linux: include/uapi/asm-generic/ioctl.h).
The size is taken from the ctypes structure, so a structure that has the wrong size has the wrong number too; the
numbers are held against golden values in tests/golden/test_ioctl_numbers.py.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from dataclasses import dataclass

from precopy.errors import KernelCallError

_SIZE_SHIFT, _TYPE_SHIFT, _DIRECTION_SHIFT = 16, 8, 30
_WRITE, _READ = 1, 2  # as user space sees it: write hands the structure to the kernel

Structure = ctypes.Structure | ctypes.Array[ctypes.c_uint8]


@dataclass(frozen=True)
class Ioctl:
    """A request: its name in the kernel's headers and its number."""

    name: str
    number: int


def _request(name: str, direction: int, letter: int, number: int, size: int) -> Ioctl:
    return Ioctl(name, direction << _DIRECTION_SHIFT | size << _SIZE_SHIFT | letter << _TYPE_SHIFT | number)


def io(name: str, letter: int, number: int) -> Ioctl:
    """A request without a structure (``_IO``)."""
    return _request(name, 0, letter, number, 0)


def iow(name: str, letter: int, number: int, structure: type[ctypes._CData]) -> Ioctl:
    """A request whose structure the kernel reads (``_IOW``)."""
    return _request(name, _WRITE, letter, number, ctypes.sizeof(structure))


def ior(name: str, letter: int, number: int, structure: type[ctypes._CData]) -> Ioctl:
    """A request whose structure the kernel fills (``_IOR``)."""
    return _request(name, _READ, letter, number, ctypes.sizeof(structure))


def iowr(name: str, letter: int, number: int, structure: type[ctypes._CData]) -> Ioctl:
    """A request whose structure the kernel reads and fills (``_IOWR``)."""
    return _request(name, _READ | _WRITE, letter, number, ctypes.sizeof(structure))


def call(fd: int, request: Ioctl, argument: Structure | int = 0, *, target: str) -> int:
    """Makes the ioctl and returns its result. A structure is passed in place, so the kernel may change it.

    Raises `KernelCallError` that names the request and ``target``; `InterruptedError` passes through, because only
    the caller knows what a signal means (KVM_RUN).
    """
    try:
        return fcntl.ioctl(fd, request.number, argument)
    except InterruptedError:
        raise
    except OSError as error:
        raise failure(request, error.errno or 0, target=target) from error


def failure(request: Ioctl, number: int, *, target: str) -> InterruptedError | KernelCallError:
    """The error of an ioctl that failed with errno ``number``, however it was made: see `call`."""
    if number == errno.EINTR:
        return InterruptedError(number, os.strerror(number))
    return KernelCallError(request.name, target, number)
