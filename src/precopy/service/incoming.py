"""The incoming migration of a guest's process: which connection is let in as its source, and how far it is."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from precopy.migration import Arriving, Destination, HelloReader, Received
from precopy.ports import DestinationVm
from precopy.transport import Accepted, Listener, Strangers, accept_peer
from precopy.wire.default import DEFAULT_FORMAT

_RECORD_S = 2.0
"""Seconds that requests wait for the record of a guest that has just arrived and runs, counted from the first of them.
The source is told in that time, which takes as long as the time-out where it does not read."""


class Incoming:
    """One guest is taken in; where that fails, another may be. ``received`` is the record of it."""

    def __init__(self) -> None:
        self._strangers: Strangers | None = None
        self.received: Received | None = None
        self.progress: Arriving | None = None
        self._destination: Destination | None = None
        self.recorded = threading.Event()
        """``received`` is set, and so is all that the process says of itself."""
        self._record_due = math.inf

    @property
    def turned_away(self) -> int:
        """Connections that were no source's."""
        return 0 if self._strangers is None else self._strangers.count

    def source_at(self, listener: Listener, timeout: float, tell: Callable[[str], None]) -> Accepted[HelloReader]:
        """The first source that greets. All others are turned away, of which ``tell`` is told. Raises `PeerError` where
        ``listener`` is woken."""
        if self._strangers is None:
            self._strangers = Strangers(
                lambda peer, why: tell(f"turned away {peer}: {why}"),
                lambda: tell("further ones are counted, and not named; see `precopy status`"),
            )
        return accept_peer(listener, timeout, lambda: HelloReader(DEFAULT_FORMAT), self._strangers)

    def begin(self, guest: DestinationVm, source: Accepted[HelloReader]) -> Destination:
        """What takes it in, into ``guest``."""
        self.progress = None
        self._destination = Destination(guest, source.stream, source.reader, emit=self._note)
        return self._destination

    def wait_for_record(self) -> None:
        """For a client that may know already that the guest runs here."""
        self._record_due = min(self._record_due, time.monotonic() + _RECORD_S)
        self.recorded.wait(max(self._record_due - time.monotonic(), 0.0))

    def forget(self) -> None:
        """Of a guest of which only a part has come nothing is left."""
        self._destination = self.progress = None

    def forbid(self) -> bool:
        """Called from another thread: see `Destination.forbid`."""
        return self._destination is None or self._destination.forbid()

    def abandon(self) -> None:
        """Called from another thread: stops receiving at once."""
        if self._destination is not None:
            self._destination.abandon()

    def _note(self, progress: Arriving) -> None:
        self.progress = progress
