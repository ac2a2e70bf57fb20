"""Every error that precopy raises on purpose, as one tree; each leaf names what happened and carries it as data.

::

    PrecopyError                    exit 1   anything below; `str()` is the one sentence a user reads
    ├── UsageError                  exit 2   an argument or an input that cannot be meant
    │   ├── BitmapRangeError                 a page range outside a bitmap
    │   └── LayoutError                      blocks or sections that cannot be a memory
    │       └── LayoutTextError              a monitor's text that cannot be read; says line and column
    ├── Unsupported                 exit 3   this machine lacks something; says what and what to do
    │   └── OutOfMemory                      the memory asked for is not there
    ├── KernelCallError             exit 1   a system call failed: operation, target, errno
    ├── SnapshotError               exit 1   a snapshot could not be written, read or removed: the system said no
    ├── UnreportedWrites            exit 1   memory changed and no sync reported it: a device writes it
    ├── MappingChanged              exit 1   a part of tracked memory is something else now, or not there
    ├── GuestError                  exit 1   the guest stopped for a reason that it should not have
    ├── LocalProtocolError          exit 1   this side used the protocol wrongly (our bug, not the peer's)
    ├── NotConverged                exit 4   the migration gave up; the guest runs on at the source
    ├── PeerError                   exit 5   the other side is gone, or said no, or spoke nonsense
    │   ├── PeerLost                         the connection ended, or nothing came in time
    │   ├── PeerRefused                      the other side said no, and why
    │   ├── HelloMismatch                    what the source wants to send does not fit this side
    │   └── PeerProtocolError                what came is not what the protocol allows here
    ├── OutcomeUnknown              exit 6   lost between commit and its answer: which side runs is not known
    ├── VerificationFailed          exit 7   memories differ, or the guest's own invariant is broken
    │   └── SnapshotDamaged                  a snapshot's file is not what was written
    └── Cancelled                   exit 130 the user asked to stop

The exit code of a command is its error's `exit_code`; success is 0.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator

ADVICE = {
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close files of other programs",
    errno.ENOMEM: "end other programs, or raise the limits on memory and mappings (ulimit -v, vm.max_map_count)",
    errno.ENOBUFS: "end other programs",
    errno.EACCES: "ask for the right to it",
}
"""What to do where a system call fails with one of these, whatever it was to do."""
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class PrecopyError(Exception):
    """Base of the tree. ``exit_code`` is what a command ends with when this reaches it; ``attempt``, where a migration
    ended with it, is what was measured until then (a `precopy.migration.Attempt`)."""

    exit_code = 1
    attempt: object = None


class UsageError(PrecopyError):
    """An argument or an input that cannot be meant."""

    exit_code = 2


class BitmapRangeError(UsageError):
    """A page range that does not lie inside its bitmap. Data: ``start``, ``count``, ``size`` (all in pages)."""

    def __init__(self, start: int, count: int, size: int) -> None:
        super().__init__(f"pages [{start}, {start + count}) do not lie inside a bitmap of {size} pages")
        self.start, self.count, self.size = start, count, size


class LayoutError(UsageError):
    """RAM blocks or sections that cannot be a guest's memory."""


class LayoutTextError(LayoutError):
    """Text of QEMU's monitor that cannot be read. Data: ``what`` was read, ``line`` and ``column``, both from 1."""

    def __init__(self, what: str, line: int, column: int, message: str) -> None:
        super().__init__(f"{what}, line {line}, column {column}: {message}")
        self.what, self.line, self.column = what, line, column


class Unsupported(PrecopyError):
    """This machine lacks something. Data: ``what`` is missing and the ``remedy``."""

    exit_code = 3

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what, self.remedy = what, remedy


def missing_extra(needs: str, package: str, extra: str) -> Unsupported:
    """What ``needs`` the ``package`` cannot be done without it; the ``extra`` of precopy brings it."""
    return Unsupported(f"{needs} the package {package}, which is not installed", f'pip install "precopy[{extra}]"')


class OutOfMemory(Unsupported):
    """Memory that was asked for is not there. Data: ``wanted`` and ``available`` in bytes."""

    def __init__(self, name: str, wanted: int, available: int | None, remedy: str = "use a smaller --ram") -> None:
        have = "" if available is None else f", {available >> 20} MiB are available"
        super().__init__(f"not enough memory for {name}: {wanted >> 20} MiB asked for{have}", remedy)
        self.name, self.wanted, self.available = name, wanted, available


class KernelCallError(PrecopyError):
    """A system call failed. Data: ``operation`` (its name in the kernel's headers), ``target``, ``errno``."""

    def __init__(self, operation: str, target: str, errno: int) -> None:
        advice = f"; {ADVICE[errno]}" if errno in ADVICE else ""
        super().__init__(f"{operation} on {target} failed: {os.strerror(errno)} (errno {errno}){advice}")
        self.operation, self.target, self.errno = operation, target, errno


@contextlib.contextmanager
def system_call(operation: str, target: str) -> Iterator[None]:
    """Around one that Python makes by itself: its `OSError` becomes a `KernelCallError`."""
    try:
        yield
    except OSError as error:
        raise KernelCallError(operation, target, error.errno or 0) from error


def raise_without_descriptor(operation: str, target: str, error: BaseException) -> None:
    """Raises `KernelCallError` where ``error`` says that the process or the system has no descriptor left: then it says
    nothing about ``target``, whatever else the caller takes it for."""
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR:
        raise KernelCallError(operation, target, error.errno) from error


class SnapshotError(PrecopyError):
    """A snapshot could not be written, read or removed, because the system said no: a full disk, a missing right."""


class UnreportedWrites(PrecopyError):
    """Memory changed between two readings, and no sync reported a write to it. Data: some of ``pages`` pages from
    ``first`` on are those that have changed."""

    def __init__(self, pages: int, first: int) -> None:
        super().__init__(
            f"memory changed and no sync reported it, somewhere in {pages} pages from page {first} on: a device "
            f"or another process writes it unnoticed; a program announces that with memory.writing() or "
            f"memory.io_buffer() (docs/memory.md), and a guest's device has to log it"
        )
        self.pages, self.first = pages, first


class MappingChanged(PrecopyError):
    """A part of some memory is not the mapping any more that it was. Data: ``target``, ``what`` it is now, and which
    ``pages`` (how many, not all of them in a row) from page ``first`` on."""

    def __init__(self, target: str, what: str, first: int, pages: int) -> None:
        super().__init__(
            f"{target}: a part of it {what} ({pages} page{'' if pages == 1 else 's'}, from page {first} on); once all "
            f"of it is mapped and can be read, begin anew: track it again, replicate it again, or take a snapshot with "
            f"full=True"
        )
        self.target, self.what, self.first, self.pages = target, what, first, pages


class GuestError(PrecopyError):
    """The guest stopped for a reason that it should not have."""


class LocalProtocolError(PrecopyError):
    """This side tried what the protocol does not allow in its state: a bug of ours, never the peer's."""


class NotConverged(PrecopyError):
    """The migration gave up before the commit; the guest runs on at the source.

    Data: ``rounds`` made, ``remaining`` bytes, ``expected_downtime_s`` and ``downtime_limit_s`` in seconds, ``reason``,
    and the ``smallest_limit`` with which it would have converged (None: not known, or there is none).
    """

    exit_code = 4

    def __init__(
        self,
        rounds: int,
        remaining: int,
        expected_downtime_s: float,
        downtime_limit_s: float,
        *,
        reason: str = "",
        smallest_limit: float | None = None,
    ) -> None:
        found = (
            f"{remaining / 2**20:.1f} MiB still dirty would mean a downtime of {1e3 * expected_downtime_s:.0f} ms, "
            f"the limit is {1e3 * downtime_limit_s:.0f} ms"
        )
        limit = "--downtime-limit"
        if smallest_limit is not None and smallest_limit > downtime_limit_s:  # else not what was missing
            limit += f" to at least {math.ceil(1e3 * smallest_limit)}ms"
        for used_up, option in (("out of time", "--max-total"), ("out of rounds", "--max-rounds")):
            if reason.startswith(used_up):
                limit = f"{option}, {limit}"
        super().__init__(
            f"did not converge in {rounds} round{'' if rounds == 1 else 's'}: {reason or found}; the guest runs on at "
            f"the source; raise {limit} or --max-bandwidth, or lower the guest's write rate"
        )
        self.rounds, self.remaining = rounds, remaining
        self.expected_downtime_s, self.downtime_limit_s = expected_downtime_s, downtime_limit_s
        self.reason, self.smallest_limit = reason, smallest_limit


class PeerError(PrecopyError):
    """The other side is gone, said no, or spoke nonsense. Before the commit the guest is safe on its own side."""

    exit_code = 5


class PeerLost(PeerError):
    """The connection ended, or nothing came in time (``silent``)."""

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class PeerRefused(PeerError):
    """The other side said no. Data: ``reason``, in its words."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the other side refused: {reason}")
        self.reason = reason


class HelloMismatch(PeerError):
    """What the source wants to send does not fit the memory or the machine that is waiting for it here."""


class PeerProtocolError(PeerError):
    """What came is not what the protocol allows here."""


class OutcomeUnknown(PrecopyError):
    """The link was lost after the commit was sent and before it was answered. Data: ``session``, ``cause``."""

    exit_code = 6

    def __init__(self, session: str, cause: str, remedy: str = "") -> None:
        remedy = remedy or (
            "the guest stays paused at the source; ask the destination with `precopy status` and decide as "
            "docs/operations.md says: `precopy quit` here if it ran there, `precopy resume` here only if it certainly "
            "did not"
        )
        super().__init__(
            f"outcome unknown: the commit of session {session} was sent but not answered ({cause}); {remedy}"
        )
        self.session, self.cause = session, cause


class VerificationFailed(PrecopyError):
    """Two memories that must be equal are not, or a guest's invariant is broken."""

    exit_code = 7


class SnapshotDamaged(VerificationFailed):
    """A snapshot's file is not what was written, or what it follows is gone. Data: ``path``, ``why``."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} is damaged: {why}")
        self.path, self.why = path, why


class Cancelled(PrecopyError):
    """The user asked to stop; before the commit the guest runs on at the source."""

    exit_code = 130
