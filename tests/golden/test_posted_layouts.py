"""Texts of other people's machines: read, written back, rebuilt, scaled and run, or refused with place and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from precopy.bench.sync import measure, written_sections
from precopy.errors import LayoutError, LayoutTextError
from precopy.memory import Capture
from precopy.memory.captures.main_memory import main_memory
from precopy.memory.captures.mtree import format_mtree, parse_mtree
from precopy.memory.captures.ramblock import format_ramblock, parse_ramblock
from support.layout_texts import PAGE, POSTED, blocks_for, posted, said, shown_again, write_capture

MIB, GIB = 1 << 20, 1 << 30
RAMBLOCK, MTREE = posted("ramblock"), posted("mtree-flat")
CASES = Path(__file__).parents[1] / "cases"
NOT_SCALED = {
    "arm-musicpal-2021": "another --ram: 'musicpal.flash' is no RAM, and none is mapped",
    "loongarch-ls3a": "another --ram: 'loongarch_ls3a.ram' is mapped at 0x90000000 too, which is neither",
}


def capture_of(name: str) -> Capture:
    """The machine; where only its flat views were posted, with blocks that fit them."""
    views = parse_mtree(MTREE[name])
    rows = parse_ramblock(RAMBLOCK[name]) if name in RAMBLOCK else blocks_for(views)
    return Capture(name, rows, views)


@pytest.mark.parametrize("name", RAMBLOCK)
def test_blocks_are_written_back(name: str) -> None:
    text = RAMBLOCK[name]
    assert format_ramblock(parse_ramblock(text)) == text[text.index("              Block Name") :]


@pytest.mark.parametrize("name", MTREE)
def test_views_are_written_back(name: str) -> None:
    assert format_mtree(parse_mtree(MTREE[name])) == MTREE[name].rstrip("\n") + "\n\n"


@pytest.mark.parametrize("name", MTREE)
def test_regions_show_what_the_text_says(name: str) -> None:
    capture = capture_of(name)
    assert shown_again(capture) == said(capture)


@pytest.mark.parametrize("name", sorted(MTREE.keys() - NOT_SCALED.keys()))
@pytest.mark.parametrize("ram", [8 * MIB, 96 * MIB, 3 * GIB + 5 * MIB, 40 * GIB])
def test_main_memory_is_scaled(name: str, ram: int) -> None:
    capture = capture_of(name)
    own = capture.layout()
    main = {block.name for block in main_memory(own)}
    scaled = capture.layout(ram)
    assert sum(block.pages * PAGE for block in scaled.blocks if block.name in main) == ram
    plain = [(block.name, block.pages) for block in own.blocks if block.name not in main]
    assert [(block.name, block.pages) for block in scaled.blocks if block.name not in main] == plain
    mapped = sum(one.pages for one in scaled.sections if one.block.name in main) * PAGE
    assert mapped >= ram - 2 * MIB, "but for the holes that the machine has"


@pytest.mark.parametrize("name", NOT_SCALED)
def test_why_main_memory_is_not_scaled(name: str) -> None:
    with pytest.raises(LayoutError, match=NOT_SCALED[name]):
        capture_of(name).layout(96 * MIB)


def test_which_blocks_are_main_memory() -> None:
    main = {name: [block.name for block in main_memory(capture_of(name).layout())] for name in MTREE}
    assert main == {
        "arm-musicpal-2021": ["musicpal.flash"],
        "loongarch-ls3a": ["loongarch_ls3a.ram"],
        "pc-vfio-2019": ["pc.ram"],
        "pseries-2019": ["ppc_spapr.ram"],
        "q35-synic-vfio": ["pc.ram"],
        "qemu-7.2-displays": ["pc.ram"],
        "qemu-7.2-isapc": ["pc.ram"],
        "qemu-7.2-numa-dimm": ["ram-node0", "ram-node1"],
        "riscv-virt": ["riscv_virt_board.ram"],
        "sh4-r2d-2021": ["r2d.sdram"],
    }


def test_notes() -> None:
    assert capture_of("pseries-2019").notes == ()
    assert capture_of("pc-vfio-2019").notes == (
        "memory that QEMU does not migrate is left out: 0000:00:1a.0 BAR 0 mmaps[0]",
    )
    assert "without its last empty line" in capture_of("loongarch-ls3a").notes[0]
    (note,) = capture_of("qemu-7.2-displays").notes
    assert "0000:00:01.0/vga.vram, 0000:00:02.0/vga.vram, 0000:00:03.0/vga.vram" in note


def test_each_display_has_the_block_of_its_size() -> None:
    layout = capture_of("qemu-7.2-displays").layout()
    displays = [one for one in layout.sections if one.block.name.endswith("/vga.vram")]
    assert len({one.block.name for one in displays if one.gpa > GIB}) == 4
    assert all(one.pages == one.block.pages for one in displays if one.gpa > GIB)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sh4-r2d-2021", "'r2d.flash', which is no RAM, is mapped at 0x0; a guest needs RAM there"),
        ("riscv-virt", "no section of the layout maps the 655360 bytes at 0x0; a guest needs RAM there"),
    ],
)
def test_machines_that_a_guest_of_ours_cannot_run_on(name: str, says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        written_sections(capture_of(name).layout(), 0.01)


@pytest.mark.needs("kvm")
@pytest.mark.parametrize(
    "name",
    [
        "pc-vfio-2019",
        "pseries-2019",
        "q35-synic-vfio",
        "qemu-7.2-numa-dimm",
        "layout-memslots-side-by-side",
        "layout-two-displays",
        "layout-vfio-bars",
    ],
)
def test_the_others_are_run(name: str) -> None:
    capture = Capture.read(CASES / name) if name.startswith("layout-") else capture_of(name)
    layout = capture.layout(64 * MIB)
    measured = measure(layout, ram_share=0.01, repeat=1, variants=("before-patch", "ours"), vhost_devices=1)
    before = measured.variants[0]
    unaligned = sum(one.pages for one in layout.sections if not one.block.aligned)
    assert before.clear_log_ioctls == 2 * unaligned
    assert before.dirty_pages >= unaligned


@pytest.mark.parametrize(
    ("name", "line", "column", "says"),
    [
        ("arm-wrapped.ramblock", 1, 54, "expected the line to go on with"),
        ("loongarch-log-between.mtree-flat", 5, 1, "expected its end"),
        ("omap-sx1-shortened.mtree-flat", 2, 2, "expected ' AS \"'"),
        ("pc-2.9.mtree-flat", 1, 1, "a QEMU before 2.11"),
        ("q35-nvidia-without-head.mtree-flat", 1, 1, "expected 'FlatView #'"),
        ("riscv-tree.mtree-flat", 1, 1, "use info mtree -f"),
        ("sh4-quoted.mtree-flat", 1, 1, "expected 'FlatView #'"),
        ("stm32-diff.mtree-flat", 1, 1, "expected 'FlatView #'"),
    ],
)
def test_what_is_refused(name: str, line: int, column: int, says: str) -> None:
    parse = parse_mtree if name.endswith("mtree-flat") else parse_ramblock
    with pytest.raises(LayoutTextError) as caught:
        parse((POSTED / "refused" / f"{name}.txt").read_text(), name)
    assert (caught.value.line, caught.value.column) == (line, column), caught.value
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_refused_text_is_tried() -> None:
    assert len(list((POSTED / "refused").iterdir())) == 8


def test_one_paste_of_both_commands_can_be_used_for_both(tmp_path: Path) -> None:
    name = "qemu-7.2-numa-dimm"
    paste = f"QEMU 7.2.0 monitor\n(qemu) info ramblock\n{RAMBLOCK[name]}(qemu) info mtree -f\n{MTREE[name]}(qemu) "
    capture = Capture.read(write_capture(tmp_path / name, paste, paste))
    assert capture.layout() == capture_of(name).layout()
    assert capture.notes == ()


@pytest.mark.parametrize(
    ("paste", "says"),
    [
        ("{ramblock}{mtree}", "the output of info mtree -f begins here; it goes into mtree-flat.txt"),
        ("(qemu) info ramblock\n{ramblock}(qemu) info ramblock\n{ramblock}", "once more; leave only one of them"),
        ('{{"return": "..."}}\n', "this is JSON"),
        ("{mtree}", "the output of info mtree -f begins here; it goes into mtree-flat.txt"),
    ],
)
def test_pastes_that_are_refused(paste: str, says: str, tmp_path: Path) -> None:
    name = "qemu-7.2-numa-dimm"
    text = paste.format(ramblock=RAMBLOCK[name], mtree=MTREE[name])
    with pytest.raises(LayoutTextError, match=says):
        Capture.read(write_capture(tmp_path, text, MTREE[name]))
