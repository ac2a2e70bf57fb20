"""Texts of machines that people really run: each is read, scaled and run, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.commands import Finished, called, precopy

CASES = Path(__file__).parents[1] / "cases"


def on(case: str, *arguments: str) -> Finished:
    """The command with the directory of ``case`` in the place of ``{}``."""
    run = precopy if "bench" in arguments else called
    return run(*(argument.format(CASES / f"layout-{case}") for argument in arguments))


def shown(case: str, *arguments: str) -> dict[str, object]:
    done = on(case, "layout", "{}", "--json", *arguments)
    assert done.code == 0, done.err
    return done.document()


def mapped(document: dict[str, object], block: str) -> list[tuple[int, int]]:
    """(gpa, bytes) of each section of a block."""
    blocks = document["blocks"]
    assert isinstance(blocks, list)
    (one,) = [one for one in blocks if one["name"] == block]
    return [(section["gpa"], section["pages"] * 4096) for section in one["sections"]]


def size(document: dict[str, object], block: str) -> int:
    blocks = document["blocks"]
    assert isinstance(blocks, list)
    (one,) = [one["pages"] for one in blocks if one["name"] == block]
    return int(one) * 4096


MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize("case", sorted(path.name.removeprefix("layout-") for path in CASES.glob("layout-*")))
def test_every_case_is_shown_and_planned_with(case: str) -> None:
    assert shown(case)["schema"] == "precopy.layout/1"
    assert on(case, "layout", "{}").code == 0
    done = on(case, "plan", "--layout", "{}", "--bandwidth", "1G", "--dirty-rate", "100M", "--json")
    assert done.code == 0, done.err
    assert done.document()["input"]["notes"] == shown(case)["notes"]


def test_arm_virt_has_another_amount_of_ram() -> None:
    document = shown("arm-virt", "--ram", "512M")
    assert document["main_memory"] == ["mem0", "mem1"]
    assert mapped(document, "mem0") == [(GIB, 256 * MIB)]
    assert mapped(document, "mem1") == [(GIB + 256 * MIB, 256 * MIB)]
    assert mapped(document, "pvtime") == [(0x90A0000, 4096)]
    done = on("arm-virt", "plan", "--layout", "{}", "--ram", "4G", "--bandwidth", "1G", "--dirty-rate", "100M")
    assert done.code == 0, done.err


@pytest.mark.needs("kvm")
def test_arm_virt_is_not_run() -> None:
    done = on("arm-virt", "bench", "sync", "--layout", "{}", "--repeat", "3")
    assert done.sentence(2) == "'virt.flash0', which is no RAM, is mapped at 0x0; a guest needs RAM there"


def test_blocks_off_64_pages_stand_at_the_next_multiple() -> None:
    document = shown("blocks-off-64-pages")
    blocks = document["blocks"]
    assert isinstance(blocks, list)
    assert all(one["ram_addr"] % (64 * 4096) == 0 for one in blocks)
    assert mapped(document, "pc.bios") == [(0xFFFC0000, 256 << 10)]
    assert "moved to a multiple of 64 pages" in str(document["notes"])


def test_memory_that_was_plugged_in_stays() -> None:
    document = shown("hotplugged-more-than-booted", "--ram", "8G")
    assert document["main_memory"] == ["pc.ram"]
    assert size(document, "pc.ram") == 8 * GIB
    assert mapped(document, "pc.ram")[-1] == (4 * GIB, 6 * GIB)
    assert mapped(document, "d0") == [(10 * GIB, GIB)]
    assert mapped(document, "0000:00:03.0/vm") == [(11 * GIB + 128 * MIB, 2 * GIB)]


@pytest.mark.needs("kvm")
@pytest.mark.parametrize("case", ["hotplugged-more-than-booted", "numa-ram", "smm-blackhole-bench"])
def test_a_sync_is_measured(case: str) -> None:
    done = on(case, "bench", "sync", "--layout", "{}", "--ram", "128M", "--repeat", "1", "--json")
    assert done.code == 0, done.err
    document = done.document()
    assert document["ram_bytes"] == 128 * MIB
    assert document["notes"] == []
    before = next(one for one in document["variants"] if one["variant"] == "before-patch")
    unaligned = document["unaligned_mapped_pages"]
    assert before["clear_log_ioctls"] == 2 * unaligned
    assert unaligned == (1088 if case == "smm-blackhole-bench" else 0)


def test_lower_case_kvm() -> None:
    assert mapped(shown("lower-case-kvm"), "ppc_spapr.ram") == [(0, 4 * GIB)]
    assert mapped(shown("lower-case-kvm", "--ram", "8G"), "ppc_spapr.ram") == [(0, 8 * GIB)]


def test_memory_slots_side_by_side_stay_three() -> None:
    three = [(5 * GIB, GIB), (6 * GIB, GIB), (7 * GIB, GIB)]
    assert mapped(shown("memslots-side-by-side"), "vm0") == three


def test_numa_nodes_share_the_ram() -> None:
    document = shown("numa-ram", "--ram", "128M")
    assert mapped(document, "ram-node0") == [(0, 0xA0000), (0xC0000, 64 * MIB - 0xC0000)]
    assert mapped(document, "ram-node1") == [(64 * MIB, 64 * MIB)]
    document = shown("numa-ram", "--ram", "8G")
    assert size(document, "ram-node0") == size(document, "ram-node1") == 4 * GIB
    assert mapped(document, "ram-node0")[-1] == (4 * GIB, 2 * GIB)
    assert mapped(document, "ram-node1") == [(6 * GIB, 4 * GIB)]


def test_two_displays_have_a_block_each() -> None:
    document = shown("two-displays")
    assert mapped(document, "0000:00:02.0/vga.vram") == [(0xFC000000, 16 * MIB)]
    assert mapped(document, "0000:00:04.0/vga.vram") == [(0xFD000000, 16 * MIB)]
    assert "chosen by size among 0000:00:02.0/vga.vram, 0000:00:04.0/vga.vram" in str(document["notes"])


def test_bars_of_an_assigned_device_are_left_out() -> None:
    document = shown("vfio-bars")
    blocks = document["blocks"]
    assert isinstance(blocks, list)
    assert len(blocks) == 8
    left_out = "QEMU does not migrate is left out: 0000:0c:00.0 BAR 0 mmaps[0], 0000:0e:00.3 BAR 0"
    assert left_out in str(document["notes"])


def test_virshs_empty_line_and_owners_change_nothing() -> None:
    plain, owners = shown("virsh-blank-line"), shown("with-owners")
    assert plain["blocks"] == owners["blocks"]
    assert mapped(plain, "pc.ram") == [(0, 0xC0000), (MIB, 2 * GIB - MIB), (4 * GIB, 2 * GIB)]
