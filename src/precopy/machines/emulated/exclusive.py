"""Turns at an emulated CPU: other threads may touch it only between two instructions, when it has stopped.

QEMU has the same pair, ``cpu_exec_start`` and ``start_exclusive``. Unicorn allows other threads one call while its CPU
executes, to stop it; all others have to wait until it has stopped, or until a hook of ours holds it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from precopy.errors import GuestError

STOP_S = 10.0
"""Seconds that a CPU may take to reach the end of an instruction."""
_AGAIN_S = 0.001
"""Seconds after which a stop is repeated: Unicorn forgets a stop that comes just before the CPU starts."""


class Exclusive:
    """``stop`` makes the CPU's thread leave `executing` soon; it may be called at any time from any thread.

    Many short sections in a row cost one stop: the CPU waits until no section is wanted.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._change = threading.Condition()
        self._one = threading.RLock()
        self._wanted = 0
        self._executes: int | None = None

    @property
    def own(self) -> bool:
        """Whether this thread is the CPU's, and executes."""
        return self._executes == threading.get_ident()

    @contextlib.contextmanager
    def executing(self) -> Iterator[None]:
        """For the CPU's thread: inside, it executes. Waits while others are in a `section`."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """For the CPU's thread in a hook that comes between two instructions: the opposite of `executing`."""
        self._leave()
        try:
            yield
        finally:
            self._enter()

    @contextlib.contextmanager
    def section(self) -> Iterator[None]:
        """Inside, the CPU stands between two instructions, and no other thread is here. A thread that is inside may
        enter again. Raises `GuestError` where the CPU does not stop."""
        if self.own:
            raise RuntimeError("an emulated CPU that executes cannot wait until it stands still")
        with self._one:
            with self._change:
                self._wanted += 1
                try:
                    self._wait_for_rest()
                except BaseException:
                    self._done()
                    raise
            try:
                yield
            finally:
                with self._change:
                    self._done()

    def _wait_for_rest(self) -> None:
        end = time.monotonic() + STOP_S
        while self._executes is not None:
            if time.monotonic() > end:
                raise GuestError(f"the emulated CPU did not stop within {STOP_S:g} s")
            self._stop()
            self._change.wait(_AGAIN_S)

    def _done(self) -> None:
        self._wanted -= 1
        self._change.notify_all()

    def _enter(self) -> None:
        with self._change:
            self._change.wait_for(lambda: not self._wanted)
            self._executes = threading.get_ident()

    def _leave(self) -> None:
        with self._change:
            self._executes = None
            self._change.notify_all()
