"""The monitor's text: what is read from it, and that what is no such text is refused where it goes wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from precopy import memory
from precopy.errors import LayoutError, LayoutTextError, UsageError
from precopy.memory import CAPTURES, Capture
from precopy.memory.captures import mtree as mtree_module
from precopy.memory.captures.mtree import MtreeRange, MtreeSpace, MtreeView, format_mtree, parse_mtree
from precopy.memory.captures.ramblock import RamblockRow, format_ramblock, parse_ramblock
from precopy.memory.captures.text_lines import MAX_LINE

KIB, MIB = 1 << 10, 1 << 20
SHIPPED = Path(memory.__file__).parent / "captures"

RAMBLOCK = """\
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000
    /rom@etc/acpi/tables    4 KiB  0x0000000020040000 0x0000000000020000 0x0000000000200000
0000:00:02.0/virtio-net-pci.rom    2 MiB  0x0000000020000000 0x0000000000040000 0x0000000000040000
"""
ROWS = (
    RamblockRow("pc.ram", 4 * KIB, 0, 512 * MIB, 512 * MIB),
    RamblockRow("/rom@etc/acpi/tables", 4 * KIB, 0x20040000, 128 * KIB, 2 * MIB),
    RamblockRow("0000:00:02.0/virtio-net-pci.rom", 2 * MIB, 0x20000000, 256 * KIB, 256 * KIB),
)
RAMBLOCK_8 = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000 0x00007f5a1be00000  rw
                  pc.rom    4 KiB  0x0000000020000000 0x0000000000020000 0x0000000000020000 0x00007f5a3c200000  ro
                            4 KiB  0x0000000020040000 0x0000000000001000 0x0000000000001000 0x00007f5a3c400000  rw
"""
ROWS_8 = (
    RamblockRow("pc.ram", 4 * KIB, 0, 512 * MIB, 512 * MIB, 0x7F5A1BE00000, False),
    RamblockRow("pc.rom", 4 * KIB, 0x20000000, 128 * KIB, 128 * KIB, 0x7F5A3C200000, True),
    RamblockRow("", 4 * KIB, 0x20040000, 4 * KIB, 4 * KIB, 0x7F5A3C400000, False),
)
MTREE = """\
FlatView #0
 AS "memory", root: system
 AS "VGA, the 2nd", root: bus master, alias bus master container
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio -1, i/o): vga ioports remapped
  0000000000100000-000000001fffffff (prio 0, nv-ram): pc.ram @0000000000100000 KVM
  ffffffffffff0000-ffffffffffffffff (prio 4096, romd): system.flash

FlatView #12
 AS "PIIX3", root: bus master container
 Root memory region: (none)
  No rendered FlatView

"""
VIEWS = (
    MtreeView(
        0,
        (MtreeSpace("memory", "system"), MtreeSpace("VGA, the 2nd", "bus master", "bus master container")),
        "system",
        (
            MtreeRange(0, 0x9FFFF, 0, "ram", "pc.ram", 0, "KVM"),
            MtreeRange(0xA0000, 0xBFFFF, -1, "i/o", "vga ioports remapped"),
            MtreeRange(0x100000, 0x1FFFFFFF, 0, "ram", "pc.ram", 0x100000, "KVM", nonvolatile=True),
            MtreeRange(0xFFFFFFFFFFFF0000, 0xFFFFFFFFFFFFFFFF, 4096, "romd", "system.flash"),
        ),
    ),
    MtreeView(12, (MtreeSpace("PIIX3", "bus master container"),), "(none)", None),
)


def changed(text: str, old: str, new: str) -> str:
    """``text`` with the first ``old``, which is in it, replaced."""
    assert old in text
    return text.replace(old, new, 1)


class TestRamblock:
    @pytest.mark.parametrize(("text", "rows"), [(RAMBLOCK, ROWS), (RAMBLOCK_8, ROWS_8)], ids=["QEMU 7", "QEMU 8"])
    def test_both_forms_are_read_and_written(self, text: str, rows: tuple[RamblockRow, ...]) -> None:
        assert parse_ramblock(text) == rows
        assert format_ramblock(rows) == text

    @pytest.mark.parametrize(
        ("size", "text"),
        [(512, "512 B"), (4 * KIB, "4 KiB"), (64 * KIB, "64 KiB"), (2 * MIB, "2 MiB"), (1 << 30, "1 GiB")],
    )
    def test_page_sizes(self, size: int, text: str) -> None:
        written = format_ramblock([RamblockRow("a", size, 0, 4096, 4096)])
        assert f" {text}  0x" in written
        assert parse_ramblock(written)[0].page_size == size

    @pytest.mark.parametrize(
        ("old", "new", "line", "column", "says"),
        [
            ("Block Name", "Block name", 1, 21, "go on with 'Name "),
            ("Total\n", "Total\t\n", 1, 92, "the control character '\\t'"),
            ("Total\n", "Total \n", 1, 93, "go on with '               HVA"),
            ("PSize", "PSiz", 1, 33, "go on with 'e  "),
            ("pc.ram ", "pc ram ", 2, 22, "expected a number"),
            ("pc.ram    4 KiB", "pc.ram   3 KiB", 2, 28, "no power of two"),
            ("4 KiB", "0 KiB", 2, 29, "no power of two"),
            ("  4 KiB", "256  B", 2, 31, "expected B, KiB"),
            ("4 KiB", "4 kiB", 2, 31, "expected B, KiB, MiB, GiB or TiB"),
            ("   4 KiB", "9999 KiB", 2, 26, "no power of two"),
            ("4 KiB", "99999999999 KiB", 2, 29, "more than 32 bits"),
            ("0x00000000", "0y00000000", 2, 37, "expected '0x'"),
            ("0x0000000000000000", "0x000000000000000g", 2, 53, "expected ' '"),
            ("0x0000000000000000", "0x", 2, 38, "expected a hexadecimal number"),
            ("0x0000000020000000", "0x20000000", 2, 57, "go on with '0000000020000000"),
            ("0x0000000020000000", "0x00000000200000000", 2, 57, "more than 64 bits"),
            ("0x0000000020000000", "0X0000000020000000", 2, 56, "expected '0x'"),
            ("0x0000000020000000", "0x000000002000000A", 2, 72, "expected ' '"),
            ("0x0000000020000000\n", "0x0000000020000000\r\n", 2, 92, "the control character '\\r'"),
            ("0x0000000020000000\n", "0x0000000020000000 0x0000000000000000  rw\n", 2, 92, "its end"),
            ("0x0000000020000000 ", "0x0000000020000001 ", 2, 55, "uses 0x20000001 of its 0x20000000"),
            ("0x0000000020000000 ", "0x0000000000000000 ", 2, 55, "uses 0x0 of its"),
            ("0x0000000020040000", "0x0000000020040800", 3, 36, "no multiple of 4096"),
            ("0x0000000020040000", "0x0000000010000000", 3, 36, "'/rom@etc/acpi/tables' overlaps another"),
            ("0x0000000020040000", "0x000000001fe40000", 3, 36, "overlaps another"),
            ("0x0000000020040000", "0xffffffffffe40000", 3, 36, "ends beyond 64 bits"),
            ("0000:00:02.0/virtio-net-pci.rom", "                  pc.ram", 4, 19, "second RAM block 'pc.ram'"),
            ("  0x0000000020000000 0x0000000000040000", "  0x0000000020200000 0x0000000000040000", 4, 43, "overlaps"),
        ],
    )  # fmt: skip
    def test_what_is_refused_and_where(self, old: str, new: str, line: int, column: int, says: str) -> None:
        with pytest.raises(LayoutTextError, match=re.escape(says)) as caught:
            parse_ramblock(changed(RAMBLOCK, old, new), "ramblock.txt")
        assert (caught.value.what, caught.value.line, caught.value.column) == ("ramblock.txt", line, column)
        assert str(caught.value).startswith(f"ramblock.txt, line {line}, column {column}: ")

    @pytest.mark.parametrize(
        ("text", "line", "column"),
        [("", 1, 1), ("\n", 1, 1), (RAMBLOCK.splitlines()[0], 1, 92), (RAMBLOCK.splitlines()[0] + "\n", 2, 1),
         (RAMBLOCK[:-2], 4, 94), (RAMBLOCK + "\nx\n", 5, 1), ("\0" * 100 + "\n", 1, 1), ("\n" * 5, 1, 1)],
    )  # fmt: skip
    def test_texts_that_are_cut_or_none(self, text: str, line: int, column: int) -> None:
        with pytest.raises(LayoutTextError) as caught:
            parse_ramblock(text)
        assert (caught.value.line, caught.value.column) == (line, column)

    def test_more_blocks_than_there_can_be(self) -> None:
        rows = [RamblockRow(f"b{n}", 4096, n << 18, 4096, 4096) for n in range(1025)]
        assert parse_ramblock(format_ramblock(rows[:-1])) == tuple(rows[:-1])
        with pytest.raises(LayoutTextError, match="line 1026, column 1: more than 1024 RAM blocks"):
            parse_ramblock(format_ramblock(rows))

    def test_qemu_8s_columns_belong_to_its_head(self) -> None:
        with pytest.raises(LayoutTextError, match="line 2, column 92: expected ' '"):
            parse_ramblock(RAMBLOCK_8.splitlines()[0] + "\n" + RAMBLOCK.partition("\n")[2])
        with pytest.raises(LayoutTextError, match="line 3, column 113: expected ro or rw"):
            parse_ramblock(changed(RAMBLOCK_8, "  ro", "  rx"))


class TestMtree:
    def test_it_is_read_and_written(self) -> None:
        assert parse_mtree(MTREE) == VIEWS
        assert format_mtree(VIEWS) == MTREE

    def test_sizes_are_inclusive_of_the_end(self) -> None:
        assert [one.size for one in VIEWS[0].ranges or ()] == [0xA0000, 0x20000, 0x1FF00000, 0x10000]

    def test_a_range_may_be_all_there_is(self) -> None:
        everything = MtreeView(0, (MtreeSpace("a", "b"),), "b", (MtreeRange(0, (1 << 64) - 1, 0, "i/o", ""),))
        assert parse_mtree(format_mtree([everything])) == (everything,)

    @pytest.mark.parametrize(
        ("old", "new", "line", "column", "says"),
        [
            ("FlatView #0", "flatView #0", 1, 1, "expected 'FlatView #'"),
            ("FlatView #0", "FlatView #", 1, 11, "expected a number"),
            ("FlatView #0", "FlatView #00", 1, 12, "its end"),
            ("FlatView #0", "FlatView #-1", 1, 11, "go on with '1'"),
            ("FlatView #0", "FlatView #0\r", 1, 12, "the control character '\\r'"),
            ("FlatView #0\n", "FlatView #0\n\n", 2, 1, "expected ' AS \"'"),
            (' AS "memory"', ' AS "memory', 2, 26, "expected '\", root: '"),
            (' AS "memory"', ' As "memory"', 2, 3, "expected ' AS \"'"),
            (" Root memory", " Root Memory", 4, 7, "expected ' Root memory region: '"),
            ("  0000000000000000-", " 0000000000000000-", 5, 2, "expected '  '"),
            ("0000000000000000-", "000000000000000-", 5, 3 + 15, "go on with '0-00"),
            ("0000000000000000-", "00000000000000000-", 5, 3, "more than 64 bits"),
            ("0000000000000000-", "000000000000000x-", 5, 18, "expected '-'"),
            ("-000000000009ffff", "-00000000000fffff", 6, 3, "before the end of the one above, 0x100000"),
            ("-000000000009ffff", "-", 5, 20, "expected a hexadecimal number"),
            ("-00000000000bffff", "-000000000009ffff", 6, 20, "a range that ends at 0x9ffff, before it begins"),
            ("00000000000a0000-", "0000000000080000-", 6, 3, "before the end of the one above, 0xa0000"),
            ("(prio 0, ram)", "(prio , ram)", 5, 43, "expected a number"),
            ("(prio 0, ram)", "(prio 2147483648, ram)", 5, 43, "more than 32 bits"),
            ("(prio 0, ram)", "(prio 99999999999999999999, ram)", 5, 43, "more than 32 bits"),
            ("(prio 0, ram)", "(prio -0, ram)", 5, 43, "go on with '0, ram"),
            ("(prio 0, ram)", "(prio 0, rum)", 5, 46, "expected ram, rom, romd, ramd or i/o"),
            ("(prio 0, ram)", "(prio 0, ram]", 5, 49, "expected '): '"),
            ("@0000000000100000", "@00000000000100000", 7, 3 + 33 + 27, "more than 64 bits"),
            ("@0000000000100000", "@100000", 7, 3 + 33 + 27, "go on with '0000000000100000 KVM"),
            ("@0000000000100000", "@0000000000000000", 7, 3 + 33 + 26, "go on with 'KVM"),
            ("@0000000000100000", "@ffffffffffffffff", 7, 3 + 33 + 26, "beyond 64 bits in its region"),
            ("system.flash\n\n", "system.flash\n", 9, 1, "its end"),
            ("system.flash\n\n", "system.flash\n\n\n", 10, 1, "expected 'FlatView #'"),
            ("  No rendered FlatView", "  No rendered", 13, 3, "expected a hexadecimal number"),
            ("  No rendered FlatView\n", "", 13, 1, "the text ends where a range is expected"),
        ],
    )  # fmt: skip
    def test_what_is_refused_and_where(self, old: str, new: str, line: int, column: int, says: str) -> None:
        with pytest.raises(LayoutTextError) as caught:
            parse_mtree(changed(MTREE, old, new), "mtree-flat.txt")
        assert (caught.value.line, caught.value.column) == (line, column), caught.value
        assert says in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "line", "column"),
        [("", 1, 1), (MTREE[:-3], 13, 3), (MTREE + "x\n", 15, 1), ("FlatView #0\n", 2, 1), ("FlatView #0", 1, 12)],
    )
    def test_texts_that_are_cut_or_none(self, text: str, line: int, column: int) -> None:
        with pytest.raises(LayoutTextError) as caught:
            parse_mtree(text)
        assert (caught.value.line, caught.value.column) == (line, column)

    def test_a_line_and_a_view_have_an_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        long = changed(MTREE, "vga ioports remapped", "x" * MAX_LINE)
        with pytest.raises(LayoutTextError, match=f"line 6, column {MAX_LINE + 1}: a line of more than"):
            parse_mtree(long)
        monkeypatch.setattr(mtree_module, "MAX_RANGES", 4)
        assert parse_mtree(MTREE) == VIEWS
        monkeypatch.setattr(mtree_module, "MAX_RANGES", 3)
        with pytest.raises(LayoutTextError, match="line 8, column 1: a view of more than 3 ranges"):
            parse_mtree(MTREE)

    def test_unicode_digits_are_no_digits(self) -> None:
        with pytest.raises(LayoutTextError, match="line 1, column 11"):
            parse_mtree(changed(MTREE, "#0", "#\N{ARABIC-INDIC DIGIT ZERO}"))


class TestAnyText:
    """Every prefix of the captured texts, and every text with one character less, is read or refused."""

    @pytest.mark.parametrize("name", CAPTURES)
    def test_ramblock(self, name: str) -> None:
        text = (SHIPPED / name / "ramblock.txt").read_text()
        for at in range(len(text)):
            for broken in (text[:at], text[:at] + text[at + 1 :]):
                try:
                    rows = parse_ramblock(broken)
                except LayoutTextError as error:
                    _check_place(error, broken)
                else:
                    assert format_ramblock(rows) == trimmed(broken) + "\n"

    @pytest.mark.parametrize("name", CAPTURES)
    def test_mtree(self, name: str) -> None:
        text = (SHIPPED / name / "mtree-flat.txt").read_text()
        views = text.split("FlatView")
        short = "FlatView".join(["", *(view for view in views if view and len(view) < 1600)])
        assert short.count("FlatView #") >= 2
        refused = 0
        for at in range(len(short)):
            for broken in (short[:at], short[:at] + short[at + 1 :]):
                try:
                    assert format_mtree(parse_mtree(broken)) == trimmed(broken) + "\n\n"
                except LayoutTextError as error:
                    _check_place(error, broken)
                    refused += 1
        assert refused > len(short)

    @pytest.mark.parametrize("name", CAPTURES)
    def test_captures_of_lines_left_out_are_rebuilt_or_refused(self, name: str, tmp_path: Path) -> None:
        capture = Capture.named(name)
        mtree = format_mtree(capture.views).splitlines(keepends=True)
        ramblock = format_ramblock(capture.blocks).splitlines(keepends=True)
        capture.write(tmp_path)
        rebuilt = 0
        for file, lines in (("mtree-flat.txt", mtree), ("ramblock.txt", ramblock)):
            for at in range(len(lines)):
                (tmp_path / file).write_text("".join(lines[:at] + lines[at + 1 :]))
                try:
                    read = Capture.read(tmp_path)
                    assert read.layout().pages > 0
                    assert len(read.regions()) >= 2
                    rebuilt += 1
                except LayoutError:
                    continue
            (tmp_path / file).write_text("".join(lines))
        assert Capture.read(tmp_path).views == capture.views
        assert rebuilt > len(mtree) // 2  # what a device shows can be left out, the heads of tables and views cannot

    def test_files_that_are_not_there_or_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"cannot read .*ramblock\.txt: No such file or directory"):
            Capture.read(tmp_path / "nowhere")
        Capture.named(CAPTURES[0]).write(tmp_path)
        (tmp_path / "command.txt").unlink()
        assert Capture.read(tmp_path).command is None
        (tmp_path / "mtree-flat.txt").write_bytes(b"FlatView #\xff\n")
        with pytest.raises(UsageError, match=r"mtree-flat\.txt is no text: byte 10 is not UTF-8"):
            Capture.read(tmp_path)
        (tmp_path / "mtree-flat.txt").unlink()
        with pytest.raises(UsageError, match=r"cannot read .*mtree-flat\.txt: No such file"):
            Capture.read(tmp_path)
        with pytest.raises(UsageError, match="cannot write"):
            Capture.named(CAPTURES[0]).write(tmp_path / "ramblock.txt" / "below")


def trimmed(text: str) -> str:
    """The text without blank lines at either end."""
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    while lines and not lines[0].strip():
        lines.pop(0)
    return "\n".join(lines)


def _check_place(error: LayoutTextError, text: str) -> None:
    """The line is one of the text's, or the one after it; the column lies in the line, or just after it."""
    lines = text.split("\n")
    assert 1 <= error.line <= len(lines)
    assert 1 <= error.column <= len(lines[error.line - 1]) + 1, error


def test_a_byte_order_mark_before_a_text_is_passed_over() -> None:
    assert parse_ramblock(f"\ufeff{RAMBLOCK}") == parse_ramblock(RAMBLOCK)
    for name in CAPTURES:
        text = (SHIPPED / name / "mtree-flat.txt").read_text()
        assert parse_mtree(f"\ufeff{text}") == parse_mtree(text)
    with pytest.raises(LayoutTextError):
        parse_ramblock(f"\n\ufeff{RAMBLOCK}")  # only where an editor puts it


def _doubled(text: str) -> str:
    return text.replace("\n", "\n\n")


PASTED = {
    "doubled": _doubled,
    "doubled, with blanks": lambda text: text.replace("\n", "\n   \n"),
    "doubled, in a session": lambda text: _doubled(f"(qemu) info\n{text}(qemu) \n"),
}
"""What a terminal, a mail or a web page makes of a text, which can still be read in one way only."""
REFUSED = {
    "blanks": (lambda text: text.replace("\n", " \n"), "blanks were added at the ends of lines: remove them (sed "),
    "padded": (lambda text: text.replace("\n", " " * 40 + "\n"), "blanks were added at the ends of lines: remove them"),
    "tab at the end": (lambda text: text.replace("\n", "\t\n"), "blanks were added at the ends of lines: remove them"),
    "tabs": (lambda text: text.replace("  ", " \t"), "take the text as QEMU printed it, with blanks"),
    "CR alone": (lambda text: text.replace("\n", "\r", 1), r"end lines with line feeds (tr '\r' '\n')"),
    "form feed": (lambda text: text.replace("\n", "\n\f", 1), "take the text as QEMU printed it"),
}


@pytest.mark.parametrize("how", PASTED)
@pytest.mark.parametrize("name", CAPTURES)
def test_what_pasting_adds_is_read(name: str, how: str) -> None:
    capture = Capture.named(name)
    blocks, views = format_ramblock(capture.blocks), format_mtree(capture.views)
    assert parse_ramblock(PASTED[how](blocks)) == parse_ramblock(blocks)
    assert parse_mtree(PASTED[how](views)) == parse_mtree(views)


def test_a_doubled_text_without_its_end_may_have_been_cut() -> None:
    text = format_mtree(Capture.named(CAPTURES[0]).views)
    assert parse_mtree(_doubled(text).rstrip("\n")) == parse_mtree(text.rstrip("\n"))
    assert parse_mtree(_doubled(text)[:-1]) == parse_mtree(text)


@pytest.mark.parametrize("ends", ["\r\n", "\r\r\n", "\r\n\r\n"], ids=repr)
def test_a_file_with_other_line_ends_is_read(tmp_path: Path, ends: str) -> None:
    capture = Capture.named(CAPTURES[0])
    capture.write(tmp_path)
    for path in tmp_path.glob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", ends.encode()))
    assert Capture.read(tmp_path).layout() == capture.layout()


@pytest.mark.parametrize("how", REFUSED)
def test_what_pasting_changes_says_what_to_do(how: str) -> None:
    capture = Capture.named(CAPTURES[0])
    change, advice = REFUSED[how]
    for parse, text in (
        (parse_ramblock, format_ramblock(capture.blocks)),
        (parse_mtree, format_mtree(capture.views)),
    ):
        with pytest.raises(LayoutTextError) as said:
            parse(change(text))
        assert advice in str(said.value)


def test_a_line_that_is_missing_from_a_doubled_text_is_named_where_it_stands() -> None:
    text = _doubled(format_ramblock(Capture.named(CAPTURES[0]).blocks)).split("\n")
    text[4] = text[4][:30]
    with pytest.raises(LayoutTextError) as said:
        parse_ramblock("\n".join(text))
    assert said.value.line == 5
