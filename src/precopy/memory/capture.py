"""The memory of a real machine as QEMU's monitor showed it: files, regions, and a layout to run a guest with.

A capture is a directory with ``ramblock.txt`` (``info ramblock``), ``mtree-flat.txt`` (``info mtree -f``) and, if it
is known, ``command.txt`` (what was run). Some ship with the package: `CAPTURES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from precopy.errors import LayoutError, UsageError
from precopy.memory.address_space import AddressSpace
from precopy.memory.layout import RamLayout
from precopy.memory.monitor import MtreeView, RamblockRow, format_mtree, format_ramblock, parse_mtree, parse_ramblock
from precopy.memory.rebuild import Rebuilder, ram_blocks
from precopy.memory.scaling import scaled
from precopy.memory.text_lines import MAX_TEXT

_SHIPPED = Path(__file__).parent / "captures"
_RAMBLOCK, _MTREE, _COMMAND = "ramblock.txt", "mtree-flat.txt", "command.txt"

CAPTURES = tuple(sorted(path.name for path in _SHIPPED.iterdir() if path.is_dir()))
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
            directory.resolve().name,
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
        if not Path(name).is_dir():
            raise UsageError(f"{name!r} is no directory and no captured layout; there are {', '.join(CAPTURES)}")
        return cls.read(Path(name))

    def write(self, directory: Path) -> None:
        """Writes the files of the capture, byte for byte as they were read. Raises `UsageError`."""
        texts = {_RAMBLOCK: format_ramblock(self.blocks), _MTREE: format_mtree(self.views), _COMMAND: self.command}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for file, text in texts.items():
                if text is not None:
                    (directory / file).write_bytes(text.encode())
        except OSError as error:
            raise UsageError(f"cannot write the captured layout to {directory}: {error.strerror}") from None

    def regions(self) -> tuple[AddressSpace, ...]:
        """An address space for each one that the text names, in its order; names may come twice.

        Its view, written as text, is the text that was read. Raises `LayoutError` where that cannot be, such as for
        memory without a RAM block.
        """
        rebuilder = Rebuilder(ram_blocks(self.blocks), self.views)
        return tuple(space for view in self.views for space in rebuilder.spaces(view))

    def layout(self, ram: int | None = None) -> RamLayout:
        """All named blocks and the sections of them in address space ``memory``, with ``ram`` bytes of main memory.

        Without ``ram`` the machine's own. Raises `LayoutError` where they cannot be a memory, or not with that ``ram``.
        """
        view = next((view for view in self.views if any(one.name == "memory" for one in view.address_spaces)), None)
        if view is None:
            raise LayoutError(f"the captured layout {self.name!r} has no address space called memory")
        blocks = ram_blocks(self.blocks)
        (space, *_) = Rebuilder(blocks, [view]).spaces(view)
        layout = RamLayout(blocks, space.view.sections)
        return layout if ram is None else scaled(layout, ram)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT + 1).decode().replace("\r\n", "\n")  # as a monitor on a terminal ends its lines
    except OSError as error:
        raise UsageError(f"cannot read the captured layout's {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"the captured layout's {path} is no text: byte {error.start} is not UTF-8") from None
