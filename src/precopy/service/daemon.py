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

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from precopy.errors import PeerError, PrecopyError, UsageError
from precopy.memory.system_memory import peak_resident
from precopy.migration import (
    GuestIs,
    HelloReader,
    Migrated,
    Received,
)
from precopy.report.kinds.check import Checked
from precopy.report.kinds.run import GuestRun
from precopy.report.kinds.status import Status
from precopy.service.incoming import Incoming
from precopy.service.outgoing import Outgoing
from precopy.service.request import Request
from precopy.service.server import ControlServer, Emit
from precopy.transport import (
    Accepted,
    Address,
    Listener,
)

if TYPE_CHECKING:
    from precopy.machines.emulated import EmulatedGuest
    from precopy.machines.kvm import KvmGuest

_CANCEL_S = 15.0
"""Seconds that the end of the process waits for a migration that it cancelled."""


class GuestProcess:
    """Serves one guest until it is gone. ``outcome`` says how it went: migrated, quit or interrupted. ``why`` and
    ``workload`` are for people."""

    def __init__(
        self, guest: KvmGuest | EmulatedGuest, why: str, control: Address, state: str, *, workload: str = ""
    ) -> None:
        self.guest, self.why, self.workload, self._control = guest, why, workload, control
        self.state = state
        self._has_guest = True
        self._session: str | None = None
        self.migrated: Migrated | None = None
        self.last_error: str | None = None
        self.outcome: str | None = None
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._incoming = Incoming()
        self._wake: Callable[[], None] = lambda: None
        self._outgoing: Outgoing | None = None
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
            self._stop()
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
    ) -> Accepted[HelloReader] | None:
        """The source that greets at ``listener``, or None where the process was told to quit before there was one. All
        others are turned away, of which ``tell`` is told. Raises `PeerError`."""
        self._wake = listener.wake
        if self._done.is_set():
            return None
        try:
            source = self._incoming.source_at(listener, timeout, tell)
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

    def receive(self, source: Accepted[HelloReader]) -> Received | None:
        """Takes a guest in; None where the process was told to quit before it ran here. Raises what `Destination.run`
        raises."""
        with self._lock:
            if self._done.is_set():
                return None
            destination = self._incoming.begin(self.guest, source)
        try:
            received = destination.run()
        except PrecopyError as error:
            if self._done.is_set():
                return None
            self.last_error = str(error)
            raise
        self._arrived(received)
        return received

    def _arrived(self, received: Received) -> None:
        self._incoming.received = received
        self._session, self.state = received.session, "running"
        self.last_error = None  # of an earlier one, which did not bring it
        self._incoming.recorded.set()

    def start_over(self, make: Callable[[], KvmGuest | EmulatedGuest]) -> None:
        """Puts a blank guest, which ``make`` makes, in the place of one of which only a part has come, so that nothing
        of it is left. Raises what ``make`` raises."""
        with self._lock:
            if self._done.is_set():
                return
            self._incoming.forget()
            self._has_guest = False
            self.guest.close()  # first: there need not be memory for two
            self.guest = make()
            self._has_guest = True
            self.state = "waiting"

    @property
    def session(self) -> str | None:
        """That of the migration under way, or of the last one."""
        outgoing = self._outgoing
        return (outgoing.session if outgoing is not None else None) or self._session

    def status(self) -> Status:
        layout, outgoing = self.guest.memory.layout, self._outgoing
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
            received=self._incoming.received,
            migration=outgoing.shown() if outgoing is not None and self.state == "migrating" else None,
            arriving=self._incoming.progress if self.state == "receiving" else None,
            turned_away=self._incoming.turned_away,
            workload=self.workload,
        )

    def epilogue(self, outcome: str) -> GuestRun:
        """What is said at the end, whichever way the guest came and went."""
        return GuestRun(
            outcome=outcome,
            guest=self.guest.kind,
            why=self.why,
            control=str(self.server.address),
            session=self.session,
            ram_bytes=self.guest.memory.layout.bytes,
            peak_resident_bytes=peak_resident(),
        )

    def _handle(self, request: Request, emit: Emit) -> Any:
        if self.state == "receiving" and self.guest.running:
            self._incoming.wait_for_record()  # the source, and so a client, may know of it before there is one
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
        comes = self.state == "receiving"
        if comes and not self._incoming.forbid():
            raise UsageError("the guest has just begun to run here; ask again to end it")
        self.state = "ended"
        self._end("quit")
        if comes:
            self._incoming.abandon()
        return self.status()

    def _cancel(self) -> Status:
        """Raises as `Outgoing.cancel_and_wait`."""
        with self._lock:
            self._need("migrating")
            outgoing = self._outgoing
        assert outgoing is not None  # it is set and unset with the state
        outgoing.cancel_and_wait()
        return self.status()

    def _stop(self) -> None:
        outgoing = self._outgoing
        if outgoing is not None:
            outgoing.cancel()

    def _migrate(self, request: Request, emit: Emit) -> Migrated:
        outgoing = Outgoing(self.guest, request)
        with self._lock:
            self._need("running")
            self.state, self._outgoing = "migrating", outgoing
            self._idle.clear()
        try:
            self.migrated = outgoing.run(emit)
        except BaseException as error:
            self.last_error = str(error)
            raise
        else:
            return self.migrated
        finally:
            self._settle(outgoing)

    def _settle(self, outgoing: Outgoing) -> None:
        where = outgoing.guest_is
        with self._lock:
            self._session = outgoing.session or self._session
            self.state = {GuestIs.HERE: "running", GuestIs.UNKNOWN: "unknown", GuestIs.THERE: "migrated"}[where]
            self._outgoing = None
        outgoing.settled.set()
        if where is GuestIs.THERE:
            self._end("migrated")
        self._idle.set()

    def _end(self, outcome: str) -> None:
        self.outcome = outcome
        self._done.set()
        self._wake()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
