"""Several changes of memory regions as one (QEMU: ``memory_region_transaction_begin`` and ``_commit``).

A change is noted for each address space that sees the region. At the end of the outermost transaction each of them
draws its flat view anew, once, and tells its listeners what became different. A change outside any transaction is one
of its own.

Transactions are counted for each thread; a tree of regions is changed by one thread at a time, and keeping to that is
the caller's business (QEMU: the big lock).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Protocol


class Viewer(Protocol):
    """What sees regions and has to look again when they changed: an address space."""

    def update(self) -> None: ...


class _State(threading.local):
    def __init__(self) -> None:
        self.depth = 0
        self.changed: dict[Viewer, None] = {}
        """A set that keeps the order in which changes came."""


_state = _State()


@contextlib.contextmanager
def transaction() -> Iterator[None]:
    """Groups the changes made inside into one update, also where it is left with an error; may be nested."""
    _state.depth += 1
    try:
        yield
    finally:
        try:
            if _state.depth == 1:
                _commit()
        finally:
            _state.depth -= 1


def note_change(viewers: Iterable[Viewer]) -> None:
    """Has ``viewers`` look again at the end of the transaction, or now where there is none."""
    with transaction():
        _state.changed.update(dict.fromkeys(viewers))


def _commit() -> None:
    """Updates every viewer that something changed for, also for what listeners change while they are told.

    Where one fails the others are updated all the same; the first error is raised at the end.
    """
    failure: Exception | None = None
    while _state.changed:
        viewers, _state.changed = list(_state.changed), {}
        for viewer in viewers:
            try:
                viewer.update()
            except Exception as error:
                failure = failure or error
    if failure is not None:
        raise failure
