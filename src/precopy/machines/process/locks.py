"""The lock under which a program writes its memory."""

from __future__ import annotations

from precopy.errors import UsageError


def check_lock(lock: object, instead: str) -> None:
    """Raises `UsageError`, which says what to do ``instead`` in an asyncio program, unless ``lock`` is None or can be
    held by a thread."""
    if lock is not None and not _can_be_held(lock):
        raise UsageError(
            f"lock is a context manager that a thread can hold (with lock:), such as a threading.Lock; "
            f"{_described(lock)} is none; where only asyncio tasks write, {instead}"
        )


def _can_be_held(lock: object) -> bool:
    return not isinstance(lock, type) and all(hasattr(type(lock), name) for name in ("__enter__", "__exit__"))


def _described(lock: object) -> str:
    kind = lock if isinstance(lock, type) else type(lock)
    return f"{'the class' if kind is lock else 'an object of'} {kind.__module__}.{kind.__qualname__}"
