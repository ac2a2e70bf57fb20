"""One outgoing migration of a guest's process, from the request for it to what became of it."""

from __future__ import annotations

import contextlib
import threading
import time

from precopy.errors import OutcomeUnknown, UsageError
from precopy.migration import Committing, Event, GuestIs, Migrated, Note, Progress, Source, event_name
from precopy.ports import SourceVm
from precopy.recording.files import RecordingWriter
from precopy.report.kinds.status import Migrating
from precopy.service.request import Request
from precopy.service.server import Emit
from precopy.transport import SocketStream, connect, parse_address
from precopy.wire.default import DEFAULT_FORMAT

_MAX_TIMEOUT_S = 86400.0  # a day
_CANCEL_ANSWER_S = 8.0
"""Seconds that `Outgoing.cancel_and_wait` waits for the outcome; its client's time-out is 10 s."""


class Outgoing:
    """Migrates ``guest`` as ``request`` says. Raises `UsageError` where it cannot be meant so."""

    def __init__(self, guest: SourceVm, request: Request) -> None:
        self._guest, self._request = guest, request
        self._address = parse_address(request.address)
        if not 0 < request.timeout <= _MAX_TIMEOUT_S:
            raise UsageError(f"the time-out has to be above 0 and at most {_MAX_TIMEOUT_S:g} s")
        self._began = time.monotonic()
        self._progress: Progress | None = None
        self._source: Source | None = None
        self._cancelled = False
        self.settled = threading.Event()
        """It has ended, and the process says what has become of its guest."""

    @property
    def session(self) -> str | None:
        """None before there is a connection."""
        return None if self._source is None else self._source.session

    @property
    def guest_is(self) -> GuestIs:
        """Where the guest may run, as far as is known here."""
        return GuestIs.HERE if self._source is None else self._source.guest_is

    def run(self, emit: Emit) -> Migrated:
        """Raises as `Source.run`, and `PeerLost` where no process listens at the address."""

        def tell(event: Event) -> None:
            if isinstance(event, Progress):
                self._progress = event
            emit(event_name(event), event, surely=isinstance(event, Committing | Note))

        request = self._request
        with contextlib.ExitStack() as stack:
            recorder = None
            if request.record:
                recorder = stack.enter_context(RecordingWriter(request.record, lambda why: tell(Note(why))))
            stream = connect(self._address, request.timeout)
            stack.callback(_close_later, stream)
            source = Source(
                self._guest, stream, request.options, open_format=DEFAULT_FORMAT, emit=tell, recorder=recorder
            )
            self._source = source
            if self._cancelled:
                source.cancel()
            return source.run()

    def cancel(self) -> None:
        """Called from another thread: see `Source.cancel`."""
        self._cancelled = True  # first, for a source that is only about to be made
        source = self._source
        if source is not None:
            source.cancel()

    def cancel_and_wait(self) -> None:
        """`cancel`, with its outcome. Raises `UsageError` where it is too late, and `OutcomeUnknown`."""
        self.cancel()
        if not self.settled.wait(_CANCEL_ANSWER_S):
            raise UsageError(
                f"it is too late to cancel session {self.session}: the guest is being given away; ask with "
                f"`precopy status` what has become of it"
            )
        if self.guest_is is GuestIs.THERE:
            raise UsageError(f"it is too late to cancel: the guest runs at the destination (session {self.session})")
        if self.guest_is is GuestIs.UNKNOWN:
            raise OutcomeUnknown(self.session or "?", "it was cancelled too late")

    def shown(self) -> Migrating:
        """How far it is."""
        to, elapsed_s, progress = str(self._address), time.monotonic() - self._began, self._progress
        if progress is None:
            return Migrating(to, elapsed_s)
        return Migrating(to, elapsed_s, progress.remaining_bytes // self._guest.memory.layout.page_size, progress)


def _close_later(stream: SocketStream) -> None:
    """Closes it in a thread of its own: the client that asked for the migration need not wait until the peer has read
    the last bytes."""
    threading.Thread(target=stream.close, name="close", daemon=True).start()
