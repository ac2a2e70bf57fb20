"""The bytes of what a program hands over as a buffer."""

from __future__ import annotations

from typing import Any

from precopy.errors import UsageError


def buffer_of(source: Any, instead: str) -> memoryview:
    """A view of an mmap, a ``SharedMemory`` or an array. Raises `UsageError`, which says what to do ``instead``, for
    what is none, or is closed."""
    found = getattr(source, "buf", source)  # of a SharedMemory
    if found is None and source is not None:
        raise UsageError(f"this {type(source).__name__} is closed; {instead}")
    try:
        return memoryview(found)
    except (TypeError, ValueError) as error:  # ValueError: an mmap that was closed, an array of dates
        why = f" ({error})" if isinstance(error, ValueError) else ""
        raise UsageError(f"a {type(source).__name__} is no buffer{why}; {instead}") from None
