"""A guest's process: the guest, its control socket, and what may be done with it when.

::

    waiting <─> receiving ──> running <──> paused          `receive` starts at waiting, `run` at running
                                 │
                                 └──> migrating ──> migrated     the guest runs elsewhere; the process ends
                                          │  └────> running      it failed or was cancelled
                                          └───────> unknown      paused; `resume` or `quit` decides

    `quit` ends it from any state but receiving and migrating.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from precopy.errors import OutcomeUnknown, PeerError, PrecopyError, UsageError
from precopy.formats import DEFAULT_FORMAT
from precopy.memory.system_memory import peak_resident
from precopy.migration import (
    Arriving,
    Committing,
    Destination,
    Event,
    Greeting,
    GuestIs,
    Migrated,
    Note,
    Progress,
    Received,
    Source,
    event_name,
)
from precopy.recording.files import RecordingWriter
from precopy.service.answers import Checked, Migrating, Status
from precopy.service.request import Request
from precopy.service.server import ControlServer, Emit
from precopy.transport import (
    NAMED_STRANGERS,
    Address,
    Greeted,
    Listener,
    SocketStream,
    connect,
    parse_address,
    receive_greeting,
)

if TYPE_CHECKING:
    from precopy.machines.emulated import EmulatedGuest
    from precopy.machines.kvm import KvmGuest

_CANCEL_S = 15.0
"""Seconds that the end of the process waits for a migration that it cancelled."""
_CANCEL_ANSWER_S = 8.0
"""Seconds that `cancel` waits for the migration's outcome; its client's time-out is 10 s."""
_MAX_TIMEOUT_S = 86400.0  # a day
_ARRIVAL_S = 2.0
"""Seconds that requests wait for the record of a guest that has just arrived and runs, counted from the first of them.
The source is told in that time, which takes as long as the time-out where it does not read."""


class GuestProcess:
    """Serves one guest until it is gone. ``outcome`` says how it went: migrated, quit or interrupted. ``why`` and
    ``workload`` are for people."""

    def __init__(
        self, guest: KvmGuest | EmulatedGuest, why: str, control: Address, state: str, *, workload: str = ""
    ) -> None:
        self.guest, self.why, self.workload, self._control = guest, why, workload, control
        self.state = state
        self._has_guest = True
        self.turned_away = 0
        self.session: str | None = None
        self.received: Received | None = None
        self.migrated: Migrated | None = None
        self.last_error: str | None = None
        self.outcome: str | None = None
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._arrived = threading.Event()
        self._arrival_due = math.inf
        self._wake: Callable[[], None] = lambda: None
        self._source: Source | None = None
        self._to = ""
        self._began = 0.0
        self._progress: Progress | None = None
        self._arriving: Arriving | None = None
        self._destination: Destination | None = None
        self._cancelled = False
        self._settled = threading.Event()
        """No migration is under way, or it is clear what has become of it."""
        self._settled.set()
        self._idle = threading.Event()
        self._idle.set()
        self.server: ControlServer

    def __enter__(self) -> GuestProcess:
        """Runs the guest where its state says so, and serves it. Raises `UsageError`, with the guest closed."""
        try:
            # What was imported and made so far stays: later collections need not walk through it in mid-round.
            gc.collect()
            gc.freeze()
            signal.signal(signal.SIGTERM, _interrupt)
            if self.state == "running":
                self.guest.resume()
            # Last, so that a client that asks for the state finds the guest in it.
            self.server = ControlServer(self._control, self._handle)
        except BaseException:
            self.guest.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self._idle.is_set():
            self._stop_source()
            self._idle.wait(_CANCEL_S)
        self.server.close()
        if self._has_guest:
            self.guest.close()

    def wait(self) -> str:
        """Waits until the guest is gone; returns the outcome. Raises `GuestError` where it failed."""
        while not self._done.wait(0.5):
            self.guest.raise_failure()
        return self.outcome or "quit"

    def wait_for_source(
        self, listener: Listener, timeout: float, tell: Callable[[str], None]
    ) -> Greeted[Greeting] | None:
        """The source that greets at ``listener``, or None where the process was told to quit before there was one. All
        others are turned away, of which ``tell`` is told. Raises `PeerError`."""

        def turn_away(stream: SocketStream, greeting: Greeting, why: PeerError) -> None:
            self.turned_away += 1
            greeting.refuse(stream, str(why))
            if self.turned_away <= NAMED_STRANGERS:
                tell(f"turned away {stream.peer}: {why}")
            if self.turned_away == NAMED_STRANGERS:
                tell("further ones are counted, and not named; see `precopy status`")

        self._wake = listener.wake
        if self._done.is_set():
            return None
        try:
            source = receive_greeting(listener, timeout, lambda: Greeting(DEFAULT_FORMAT), turn_away)
        except PeerError:
            if self._done.is_set():
                return None
            raise
        with self._lock:
            if self._done.is_set():
                source.stream.close()
                return None
            self.state = "receiving"
        return source

    def receive(self, source: Greeted[Greeting]) -> Received | None:
        """Takes a guest in; None where the process was told to quit before it ran here. Raises what `Destination.run`
        raises."""
        with self._lock:
            if self._done.is_set():
                return None
            self._destination = Destination(self.guest, source.stream, source.opening, emit=self._note_arriving)
        try:
            received = self._destination.run()
        except PrecopyError as error:
            if self._done.is_set():
                return None
            self.last_error = str(error)
            raise
        self._arrive(received)
        return received

    def start_over(self, make: Callable[[], KvmGuest | EmulatedGuest]) -> None:
        """Puts a blank guest, which ``make`` makes, in the place of one of which only a part has come, so that nothing
        of it is left. Raises what ``make`` raises."""
        with self._lock:
            if self._done.is_set():
                return
            self._destination = self._arriving = None
            self._has_guest = False
            self.guest.close()  # first: there need not be memory for two
            self.guest = make()
            self._has_guest = True
            self.state = "waiting"

    def _note_arriving(self, arriving: Arriving) -> None:
        self._arriving = arriving

    def _arrive(self, received: Received) -> None:
        self.received, self.session, self.state = received, received.session, "running"
        self.last_error = None  # of an earlier one, which did not bring it
        self._arrived.set()

    def status(self) -> Status:
        layout = self.guest.memory.layout
        return Status(
            state=self.state,
            guest=self.guest.kind,
            machine=self.guest.machine,
            why=self.why,
            ram_bytes=layout.bytes,
            blocks=len(layout.blocks),
            pid=os.getpid(),
            uptime_s=time.monotonic() - self._started,
            session=self.session,
            last_error=self.last_error,
            received=self.received,
            migration=self._migration(),
            arriving=self._arriving if self.state == "receiving" else None,
            turned_away=self.turned_away,
            workload=self.workload,
        )

    def _migration(self) -> Migrating | None:
        if self.state != "migrating":
            return None
        progress, elapsed_s = self._progress, time.monotonic() - self._began
        if progress is None:
            return Migrating(self._to, elapsed_s)
        remaining_pages = progress.remaining_bytes // self.guest.memory.layout.page_size
        return Migrating(self._to, elapsed_s, remaining_pages, progress)

    def epilogue(self, outcome: str) -> dict[str, Any]:
        """What the process's closing JSON document says, whichever way the guest came and went."""
        return {
            "outcome": outcome,
            "guest": self.guest.kind,
            "why": self.why,
            "control": str(self.server.address),
            "session": self.session,
            "ram_bytes": self.guest.memory.layout.bytes,
            "peak_resident_bytes": peak_resident(),
        }

    def _handle(self, request: Request, emit: Emit) -> Any:
        if self.state == "receiving" and self.guest.running:
            # The source, and so a client, may know that the guest runs here before `_arrive` is called.
            self._arrival_due = min(self._arrival_due, time.monotonic() + _ARRIVAL_S)
            self._arrived.wait(max(self._arrival_due - time.monotonic(), 0.0))
        match request.command:
            case "status":
                return self.status()
            case "migrate":
                return self._migrate(request, emit)
            case "cancel":
                return self._cancel()
            case "check" | "pause" | "resume" | "quit":
                with self._lock:
                    return getattr(self, f"_{request.command}")()
        raise UsageError(f"{request.command!r} is no control command")

    def _need(self, *states: str) -> None:
        if self.state not in states:
            there = "where the guest runs is unknown" if self.state == "unknown" else f"the guest is {self.state}"
            raise UsageError(
                f"{there}; this needs it to be {' or '.join(state for state in states if state != 'unknown')}"
            )

    def _check(self) -> Checked:
        self._need("running", "paused", "unknown")
        pause_s = self.guest.pause() if self.guest.running else 0.0
        try:
            found = self.guest.self_check()
        finally:
            if self.state == "running":
                self.guest.resume()
        return Checked(found.ok, found.steps, found.pages, found.broken, pause_s)

    def _pause(self) -> Status:
        self._need("running")
        self.guest.pause()
        self.state = "paused"
        return self.status()

    def _resume(self) -> Status:
        self._need("paused", "unknown")
        self.guest.resume()
        self.state = "running"
        return self.status()

    def _quit(self) -> Status:
        self._need("running", "paused", "unknown", "waiting", "receiving")
        coming = self._destination if self.state == "receiving" else None
        if coming is not None and not coming.forbid():
            raise UsageError("the guest has just begun to run here; ask again to end it")
        self.state = "ended"
        self._end("quit")
        if coming is not None:
            coming.abandon()
        return self.status()

    def _cancel(self) -> Status:
        """Stops the migration under way, and waits for what becomes of it. Raises `UsageError` where it is too late,
        and `OutcomeUnknown`."""
        self._need("migrating")
        session = self.session
        self._stop_source()
        self._settled.wait(_CANCEL_ANSWER_S)
        match self.state:
            case "migrating":
                raise UsageError(
                    f"it is too late to cancel session {session}: the guest is being given away; ask with "
                    f"`precopy status` what has become of it"
                )
            case "migrated" | "ended":
                raise UsageError(f"it is too late to cancel: the guest runs at the destination (session {session})")
            case "unknown":
                raise OutcomeUnknown(session or "?", "it was cancelled too late")
        return self.status()

    def _stop_source(self) -> None:
        self._cancelled = True  # first, for a source that is only about to be made
        source = self._source
        if source is not None:
            source.cancel()

    def _migrate(self, request: Request, emit: Emit) -> Migrated:
        address = parse_address(request.address)
        if not 0 < request.timeout <= _MAX_TIMEOUT_S:
            raise UsageError(f"the time-out has to be above 0 and at most {_MAX_TIMEOUT_S:g} s")
        with self._lock:
            self._need("running")
            self.state = "migrating"
            self._to, self._began, self._progress = str(address), time.monotonic(), None
            self._cancelled = False
            self._settled.clear()
            self._idle.clear()

        def tell(event: Event) -> None:
            if isinstance(event, Progress):
                self._progress = event
            emit(event_name(event), event, surely=isinstance(event, Committing | Note))

        try:
            with contextlib.ExitStack() as stack:
                recorder = None
                if request.record:
                    recorder = stack.enter_context(RecordingWriter(request.record, lambda why: tell(Note(why))))
                stream = connect(address, request.timeout)
                stack.callback(_close_later, stream)
                source = Source(
                    self.guest,
                    stream,
                    request.options,
                    open_format=DEFAULT_FORMAT,
                    emit=tell,
                    recorder=recorder,
                )
                self._source, self.session = source, source.session
                if self._cancelled:
                    source.cancel()
                self.migrated = source.run()
        except BaseException as error:
            self.last_error = str(error)
            raise
        else:
            return self.migrated
        finally:
            self._settle()

    def _settle(self) -> None:
        where = GuestIs.HERE if self._source is None else self._source.guest_is
        self.state = {GuestIs.HERE: "running", GuestIs.UNKNOWN: "unknown", GuestIs.THERE: "migrated"}[where]
        self._source = None
        self._settled.set()
        if where is GuestIs.THERE:
            self._end("migrated")
        self._idle.set()

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        self._done.set()
        self._wake()


def _close_later(stream: SocketStream) -> None:
    """Closes it in a thread of its own: the client that asked for the migration need not wait until the peer has read
    the last bytes."""
    threading.Thread(target=stream.close, name="close", daemon=True).start()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
