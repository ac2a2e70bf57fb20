"""The memory of a real machine as QEMU's monitor showed it: files, regions, and a layout to run a guest with.

A capture is a directory with ``ramblock.txt`` (``info ramblock``), ``mtree-flat.txt`` (``info mtree -f``) and, if it
is known, ``command.txt`` (what was run). Some ship with the package: `CAPTURES`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from precopy.bitmap import BITS_PER_WORD
from precopy.errors import LayoutError, UsageError, raise_without_descriptor
from precopy.memory.captures.lookup import BlockLookup
from precopy.memory.captures.mtree import MtreeView, format_mtree, parse_mtree
from precopy.memory.captures.ramblock import RamblockRow, format_ramblock, parse_ramblock
from precopy.memory.captures.rebuild import Rebuilder, ram_blocks
from precopy.memory.captures.scaling import scaled
from precopy.memory.captures.text_lines import MAX_TEXT
from precopy.memory.layout import RamBlock, RamLayout
from precopy.memory.topology.address_space import AddressSpace
from precopy.units import PAGE_SIZE

_SHIPPED = Path(__file__).parent
_SHOWN = 100
"""Characters of a name that cannot be meant, in the sentence about it."""
_NAMED = 4
"""Names that a note says, at most."""
_RAMBLOCK, _MTREE, _COMMAND = "ramblock.txt", "mtree-flat.txt", "command.txt"


def captures_in(folder: Path) -> tuple[str, ...]:
    """Names of the captures in ``folder``, where Python keeps its bytecode, too."""
    return tuple(sorted(path.parent.name for path in folder.glob(f"*/{_RAMBLOCK}")))


CAPTURES = captures_in(_SHIPPED)
"""Names of the captures that ship with the package."""


@dataclass(frozen=True)
class Capture:
    """RAM blocks and flat views of one machine; ``command`` is the text of what was run, or None."""

    name: str
    blocks: tuple[RamblockRow, ...]
    views: tuple[MtreeView, ...]
    command: str | None = None

    @classmethod
    def read(cls, directory: Path) -> Capture:
        """The capture in ``directory``. Raises `UsageError` for files that are missing, `LayoutTextError`."""
        ramblock, mtree = directory / _RAMBLOCK, directory / _MTREE
        return cls(
            os.path.basename(_resolved(directory)),
            parse_ramblock(_read(ramblock), str(ramblock)),
            parse_mtree(_read(mtree), str(mtree)),
            _read(directory / _COMMAND) if (directory / _COMMAND).exists() else None,
        )

    @classmethod
    def named(cls, name: str) -> Capture:
        """A capture that ships with the package. Raises `UsageError` for a name that is not in `CAPTURES`."""
        if name not in CAPTURES:
            raise UsageError(f"no captured layout is called {name!r}; there are {', '.join(CAPTURES)}")
        return cls.read(_SHIPPED / name)

    @classmethod
    def find(cls, name: str) -> Capture:
        """The capture that ships under this name, or else the one in the directory of this name. Raises `UsageError`,
        `LayoutTextError`."""
        if name in CAPTURES:
            return cls.named(name)
        if not os.path.isdir(name):  # of what can be no path, too; Path.is_dir raises for a name that is too long
            close = difflib.get_close_matches(name[:100].lower(), CAPTURES, 1)
            meant = f". Did you mean {close[0]!r}?" if close else ""
            known = ", ".join(CAPTURES)
            raise UsageError(f"{name[:_SHOWN]!r} is no directory and no captured layout; there are {known}{meant}")
        return cls.read(Path(name))

    def write(self, directory: Path) -> None:
        """Writes the files of the capture, byte for byte as the monitor wrote them. Raises `UsageError`."""
        texts = {_RAMBLOCK: format_ramblock(self.blocks), _MTREE: format_mtree(self.views), _COMMAND: self.command}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for file, text in texts.items():
                if text is not None:
                    (directory / file).write_bytes(text.encode())
        except OSError as error:
            raise_without_descriptor("open", str(directory), error)
            raise UsageError(f"cannot write the captured layout to {directory}: {error.strerror}") from None

    def regions(self) -> tuple[AddressSpace, ...]:
        """An address space for each one that the text names, in its order; names may come twice.

        Its view, written as text, is the text that was read. Raises `LayoutError` where that cannot be, such as for
        memory without a RAM block.
        """
        rebuilder = Rebuilder(self.blocks, ram_blocks(self.blocks), self.views)
        return tuple(space for view in self.views for space in rebuilder.spaces(view))

    def layout(self, ram: int | None = None) -> RamLayout:
        """All named blocks and the sections of them in address space ``memory``, with ``ram`` bytes of main memory.

        Without ``ram`` the machine's own. Raises `LayoutError` where they cannot be a memory, or not with that ``ram``.
        """
        layout, _ = self._described
        return layout if ram is None else scaled(layout, ram)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what is not in the layout, or in another way than in the text. Raises as `layout`."""
        _, notes = self._described
        return notes

    @cached_property
    def _described(self) -> tuple[RamLayout, tuple[str, ...]]:
        view = next((view for view in self.views if any(space.name == "memory" for space in view.address_spaces)), None)
        if view is None:
            raise LayoutError(f"the captured layout {self.name!r} has no address space called memory")
        blocks = ram_blocks(self.blocks)
        rebuilder = Rebuilder(self.blocks, blocks, [view])
        layout = RamLayout(blocks, rebuilder.flat_view(view).sections)
        return layout, (*self._notes_of_text(blocks), *_notes_of_lookup(rebuilder.lookup))

    def _notes_of_text(self, blocks: Sequence[RamBlock]) -> Iterator[str]:
        if not self.views[-1].ended:
            yield "the text of info mtree -f ends without its last empty line, so ranges may be missing at its end"
        at = {row.name: row.offset for row in self.blocks}
        moved = [block.name for block in blocks if block.first_page * PAGE_SIZE != at[block.name]]
        if moved:
            yield (
                f"{_some(moved)} moved to a multiple of {BITS_PER_WORD} pages, where QEMU has RAM blocks from "
                "version 2.12 on"
            )


def _notes_of_lookup(lookup: BlockLookup) -> Iterator[str]:
    if lookup.unmigrated:
        yield f"memory that QEMU does not migrate is left out: {_some(tuple(lookup.unmigrated))}"
    if lookup.choices:
        blocks = [block.name for among in lookup.choices.values() for block in among]
        yield (
            f"which range of {_some(tuple(lookup.choices))} is of which RAM block, the text does not say; chosen by "
            f"size among {_some(blocks)}"
        )


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _resolved(directory: Path) -> str:
    try:
        return os.path.realpath(directory)
    except OSError:  # the working directory is gone, and with it what is relative to it
        return str(directory)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            # A monitor on a terminal ends its lines so, and a terminal in between adds one more CR.
            return file.read(MAX_TEXT + 1).decode().replace("\r\r\n", "\n").replace("\r\n", "\n")
    except OSError as error:
        raise_without_descriptor("open", str(path), error)
        raise UsageError(f"cannot read the captured layout's {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"the captured layout's {path} is no text: byte {error.start} is not UTF-8") from None
