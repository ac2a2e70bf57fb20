"""Records that several kinds of document have."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.errors import NotConverged, PrecopyError
from precopy.progress import Progress
from precopy.units import format_duration, format_rate, format_size


@dataclass(frozen=True)
class Machine:
    """Where the figures come from, and when: ``vector`` is the CPU's vector unit, ``load_average`` of 1, 5 and 15
    minutes, when they began to be taken; ``command`` is the line that was typed, ``defaults`` the options that were
    left at theirs."""

    host: Text = ""
    cpu: Text = ""
    vector: Text = ""
    cores: Count | None = None
    memory_bytes: Count | None = None
    kernel: Text = ""
    python: Text = ""
    precopy: Text = ""
    date: Text = ""
    load_average: Annotated[tuple[Number, ...], Meta(max_length=3)] = ()
    command: Text = ""
    defaults: Annotated[dict[Text, Text], Meta(max_length=100)] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Of several measurements, in seconds."""

    median: Number
    min: Number
    max: Number

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Snapshot:
    """What `snapshot` has saved. ``pages`` have content, ``zero_pages`` are saved as being zero (in a full one: all
    others); ``bytes`` is what the file takes of the disk, holes left out.

    ``find_s`` is finding what changed and which of it is zero, ``write_s`` handing it to the system: during these the
    program should not write. ``commit_s`` is flushing it to disk.
    """

    number: Count
    full: bool
    pages: Count
    zero_pages: Count
    bytes: Count
    find_s: Number
    write_s: Number
    commit_s: Number

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.find_s + self.write_s + self.commit_s


@dataclass(frozen=True)
class Failed:
    """What was to be measured, and why it was not: the error's class, sentence and exit code. ``converged`` is False
    where it was a migration that did not converge, which is an outcome and no fault."""

    name: Text
    kind: Text
    message: Text
    exit_code: Count
    converged: bool | None = None

    def error(self) -> PrecopyError:
        """The same as an error that can be raised where nothing at all was measured."""
        return _Again(self)

    @classmethod
    def of(cls, name: str, error: PrecopyError) -> Failed:
        kind = getattr(error, "kind", type(error).__name__)  # an error from another process has the name it had there
        converged = False if error.exit_code == NotConverged.exit_code else None
        return cls(name, kind, str(error), error.exit_code, converged)


class _Again(PrecopyError):
    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.kind, self.exit_code = failed.kind, failed.exit_code


def progress_line(progress: Progress) -> str:
    """Progress in one line."""
    parts = [
        f"round {progress.round}" if progress.phase == "rounds" else progress.phase,
        f"{format_size(progress.sent_bytes)} sent",
        *([f"{format_size(progress.verify_bytes)} compared"] if progress.verify_bytes else []),
        f"{format_size(progress.remaining_bytes)} left",
        f"bandwidth {format_rate(progress.bandwidth_bytes_per_s)}",
    ]
    if progress.expected_downtime_s is not None:  # otherwise no round is done yet
        parts.insert(-1, f"dirty rate {format_rate(progress.dirty_rate_bytes_per_s)}")
    if progress.eta_s is not None and math.isfinite(progress.eta_s):
        parts.append(f"ends in {format_duration(progress.eta_s)}")
    return " | ".join(parts)
