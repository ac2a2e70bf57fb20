"""Asking a guest's process to migrate, from another process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from precopy.control.socket import Request, ask
from precopy.errors import Cancelled, PrecopyError
from precopy.migration import Migrated, MigrationOptions, Progress
from precopy.transport import Address


def migrate_guest(
    control: Address,
    to: Address,
    options: MigrationOptions,
    timeout: float = 10.0,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Migrated:
    """Migrates the guest behind ``control``. Ctrl-C cancels it there. Raises what it failed with, as
    `precopy.control.RemoteFailure`; `Cancelled` where the user stopped it."""

    def on_event(kind: str, value: Any) -> None:
        if kind == "progress":
            # JSON has no infinity: an end that is never reached comes as null, like one that is not known yet.
            on_progress(msgspec.convert(value, Progress))

    try:
        answer = ask(control, Request("migrate", str(to), timeout, options), on_event)
    except KeyboardInterrupt:
        with contextlib.suppress(PrecopyError):
            ask(control, Request("cancel"))
        raise Cancelled("the migration was cancelled; `precopy status` says where the guest is") from None
    return msgspec.convert(answer, Migrated)
