"""What is done with the snapshots of a directory besides making and restoring them: list, verify, fold, export."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field

from precopy.bitmap import NO_RUNS
from precopy.errors import SnapshotDamaged, SnapshotError, Unsupported, UsageError
from precopy.memory.packing import compressor
from precopy.report.kinds.snapshot_compact import Compacted
from precopy.report.kinds.snapshot_list import Stored
from precopy.snapshot_store.chain import Chain, there_are
from precopy.snapshot_store.directory import Directory
from precopy.snapshot_store.reading import StoredFile
from precopy.snapshot_store.writing import Content, Label, write
from precopy.units import PAGE_SIZE, check_count, format_size


@dataclass(frozen=True)
class Verified:
    """What `verify` has read: ``damage`` by snapshot, each with one sentence; none where all is well, and only then is
    it true (``if precopy.verify(directory):``).

    ``lost`` has the snapshots that cannot be restored any more, ascending, each with the number of the file that is
    damaged or gone: the snapshot's own, or one that it follows. An increment that has all those pages anew which are
    damaged in what it follows can still be restored, and so can one that follows a damaged file of which it shows no
    damaged page."""

    snapshots: int
    bytes: int
    seconds: float
    damage: dict[int, str]
    lost: dict[int, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return not self.damage


def snapshots(directory: str | os.PathLike[str]) -> list[Stored]:
    """All snapshots of a directory, ascending. Raises `UsageError`, `SnapshotError`."""
    with Directory(directory) as store:
        return _listed(store)


def _listed(store: Directory) -> list[Stored]:
    complete: dict[int, tuple[str, int]] = {}
    found = (_stored(store, number, complete) for number in store.numbers())
    return [entry for entry in found if entry is not None]


def _stored(store: Directory, number: int, complete: dict[int, tuple[str, int]]) -> Stored | None:
    """``complete`` has number, id and size of those before that can be restored, and gets this one's. None: it is gone
    meanwhile."""
    try:
        with StoredFile(store, number) as file:
            header = file.header
            follows = header.parent
            damage = None
            if follows is not None and complete.get(follows.number) != (follows.id, header.size):
                damage = f"snapshot {follows.number}, which it follows, is not there or is damaged"
            else:
                complete[number] = (header.id, header.size)
            return Stored(
                number=number,
                parent=None if follows is None else follows.number,
                size=header.size,
                pages=header.content_pages,
                zero_pages=header.absent_pages if follows is None else header.zero_pages,
                bytes=file.stored_bytes,
                compression=header.compression.value,
                created_s=header.created_s,
                damage=damage,
            )
    except FileNotFoundError:
        return None
    except (SnapshotDamaged, SnapshotError, Unsupported) as error:
        return Stored(number, None, 0, 0, 0, 0, "?", 0.0, str(error))


def verify(directory: str | os.PathLike[str], at: int | None = None) -> Verified:
    """Reads every byte of all snapshots of a directory (or of those that ``at`` is made up of) and holds them against
    their checksums, and increments against what they follow. Damage is returned and not raised, and so is what the
    system cannot read.

    Raises `UsageError` where there is no directory or no such snapshot, `SnapshotError` where the directory cannot be
    read, `Unsupported` for a compressed one without the extra ``snapshot``.
    """
    if at is not None:
        at = check_count("the number of a snapshot", at, 0)
    began = time.perf_counter()
    damage: dict[int, str] = {}
    read = gone = 0
    with Directory(directory) as store:
        listed = {entry.number: entry for entry in _listed(store)}
        if not listed:
            raise UsageError(f"{store.path} has no snapshot, so nothing was verified")
        if at is not None and at not in listed:
            raise UsageError(f"{store.path} has no snapshot {at}; there {there_are(list(listed))}")
        numbers = list(listed) if at is None else _made_of(listed, at)
        for number in numbers:
            entry = listed[number]
            if entry.damage is not None:
                damage[number] = entry.damage
                continue
            try:
                with StoredFile(store, number) as file:
                    file.check()
                    read += file.stored_bytes
            except FileNotFoundError:
                gone += 1  # a compaction has removed it meanwhile
            except (SnapshotDamaged, SnapshotError) as error:
                damage[number] = str(error)
        lost = _lost(store, [listed[number] for number in numbers], damage) if damage else {}
    return Verified(len(numbers) - gone, read, time.perf_counter() - began, damage, lost)


def _lost(store: Directory, checked: list[Stored], damage: dict[int, str]) -> dict[int, int]:
    """Which of the ``checked`` snapshots, ascending, cannot be restored, and the number of the file because of which.
    Reads again only what snapshots show of damaged files."""
    lost: dict[int, int] = {}
    there = {entry.number for entry in checked}
    behind: set[int] = set()
    """Snapshots that are damaged, or follow one that is."""
    for entry in checked:
        if entry.number not in damage and entry.parent not in behind:
            continue
        behind.add(entry.number)
        through: int | None
        if entry.damage is not None:  # by its header alone
            through = entry.number
            if entry.parent is not None and entry.parent not in there:
                through = entry.parent
            elif entry.parent is not None:
                through = lost.get(entry.parent, entry.number)
        else:
            through = _lost_through(store, entry.number, damage)
        if through is not None:
            lost[entry.number] = through
    return lost


def _lost_through(store: Directory, number: int, damage: dict[int, str]) -> int | None:
    """The damaged file of which snapshot ``number`` shows a page that cannot be read, or whose table cannot."""
    file: StoredFile | None = None
    try:
        with Chain(store, number) as chain:
            for file in chain.files:
                _ = file.table
            for layer in chain.compose().layers:
                file = layer.file
                if file.header.number in damage:
                    file.check_groups(layer.groups())
    except FileNotFoundError:
        return None  # a compaction has removed it meanwhile
    except (SnapshotDamaged, SnapshotError):
        return number if file is None else file.header.number
    return None


def _made_of(listed: dict[int, Stored], at: int) -> list[int]:
    numbers = [at]
    while (parent := listed[numbers[-1]].parent) is not None and parent in listed:
        numbers.append(parent)
    return numbers[::-1]


def compact(directory: str | os.PathLike[str], keep: int = 1) -> Compacted:
    """Folds increments, so that the ``keep`` newest snapshots can still be restored and no file before them is needed;
    then removes those files. The folded one keeps its number, so that increments to it go on.

    What is folded is read and checked first; nothing is removed before what replaces it is on disk. Stopped anywhere,
    each snapshot that was not to go can be restored. Snapshots that cannot be restored go, too, if they are older.

    Raises `UsageError` where there is none, or another process writes; `SnapshotDamaged`; `SnapshotError` (a full
    disk): then all is as before.
    """
    keep = check_count("how many snapshots to keep", keep, 1)
    began = time.perf_counter()
    with Directory(directory) as store, store.locked():
        numbers = store.numbers()
        complete = [entry.number for entry in _listed(store) if entry.damage is None]
        if not complete:
            raise UsageError(f"{store.path} has no snapshot that can be restored")
        number = complete[-keep:][0]
        before = _stored_bytes(store, numbers)
        old = [older for older in numbers if older < number]
        try:
            opened = Chain(store, number)
        except FileNotFoundError:  # no compaction's doing: the lock is held
            raise SnapshotError(f"{store.file(number)} was removed while it was compacted; try again") from None
        with opened as chain:
            folded = len(chain.files)
            if folded > 1:
                _fold(store, chain)
            elif old:
                chain.newest.check()  # nothing goes before what stays is known to be good
        store.remove(old[::-1])  # the newest first: what is left at any moment can be restored
        after = _stored_bytes(store, [kept for kept in numbers if kept >= number])
    return Compacted(number, folded, len(old), before, after, time.perf_counter() - began)


def _fold(store: Directory, chain: Chain) -> None:
    """Replaces the newest file of a chain by a full one with the same content, compressed where the chain's base is."""
    header, base = chain.newest.header, chain.files[0].header
    composition = chain.compose()
    content = Content(header.size, composition.content(), NO_RUNS, composition.fill)
    compress = None if not base.compressed else compressor(None)
    need = format_size(content.content.pages * PAGE_SIZE)
    left = f"nothing has changed: up to {need} are written before anything is removed"
    with store.writing(header.number, left) as fd:
        write(fd, content, Label(header.number, header.id, None, header.created_s), compress)


def _stored_bytes(store: Directory, numbers: list[int]) -> int:
    total = 0
    for number in numbers:
        with contextlib.suppress(FileNotFoundError):
            fd = store.open(number)
            total += os.fstat(fd).st_blocks * 512
            os.close(fd)
    return total
