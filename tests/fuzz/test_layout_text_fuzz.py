"""What happens to the monitor's text on its way: it is read as it was, or refused with a sentence, or a note says more.

Never a traceback, and never other sizes without a word.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy import memory
from precopy.errors import LayoutError, LayoutTextError, UsageError
from precopy.memory import CAPTURES, Capture, RamLayout, Section
from precopy.memory.captures.mtree import MtreeRange, MtreeSpace, MtreeView, format_mtree
from precopy.memory.captures.ramblock import RamblockRow, format_ramblock
from support.layout_texts import posted, write_capture

SHIPPED = Path(memory.__file__).parent / "captures"
CASES = Path(__file__).parents[1] / "cases"
PAGE = 4096


def _texts() -> dict[str, tuple[str, str]]:
    directories = [*(SHIPPED / name for name in CAPTURES), *sorted(CASES.glob("layout-*"))]
    texts = {
        path.name: ((path / "ramblock.txt").read_text(), (path / "mtree-flat.txt").read_text()) for path in directories
    }
    ramblock, mtree = posted("ramblock"), posted("mtree-flat")
    return texts | {name: (ramblock[name], mtree[name]) for name in ramblock.keys() & mtree.keys()}


TEXTS = _texts()
ORIGINALS: dict[str, RamLayout] = {}

Change = Callable[[str, int, int], str]


def at_line(text: str, place: int, put: Callable[[str], str]) -> str:
    """The text with one of its lines given to ``put``."""
    lines = text.split("\n")
    lines[place % len(lines)] = put(lines[place % len(lines)])
    return "\n".join(lines)


CHANGES: dict[str, Change] = {
    "empty lines at its end": lambda text, _, count: text + "\n" * (1 + count % 3),
    "empty lines at its head": lambda text, _, count: "\n" * (1 + count % 3) + text,
    "line ends of a terminal": lambda text, _at, _n: text.replace("\n", "\r\n"),
    "without what ends it": lambda text, _at, _n: text.rstrip("\n"),
    "prompts around it": lambda text, _at, _n: f"(qemu) info\n{text}(qemu) ",
    "an echo with control codes": lambda text, _at, _n: f"(qemu) i\x1b[K\x1b[Din\x1b[Dinfo x\n{text}(qemu) quit\n",
    "other commands around it": lambda text, _at, _n: f"(qemu) info name\nvm\n(qemu) x\n{text}(qemu) y\nkvm: on\n",
    "a shell's prompt before it": lambda text, _at, _n: f"# virsh qemu-monitor-command vm --hmp info\n{text}",
    "an empty line in it": lambda text, at, _: at_line(text, at, lambda line: f"\n{line}"),
    "a trailing space": lambda text, at, _: at_line(text, at, lambda line: f"{line} "),
    "a tab": lambda text, at, _: at_line(text, at, lambda line: line.replace("  ", "\t", 1)),
    "a quoted line": lambda text, at, _: at_line(text, at, lambda line: f"> {line}"),
    "an indented line": lambda text, at, _: at_line(text, at, lambda line: f"  {line}"),
    "a colour": lambda text, at, _: at_line(text, at, lambda line: f"\x1b[1m{line}\x1b[0m"),
    "a wrapped line": lambda text, at, n: at_line(text, at, lambda line: f"{line[: n % 90]}\n{line[n % 90 :]}"),
    "the text twice": lambda text, _at, _n: text + text,
    "cut at a byte": lambda text, at, _: text[: at % (len(text) + 1)],
    "a line of a log in it": lambda text, at, _: at_line(text, at, lambda line: f"qemu: warning: x\n{line}"),
    "a byte-order mark": lambda text, _at, _n: "\ufeff" + text,
    "a NUL": lambda text, at, _: text[: at % len(text)] + "\0" + text[at % len(text) :],
}  # fmt: skip


def read(ramblock: str, mtree: str) -> Capture:
    with tempfile.TemporaryDirectory() as directory:
        return Capture.read(write_capture(Path(directory), ramblock, mtree))


def original(name: str) -> RamLayout:
    if name not in ORIGINALS:
        ORIGINALS[name] = read(*TEXTS[name]).layout()
    return ORIGINALS[name]


def _place(one: Section) -> tuple[int, int, int]:
    return one.offset, one.pages, one.gpa


def check_same_or_said(name: str, ramblock: str, mtree: str) -> str:
    """What became of it: ``same``, ``noted`` or ``refused``."""
    expected = original(name)
    try:
        capture = read(ramblock, mtree)
        layout = capture.layout()
    except (LayoutError, UsageError) as error:
        return "refused" if "\n" not in str(error) and len(str(error)) < 2000 else f"refused at length: {error}"
    if layout == expected:
        return "same"
    if not capture.views[-1].ended:
        assert any("without its last empty line" in note for note in capture.notes)
        return "noted"
    # A table of blocks that was cut between two lines is a table: what is mapped cannot be missing.
    shown, all_shown = ([(one.block.name, *_place(one)) for one in each.sections] for each in (layout, expected))
    assert shown == all_shown
    sizes, whole = ({(block.name, block.pages) for block in one.blocks} for one in (layout, expected))
    assert sizes < whole
    return "noted"


@given(
    name=st.sampled_from(sorted(TEXTS)),
    changes=st.lists(
        st.tuples(st.sampled_from(sorted(CHANGES)), st.booleans(), st.integers(0, 1 << 20), st.integers(0, 200)),
        min_size=1,
        max_size=3,
    ),
)
def test_it_is_read_as_it_was_or_refused(name: str, changes: list[tuple[str, bool, int, int]]) -> None:
    ramblock, mtree = TEXTS[name]
    for change, of_blocks, at, count in changes:
        if of_blocks:
            ramblock = CHANGES[change](ramblock, at, count)
        else:
            mtree = CHANGES[change](mtree, at, count)
    assert check_same_or_said(name, ramblock, mtree) in {"same", "noted", "refused"}


HARMLESS = (
    "empty lines at its end",
    "empty lines at its head",
    "line ends of a terminal",
    "prompts around it",
    "an echo with control codes",
    "other commands around it",
)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_what_terminals_and_virsh_add_is_passed_over(name: str) -> None:
    ramblock, mtree = TEXTS[name]
    for change in HARMLESS:
        changed = (CHANGES[change](text, 0, 1) for text in (ramblock, mtree))
        assert check_same_or_said(name, *changed) == "same", change


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_without_its_end_it_is_read_and_that_is_said(name: str) -> None:
    ramblock, mtree = (text.rstrip("\n") for text in TEXTS[name])
    capture = read(ramblock, mtree)
    assert capture.layout() == original(name)
    assert any("without its last empty line" in note for note in capture.notes)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_text_that_is_cut_anywhere_in_its_last_lines(name: str) -> None:
    """Every byte of the last view's last lines: an offset, an accelerator or a name that is cut must not be taken for
    another."""
    ramblock, mtree = TEXTS[name]
    mtree = mtree.rstrip("\n") + "\n\n"
    for end in range(max(len(mtree) - 250, 0), len(mtree)):
        what = check_same_or_said(name, ramblock, mtree[:end])
        lines = mtree[:end].split("\n")
        whole = lines[-1] in {"", *mtree.split("\n")}
        assert what in {"refused", "same"} or whole or "i/o" in lines[-1], lines[-1]


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_table_of_blocks_that_is_cut_anywhere(name: str) -> None:
    ramblock, mtree = TEXTS[name]
    ramblock = ramblock.rstrip("\n") + "\n"
    whole = ["", *ramblock.split("\n")]
    for end in range(max(len(ramblock) - 400, 0), len(ramblock)):
        what = check_same_or_said(name, ramblock[:end], mtree)
        assert what == "refused" or ramblock[:end].split("\n")[-1] in whole


def test_long_texts_take_time_by_their_length() -> None:
    """Anything quadratic in lines, views, address spaces or prompts would take minutes."""
    row = RamblockRow("ram", PAGE, 0, 1 << 30, 1 << 30)
    ranges = tuple(MtreeRange(16 * n, 16 * n + 7, 0, "i/o", "device") for n in range(10_000))
    ranges += (MtreeRange(1 << 32, (1 << 32) + PAGE - 1, 0, "ram", "ram"),)
    spaces = tuple(MtreeSpace("memory" if not n else f"device-{n}", "system") for n in range(20_000))
    views = [MtreeView(0, spaces, "system", ranges)]
    views += [MtreeView(n, (MtreeSpace("x", "x"),), "x", None) for n in range(1, 20_000)]
    mtree = "(qemu) \n" * 50_000 + format_mtree(views) + "(qemu) help\n" * 50_000
    layout = read(format_ramblock([row]), mtree).layout()
    assert [(one.gpa, one.pages) for one in layout.sections] == [(1 << 32, 1)]


def test_many_regions_of_one_name_take_time_by_their_number() -> None:
    rows = [RamblockRow(f"dev{n}/vram", PAGE, n << 20, PAGE, PAGE) for n in range(1000)]
    ranges = tuple(MtreeRange(n << 20, (n << 20) + PAGE - 1, 0, "ram", "vram") for n in range(20_000))
    view = MtreeView(0, (MtreeSpace("memory", "system"),), "system", ranges)
    layout = read(format_ramblock(rows), format_mtree([view])).layout()
    assert len(layout.sections) == 20_000
    assert len({one.block.name for one in layout.sections}) == 1000


@given(st.text(max_size=400), st.text(max_size=400))
def test_any_text_is_refused(ramblock: str, mtree: str) -> None:
    with pytest.raises((LayoutTextError, UsageError)):
        read(
            ramblock.encode(errors="replace").decode(errors="replace"),
            mtree.encode(errors="replace").decode(errors="replace"),
        )
