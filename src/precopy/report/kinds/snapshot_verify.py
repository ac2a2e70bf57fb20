"""``precopy snapshot verify``: which snapshots of a directory are damaged, and which are lost through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.report.kinds.kind import Kind
from precopy.units import counted, format_duration, format_size

_MOST = Meta(max_length=100_000)
"""Snapshots of a directory that a document may name."""


@dataclass(frozen=True)
class Damage:
    """Snapshot ``number`` is not as it was written."""

    number: Count
    why: Text


@dataclass(frozen=True)
class Loss:
    """Snapshot ``number`` cannot be restored, because it shows pages of snapshot ``through``."""

    number: Count
    through: Count


@dataclass(frozen=True)
class VerifiedDirectory:
    """``snapshots`` were read, ``bytes`` in ``seconds``; ``verified`` where none is damaged."""

    directory: Text
    snapshots: Count
    bytes: Count
    seconds: Number
    verified: bool
    damage: Annotated[tuple[Damage, ...], _MOST]
    lost: Annotated[tuple[Loss, ...], _MOST]

    @property
    def summary(self) -> str:
        """The damage in one sentence, empty where there is none."""
        if not self.damage:
            return ""
        damaged = [snapshot.number for snapshot in self.damage]
        said = (
            f"{len(damaged)} of {self.snapshots} snapshots in {self.directory} are damaged: "
            f"{', '.join(map(str, damaged))}"
        )
        others = [snapshot.number for snapshot in self.lost if snapshot.number not in damaged]
        if others:
            said += f"; through them {len(others)} more cannot be restored: {', '.join(map(str, others))}"
        return said


def _text(done: VerifiedDirectory) -> list[str]:
    """A line for each snapshot that cannot be used; the summary is told as the command's error."""
    if done.verified:
        are = "is as it was" if done.snapshots == 1 else "are as they were"
        size, time = format_size(done.bytes), format_duration(done.seconds)
        return [f"{counted(done.snapshots, 'snapshot')} {are} written: {size} read in {time}"]
    damaged = {snapshot.number for snapshot in done.damage}
    return [
        *(f"snapshot {snapshot.number}: {snapshot.why}" for snapshot in done.damage),
        *(
            f"snapshot {snapshot.number}: it cannot be restored, because it shows pages of snapshot {snapshot.through}"
            for snapshot in done.lost
            if snapshot.number not in damaged
        ),
    ]


KIND = Kind(VerifiedDirectory, _text)
