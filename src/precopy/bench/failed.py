"""One of several things to be measured that failed: it is noted, and the others are measured all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from precopy.errors import NotConverged, PrecopyError

T = TypeVar("T")


@dataclass(frozen=True)
class Failed:
    """What was to be measured, and why it was not: the error's class, sentence and exit code. ``converged`` is False
    where it was a migration that did not converge, which is an outcome and no fault."""

    name: str
    kind: str
    message: str
    exit_code: int
    converged: bool | None = None

    def error(self) -> PrecopyError:
        """The same as an error that can be raised where nothing at all was measured."""
        return _Again(self)

    @classmethod
    def of(cls, name: str, error: PrecopyError) -> Failed:
        kind = getattr(error, "kind", type(error).__name__)  # an error from another process has the name it had there
        converged = False if error.exit_code == NotConverged.exit_code else None
        return cls(name, kind, str(error), error.exit_code, converged)


class _Again(PrecopyError):
    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.kind, self.exit_code = failed.kind, failed.exit_code


def attempt(name: str, measure: Callable[[], T]) -> T | Failed:
    """What ``measure`` returns, or the error of ours that it raised."""
    try:
        return measure()
    except PrecopyError as error:
        return Failed.of(name, error)
