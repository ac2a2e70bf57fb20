"""Which memory may add a snapshot to a directory: the one whose content goes on from the newest snapshot there.

A memory is the *successor* of a snapshot that it has saved, or was restored from. A snapshot is known by number and id,
which `compact` keeps. Any memory may begin an empty directory. Where others are refused, what they would have shut out
is still there: with ``replace`` the caller says that it is to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from precopy.errors import SnapshotDamaged, SnapshotError, Unsupported, UsageError
from precopy.snapshot_store.chain import Chain
from precopy.snapshot_store.directory import Directory
from precopy.snapshot_store.format import Parent
from precopy.snapshot_store.reading import StoredFile
from precopy.snapshot_store.writing import Label


@dataclass
class Lineage:
    """The snapshots of one directory that a memory's content comes from."""

    last: Parent | None = None
    """The newest that was committed, or restored."""
    ids: dict[int, str] = field(default_factory=dict)
    """Of all of them that may still be there, by number."""
    chain: frozenset[int] = frozenset()
    """The numbers of the files that ``last`` was made up of."""
    trying: Label | None = None
    """One whose commit was begun."""
    exact: bool = True
    """Whether all that was written since ``last`` is known: not where the kernel did not track the memory then."""

    def committed(self, label: Label, *, exact: bool) -> None:
        """The snapshot ``label`` is in the directory. ``exact``: what is written from here on will be known."""
        self.trying = None
        self.last, self.exact = Parent(label.number, label.id), exact
        self.ids[label.number] = label.id
        self.chain = frozenset({label.number}) | (frozenset() if label.parent is None else self.chain)

    def restored(self, chain: Chain) -> None:
        """The memory was just made of ``chain``."""
        newest = chain.newest.header
        self.last, self.chain = Parent(newest.number, newest.id), chain.numbers
        self.ids = {file.header.number: file.header.id for file in chain.files}

    def settle(self, newest: Newest, numbers: Sequence[int]) -> None:
        """Takes in what has become of the directory. A snapshot whose caller did not hear that it was committed counts;
        what it holds is saved again."""
        if self.trying is not None and newest.id == self.trying.id:
            self.committed(self.trying, exact=self.exact)
        there = set(numbers)
        self.ids = {number: id for number, id in self.ids.items() if number in there}


@dataclass(frozen=True)
class Newest:
    """The newest snapshot of a directory: ``damage`` says why ``id`` and ``size`` (of its memory, in bytes) are not
    known."""

    number: int
    id: str | None = None
    size: int | None = None
    damage: str = ""


def newest_of(store: Directory, numbers: Sequence[int]) -> Newest | None:
    """None in an empty directory. Only the header is read."""
    if not numbers:
        return None
    number = numbers[-1]
    try:
        with StoredFile(store, number) as file:
            return Newest(number, file.header.id, file.header.size)
    except FileNotFoundError:
        return Newest(number, damage=f"{store.file(number)} was removed meanwhile")
    except (SnapshotDamaged, SnapshotError, Unsupported) as error:
        return Newest(number, damage=str(error))


def check_successor(store: Directory, newest: Newest, mine: Lineage, others: Iterable[Lineage], size: int) -> None:
    """Raises `UsageError` unless a memory of ``size`` bytes is the successor of ``newest``. ``mine`` is its lineage in
    this directory; ``others`` those in other ones, of which this may be a copy.

    One that cannot be read is taken for what this memory has saved under its number: nothing in it is lost by going on.
    """
    last = mine.last
    if newest.id is None and last is not None and last.number == newest.number:
        return
    if any(known.ids.get(newest.number, "") == newest.id for known in (mine, *others)):
        return
    raise UsageError(f"{store.path} {_refusal(newest, last, size)}")


def _refusal(newest: Newest, last: Parent | None, size: int) -> str:
    number = newest.number
    if newest.id is None:
        return (
            f"has snapshot {number}, and whether this memory goes on from it cannot be told ({newest.damage}); give "
            f"replace=True to save all of this memory after it"
        )
    if newest.size != size:
        return (
            f"holds a memory of {newest.size} bytes (snapshot {number}), and this one has {size}; use one directory "
            f"for each memory, or give replace=True to begin anew with this one"
        )
    if last is None:
        return (
            f"has snapshot {number}, which this memory does not go on from; begin with precopy.open_memory(directory, "
            f"size), which restores it, or give replace=True to begin anew with this memory"
        )
    return (
        f"has got snapshot {number} of another memory since this one's {last.number}; use one directory for each "
        f"memory, or give replace=True to go on with this one"
    )


def parent_in(store: Directory, newest: Newest, mine: Lineage, numbers: Sequence[int]) -> Parent | None:
    """What the next snapshot of ``newest``'s successor can hold the changes to: the last one, if it is the newest there
    and all that it needs is there, too; None where the next has to be full."""
    last = mine.last
    if last is None or not mine.exact or (newest.number, newest.id) != (last.number, last.id):
        return None
    if not mine.chain <= set(numbers):  # compacted since, or lost
        try:
            with Chain(store, last.number) as chain:
                mine.chain = chain.numbers
        except (SnapshotDamaged, SnapshotError, Unsupported, FileNotFoundError):
            return None
    return last
