"""One of several things to be measured that failed: it is noted, and the others are measured all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from precopy.errors import PrecopyError
from precopy.report.kinds.shared import Failed

__all__ = ["Failed", "T", "attempt"]

T = TypeVar("T")


def attempt(name: str, measure: Callable[[], T]) -> T | Failed:
    """What ``measure`` returns, or the error of ours that it raised."""
    try:
        return measure()
    except PrecopyError as error:
        return Failed.of(name, error)
