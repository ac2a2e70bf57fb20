"""A guest's process: the guest, its control socket, and what may be done with it when.

::

    waiting ──> receiving ──> running <──> paused          `receive` starts at waiting, `run` at running
                                 │
                                 └──> migrating ──> migrated     the guest runs elsewhere; the process ends
                                          │  └────> running      it failed or was cancelled
                                          └───────> unknown      paused; `resume` or `quit` decides

    `quit` ends it from any state but receiving and migrating.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precopy.control.socket import ControlServer, Emit, Request
from precopy.errors import PeerError, PrecopyError, UsageError
from precopy.memory.host import peak_resident
from precopy.migration import Destination, Event, GuestIs, Migrated, Note, Received, Source, event_name
from precopy.store.recording import RecordingWriter
from precopy.transport import Address, SocketStream, connect, parse_address

if TYPE_CHECKING:
    from precopy.emulated import EmulatedGuest
    from precopy.kvm import KvmGuest

_CANCEL_S = 15.0
_MAX_TIMEOUT_S = 86400.0
_ARRIVAL_S = 5.0


@dataclass(frozen=True)
class Status:
    """What `precopy status` tells. ``session`` is the migration that brought the guest here or took it away."""

    state: str
    guest: str
    machine: str
    why: str
    ram_bytes: int
    blocks: int
    pid: int
    uptime_s: float
    session: str | None = None
    last_error: str | None = None
    received: Received | None = None


@dataclass(frozen=True)
class Checked:
    """A check of the guest's invariant: ``pause_s`` is how long it took to stop the vCPUs for it."""

    ok: bool
    steps: int
    pages: int
    broken: tuple[str, ...]
    pause_s: float


class GuestProcess:
    """Serves one guest until it is gone. ``outcome`` says how it went: migrated, quit or interrupted."""

    def __init__(self, guest: KvmGuest | EmulatedGuest, why: str, control: Address, state: str) -> None:
        self.guest, self.why, self._control = guest, why, control
        self.state = state
        self.session: str | None = None
        self.received: Received | None = None
        self.migrated: Migrated | None = None
        self.last_error: str | None = None
        self.outcome: str | None = None
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._arrived = threading.Event()
        self._wake: Callable[[], None] = lambda: None
        self._source: Source | None = None
        self._destination: Destination | None = None
        self._cancelled = False
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
            # Last, so that whoever asks finds the guest as its state says that it is.
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
        self.guest.close()

    def wait(self) -> str:
        """Waits until the guest is gone; returns the outcome. Raises `GuestError` where it failed."""
        while not self._done.wait(0.5):
            self.guest.raise_failure()
        return self.outcome or "quit"

    def wait_for_source(self, accept: Callable[[], SocketStream], wake: Callable[[], None]) -> SocketStream | None:
        """The connection that ``accept`` returns, or None where the process was told to quit before there was one;
        ``wake`` makes ``accept`` raise. Raises `PeerError`."""
        self._wake = wake
        if self._done.is_set():
            return None
        try:
            stream = accept()
        except PeerError:
            if self._done.is_set():
                return None
            raise
        with self._lock:
            if self._done.is_set():
                stream.close()
                return None
            self.state = "receiving"
        return stream

    def receive(self, stream: SocketStream) -> Received | None:
        """Takes a guest in; None where the process was told to quit before it ran here. Raises what `Destination.run`
        raises."""
        with self._lock:
            if self._done.is_set():
                return None
            self._destination = Destination(self.guest, stream)
        try:
            received = self._destination.run()
        except PrecopyError:
            if self._done.is_set():
                return None
            raise
        self._arrive(received)
        return received

    def _arrive(self, received: Received) -> None:
        self.received, self.session, self.state = received, received.session, "running"
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
        )

    def epilogue(self, outcome: str) -> dict[str, Any]:
        """What the process's closing JSON document says, whichever way the guest came and went."""
        return {
            "outcome": outcome,
            "guest": self.guest.kind,
            "why": self.why,
            "session": self.session,
            "ram_bytes": self.guest.memory.layout.bytes,
            "peak_resident_bytes": peak_resident(),
        }

    def _handle(self, request: Request, emit: Emit) -> Any:
        if self.state == "receiving" and self.guest.running:
            # The source knows that the guest runs here, and so may who asks, before `_arrive` is called.
            self._arrived.wait(_ARRIVAL_S)
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
            raise UsageError(f"the guest is {self.state}; this needs it to be {' or '.join(states)}")

    def _check(self) -> Checked:
        self._need("running", "paused", "unknown")
        pause_s = self.guest.pause() if self.guest.running else 0.0
        try:
            witness = self.guest.check()
        finally:
            if self.state == "running":
                self.guest.resume()
        return Checked(witness.ok, witness.steps, witness.pages, witness.broken, pause_s)

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
        self._need("migrating")
        self._stop_source()
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
            self._cancelled = False
            self._idle.clear()
        source: Source | None = None

        def tell(event: Event) -> None:
            emit(event_name(event), event)

        try:
            with contextlib.ExitStack() as stack:
                recorder = None
                if request.record:
                    recorder = stack.enter_context(RecordingWriter(request.record, lambda why: tell(Note(why))))
                stream = stack.enter_context(contextlib.closing(connect(address, request.timeout)))
                source = Source(self.guest, stream, request.options, emit=tell, recorder=recorder)
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
            where = GuestIs.HERE if source is None else source.guest_is
            self.state = {GuestIs.HERE: "running", GuestIs.UNKNOWN: "unknown", GuestIs.THERE: "migrated"}[where]
            if where is GuestIs.THERE:
                self._end("migrated")
            self._source = None
            self._idle.set()

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        self._done.set()
        self._wake()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
