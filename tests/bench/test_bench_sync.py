"""``precopy bench sync``: the patch series' variants, in small, and the figures that no machine's speed changes."""

from __future__ import annotations

from typing import Any

import pytest

from precopy.bench.sync import VARIANTS, written_sections
from precopy.cli.bench.sync import _VARIANTS
from precopy.memory import CAPTURES, Capture
from support.commands import precopy

pytestmark = pytest.mark.needs("kvm")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return precopy("bench", "sync", "--ram", "64M", "--repeat", "3", "--json").document()


def variant(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in document["variants"] if one["variant"] == name)


def test_the_options_name_every_variant() -> None:
    assert tuple(VARIANTS) == _VARIANTS


def test_the_document(document: dict[str, Any]) -> None:
    assert document["schema"] == "precopy.bench-sync/1"
    assert document["layout"] == "q35-ovmf-512m-cirrus"
    assert document["ram_bytes"] == 64 << 20
    assert document["qemu"] is None
    assert [one["variant"] for one in document["variants"]] == list(VARIANTS)
    assert any("kvm-smram" in how for how in document["listeners"])
    for one in document["variants"]:
        for name in ("sync_s", "log_sync_s", "bitmap_sync_s", "log_clear_s"):
            spread = one[name]
            assert 0 <= spread["min"] <= spread["median"] <= spread["max"]
        assert one["sync_s"]["min"] > 0


def test_every_firmware_page_is_dirty_in_every_variant(document: dict[str, Any]) -> None:
    for one in document["variants"]:
        firmware = [block for block in one["blocks"] if block["slots"] and block["name"] != "pc.ram"]
        assert {block["name"] for block in firmware} == {"system.flash0", "system.flash1", "isa-bios", "pc.rom"}
        for block in firmware:
            assert block["dirty_pages"] == block["pages"]
            assert (block["listeners"], block["get_log_ioctls"]) == (2, block["slots"])


def test_before_the_patch_it_is_a_clear_for_each_page_and_listener(document: dict[str, Any]) -> None:
    one = variant(document, "before-patch")
    unaligned = [block for block in one["blocks"] if not block["aligned"] and block["slots"]]
    assert sum(block["pages"] for block in unaligned) == document["unaligned_mapped_pages"] == 1088
    for block in unaligned:
        assert block["clear_log_ioctls"] == block["pages"] * block["listeners"]
    assert one["clear_log_ioctls"] == 2 * 1088


@pytest.mark.parametrize("name", ["rfc-v1", "upstream"])
def test_the_patch_makes_it_one_for_each_slot(document: dict[str, Any], name: str) -> None:
    one = variant(document, name)
    for block in one["blocks"]:
        assert block["clear_log_ioctls"] == (0 if block["aligned"] else block["slots"])


def test_what_is_deferred_makes_none_in_the_sync(document: dict[str, Any]) -> None:
    for name in ("clear-bmap", "ours"):
        one = variant(document, name)
        assert one["clear_log_ioctls"] == 0
        assert one["deferred_clear_ioctls"] > 0


def test_ours_makes_at_most_one_for_each_slot_with_dirty_pages(document: dict[str, Any]) -> None:
    one = variant(document, "ours-merged")
    for block in one["blocks"]:
        assert block["clear_log_ioctls"] <= (block["slots"] if block["dirty_pages"] else 0)
    assert 4 <= one["clear_log_ioctls"] <= document["slots"]


def test_the_shared_vhost_log_is_walked_once(document: dict[str, Any]) -> None:
    vhost = document["vhost"]
    assert vhost["devices"] == 4
    assert (vhost["shared"]["walks_per_sync"], vhost["per_device"]["walks_per_sync"]) == (1, 4)


def test_the_table_names_the_seed_and_one_listener_halves_the_clears() -> None:
    done = precopy("bench", "sync", "--ram", "64M", "--repeat", "1", "--listeners", "1", "--variant", "before-patch")
    assert done.code == 0, done.err
    assert " 1088 " in done.out
    assert "the patch series reports: system.flash0, 1966080 bytes" in done.out
    assert "kvm-smram" not in done.out


@pytest.mark.parametrize("name", CAPTURES)
def test_the_guest_writes_every_mapped_block_but_the_largest_whole(name: str) -> None:
    layout = Capture.named(name).layout(64 << 20)
    main = max(layout.blocks, key=lambda block: block.pages)
    sections = written_sections(layout, 0.01)
    pages: dict[str, list[int]] = {}
    for one in sections:
        pages.setdefault(one.block.name, []).extend(range(one.offset, one.offset + one.pages))
    for block in layout.blocks:
        own = pages.get(block.name, [])
        assert len(set(own)) == len(own)
        if block == main:
            assert 0.008 * block.pages < len(own) <= 0.01 * block.pages
        elif any(section.block == block for section in layout.sections):
            assert sorted(own) == list(range(block.pages))
        else:
            assert not own


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--layout", "nowhere"), 2, "no captured layout"),
        (("--ram", "1000B"), 2, "multiple of 4096"),
        (("--repeat", "0"), 2, "repeat"),
    ],
)
def test_what_cannot_be_meant(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = precopy("bench", "sync", *arguments)
    assert done.code == code
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.mark.needs("qemu")
def test_beside_real_qemu() -> None:
    done = precopy("bench", "sync", "--ram", "64M", "--repeat", "3", "--against-qemu", "--json").document()
    qemu = done["qemu"]
    assert qemu["clear_log_ioctls"] > 0
    assert qemu["sync_s"]["median"] > 0
    assert done["ratios"]["ours_to_qemu"] == pytest.approx(
        variant(done, "ours")["sync_s"]["median"] / qemu["sync_s"]["median"]
    )
