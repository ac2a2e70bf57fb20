"""userfaultfd on Linux: its structures and requests (include/uapi/linux/userfaultfd.h), and how to open one.

Only write protection that the kernel resolves by itself (``UFFD_FEATURE_WP_ASYNC``) is used here: no fault is ever
handed to user space, so the descriptor is never read.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from ctypes import c_uint64

from precopy.abi.ioctl import call, io, ior, iowr
from precopy.errors import KernelCallError, Unsupported

_UFFDIO = 0xAA

API = 0xAA
"""``UFFD_API``: the kernel knows no other version."""

FEATURE_PAGEFAULT_FLAG_WP = 1 << 0
FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
FEATURE_WP_UNPOPULATED = 1 << 13
FEATURE_WP_ASYNC = 1 << 15

REGISTER_MODE_WP = 1 << 1
WRITEPROTECT_MODE_WP = 1 << 0

USER_MODE_ONLY = 1
"""``UFFD_USER_MODE_ONLY``: faults that happen inside the kernel are not handed out. Needs no privilege, and makes no
difference to asynchronous write protection, which hands out none at all."""

DEVICE = "/dev/userfaultfd"

_SYSCALL = {"x86_64": 323, "AMD64": 323, "aarch64": 282, "riscv64": 282}
"""``__NR_userfaultfd`` by machine."""


class UffdioRange(ctypes.Structure):
    """``struct uffdio_range``: a user address and a length, both in bytes and multiples of the page size."""

    _fields_ = (("start", c_uint64), ("len", c_uint64))


class Api(ctypes.Structure):
    """``struct uffdio_api``: the features asked for come back as those that there are."""

    _fields_ = (("api", c_uint64), ("features", c_uint64), ("ioctls", c_uint64))


class Register(ctypes.Structure):
    """``struct uffdio_register``."""

    _fields_ = (("range", UffdioRange), ("mode", c_uint64), ("ioctls", c_uint64))


class WriteProtect(ctypes.Structure):
    """``struct uffdio_writeprotect``."""

    _fields_ = (("range", UffdioRange), ("mode", c_uint64))


UFFDIO_API = iowr("UFFDIO_API", _UFFDIO, 0x3F, Api)
UFFDIO_REGISTER = iowr("UFFDIO_REGISTER", _UFFDIO, 0x00, Register)
UFFDIO_UNREGISTER = ior("UFFDIO_UNREGISTER", _UFFDIO, 0x01, UffdioRange)
UFFDIO_WRITEPROTECT = iowr("UFFDIO_WRITEPROTECT", _UFFDIO, 0x06, WriteProtect)
USERFAULTFD_IOC_NEW = io("USERFAULTFD_IOC_NEW", 0xAA, 0x00)


def open_userfaultfd() -> int:
    """A new userfaultfd, non-blocking and closed on exec. It needs no privilege where the system call is allowed;
    where it is not (containers' seccomp profiles), ``/dev/userfaultfd`` is the other way.

    Raises `Unsupported`, `KernelCallError`.
    """
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return _syscall(flags | USER_MODE_ONLY)
    except KernelCallError as error:
        refused = error
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        pass
    else:
        try:
            return call(device, USERFAULTFD_IOC_NEW, flags | USER_MODE_ONLY, target=DEVICE)
        finally:
            os.close(device)
    if refused.errno == errno.ENOSYS:
        raise Unsupported("this kernel has no userfaultfd", "use one with CONFIG_USERFAULTFD") from refused
    if refused.errno in (errno.EPERM, errno.EACCES):
        raise Unsupported(
            "this process may not use userfaultfd",
            f"allow the system call (a container's seccomp profile), give it CAP_SYS_PTRACE or access to {DEVICE}, "
            f"or set vm.unprivileged_userfaultfd=1",
        ) from refused
    raise refused


def enable(fd: int, features: int) -> None:
    """Tells a new userfaultfd which features are meant. Raises `KernelCallError`: EINVAL where one is missing."""
    call(fd, UFFDIO_API, Api(API, features, 0), target="the userfaultfd")


def _syscall(flags: int) -> int:
    machine = platform.machine()
    if machine not in _SYSCALL:
        raise Unsupported(f"the number of userfaultfd on {machine} is not known here", "use x86-64")
    descriptor = int(ctypes.CDLL(None, use_errno=True).syscall(_SYSCALL[machine], flags))
    if descriptor < 0:
        raise KernelCallError("userfaultfd", "this process", ctypes.get_errno())
    return descriptor
