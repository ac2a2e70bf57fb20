"""The lock under which a program writes its memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from precopy.errors import UsageError


def check_lock(lock: object, instead: str) -> None:
    """Raises `UsageError`, which says what to do ``instead`` in an asyncio program, unless ``lock`` is None or can be
    held by a thread."""
    if lock is not None and not _can_be_held(lock):
        raise UsageError(
            f"lock is a context manager that a thread can hold (with lock:), such as a threading.Lock; "
            f"{_described(lock)} is none; where only asyncio tasks write, {instead}"
        )


class Held:
    """``with Held(lock):`` holds it where there is one. What is raised meanwhile is raised, whatever the lock's own end
    would swallow: a copy that was not finished never passes for one that was."""

    def __init__(self, lock: AbstractContextManager[object] | None) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if self._lock is not None:
            self._lock.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.__exit__(kind, error, trace)


def _can_be_held(lock: object) -> bool:
    return not isinstance(lock, type) and all(hasattr(type(lock), name) for name in ("__enter__", "__exit__"))


def _described(lock: object) -> str:
    kind = lock if isinstance(lock, type) else type(lock)
    return f"{'the class' if kind is lock else 'an object of'} {kind.__module__}.{kind.__qualname__}"
