"""Asking a guest's process to migrate, from another process."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from precopy.defaults import TIMEOUT_S
from precopy.errors import OutcomeUnknown, PeerError, PrecopyError
from precopy.migration import EVENTS, Committing, Event, Migrated, MigrationOptions
from precopy.service.request import Request
from precopy.service.socket import Command, ask
from precopy.transport import Address

_FIND_OUT = (
    "ask the destination with `precopy status` whether the guest of that session runs there; do not start it again "
    "before it is certain that it does not"
)


def migrate_guest(
    control: Address,
    to: Address,
    options: MigrationOptions,
    timeout: float = TIMEOUT_S,
    on_event: Callable[[Event], None] = lambda _: None,
    *,
    record: str = "",
) -> Migrated:
    """Migrates the guest behind ``control``; Ctrl-C cancels that. ``on_event`` is told of progress, of each round and
    of each verdict; ``record`` is the absolute path of a file that is to be made, for a replay. Raises what the
    migration failed with, or that it was cancelled, as `precopy.service.RemoteFailure`; `OutcomeUnknown` where the
    guest's process is lost when it may have given the guest away, otherwise `PeerError`."""

    committing: list[str] = []

    def heard(kind: str, value: Any) -> None:
        if kind not in EVENTS:
            return
        # JSON has no infinity: an end that is never reached comes as null, like one that is not known yet.
        event = msgspec.convert(value, EVENTS[kind])
        if isinstance(event, Committing):
            committing.append(event.session)
        on_event(event)

    try:
        with _cancelling(control):
            answer = ask(control, Request("migrate", str(to.absolute()), timeout, options, record), heard)
    except PeerError as error:
        if committing:
            raise OutcomeUnknown(committing[-1], str(error), _FIND_OUT) from error
        raise
    try:
        return msgspec.convert(answer, Migrated)
    except msgspec.ValidationError as error:
        raise PrecopyError(f"the guest was moved, but {control} says so in no way that is known: {error}") from error


@contextlib.contextmanager
def _cancelling(control: Address) -> Iterator[None]:
    """Has the first Ctrl-C ask the guest's process to cancel, and waits on for what becomes of it: it may be too late.
    The second one stops waiting. Only the main thread can do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        threading.Thread(target=ask_to_cancel, daemon=True).start()

    def ask_to_cancel() -> None:
        with contextlib.suppress(PrecopyError):
            ask(control, Command("cancel"))

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
