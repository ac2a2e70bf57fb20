"""libc's ``ioctl``, its errno and its clock, for code that numba compiles (extra ``fast``).

numba resolves these by name in the process, so that compiled code that calls them can be kept on disk. Importing this
module imports numba; see `precopy.bitmap.native`.
"""

from __future__ import annotations

from typing import Any

from numba.core import types as numba_types

types: Any = numba_types  # it has no types of its own, or wrong ones

CLOCK_MONOTONIC = 1
"""Linux: include/uapi/linux/time.h; what `time.perf_counter` reads."""

ioctl: Any = types.ExternalFunction("ioctl", types.int32(types.int32, types.uint64, types.intp))
"""(descriptor, request, address of the argument) -> result, -1 where it failed."""

errno_location: Any = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())
"""Where this thread's errno is (glibc and musl)."""

clock_gettime: Any = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))
"""(clock, address of seconds and nanoseconds)."""
