"""Stock QEMU's syncs, traced in virtual machines as they were captured."""

import os
from pathlib import Path

import pytest

from precopy.bench.peers.qemu import launcher as machine
from precopy.bench.peers.qemu.trace_events import QemuSyncs, trace_syncs
from precopy.errors import PeerLost, PeerRefused, Unsupported
from support.patience import IN_TIME_S

SEABIOS = "qemu-system-x86_64 -accel kvm -machine pc -m 512 -vga std"
CODE, VARIABLES = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
OVMF = (
    "qemu-system-x86_64 -accel kvm -machine q35,smm=off -m 512 -vga cirrus "
    f"-drive if=pflash,format=raw,unit=0,readonly=on,file={CODE} -drive if=pflash,format=raw,unit=1,file=vars.fd"
)
FLASH_PAGES = 892 + 132
"""system.flash0 and system.flash1: neither is a multiple of 64 pages, and both stay mapped."""

ROM_PAGES = 32 + 32
"""pc.rom and isa-bios, until the firmware maps RAM over them."""

needs = [pytest.mark.needs("qemu"), pytest.mark.needs("kvm")]


def assert_plausible(traced: QemuSyncs, syncs: int) -> None:
    assert traced.version[0].isdigit()
    assert (traced.accel, traced.ram) == ("kvm", 512 << 20)
    assert len(traced.timed) >= syncs <= len(traced.counted)
    for one in (traced.timed, traced.counted):
        assert one[0].phase == "setup"
        assert one[-1].phase == "complete"
    assert all(0 < sync.sync_s < IN_TIME_S for sync in (*traced.timed, *traced.counted))
    assert all(sync.clear_ioctls is None for sync in traced.timed)
    assert all(sync.clear_ioctls is not None for sync in traced.counted)
    assert traced.deferred_clear_ioctls > 0
    assert "pc.ram" in traced.ramblock
    assert "FlatView #0" in traced.mtree


@pytest.mark.usefixtures("qemu_leaves_nothing")
class TestRealMachines:
    pytestmark = needs

    def test_aligned_blocks_are_cleared_while_sending(self) -> None:
        traced = trace_syncs(SEABIOS, syncs=3, timeout=IN_TIME_S)
        assert_plausible(traced, 3)
        assert traced.status == "running"
        # As long as SeaBIOS has not mapped RAM over them, pc.rom's 32 pages are cleared one by one.
        assert {sync.clear_ioctls for sync in traced.counted} <= {0, ROM_PAGES // 2}

    @pytest.mark.skipif(not Path(VARIABLES).exists(), reason="OVMF is not installed (Debian's package ovmf)")
    def test_unaligned_flash_costs_one_ioctl_for_each_page_in_each_sync(self) -> None:
        variables = Path(VARIABLES).read_bytes()
        traced = trace_syncs(OVMF, syncs=3, timeout=IN_TIME_S)
        assert_plausible(traced, 3)
        if traced.status == "internal-error":  # KVM gave up on the firmware before it could map anything anew
            for sync in traced.counted:
                assert sync.clears_by_slot is not None
                assert sorted(sync.clears_by_slot.values()) == [32, 32, 132, 892]
                assert sync.clear_ioctls == FLASH_PAGES + ROM_PAGES
        else:
            assert traced.clear_ioctls >= FLASH_PAGES
        assert Path(VARIABLES).read_bytes() == variables

    def test_emulated_cpu_has_no_kernel_to_clear(self) -> None:
        traced = trace_syncs(SEABIOS.replace("-accel kvm", "-accel tcg"), ram=128 << 20, syncs=2, timeout=IN_TIME_S)
        assert (traced.accel, traced.ram, traced.command[-3]) == ("tcg", 128 << 20, "128M")
        assert (traced.clear_ioctls, traced.deferred_clear_ioctls) == (0, 0)

    def test_start_failure_carries_what_qemu_said(self) -> None:
        with pytest.raises(PeerLost, match="no-such"):
            trace_syncs(f"{SEABIOS} -device no-such")

    def test_machine_that_cannot_be_migrated_is_refused(self) -> None:
        with pytest.raises(PeerRefused, match="ivshmem"):
            trace_syncs(
                f"{SEABIOS} -object memory-backend-ram,id=shared,size=1M,share=on "
                "-device ivshmem-plain,memdev=shared,master=off"
            )

    def test_time_that_is_up_is_a_lost_peer(self) -> None:
        with pytest.raises(PeerLost, match="not traced in 1 s"):
            trace_syncs(SEABIOS, timeout=1)


class TestRefusals:
    def test_missing_kvm_is_unsupported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("qemu.qmp")
        monkeypatch.setattr(machine, "find_qemu", lambda: "qemu-system-x86_64")
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(Unsupported, match="/dev/kvm"):
            trace_syncs(SEABIOS)

    def test_missing_qemu_is_unsupported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setenv("PRECOPY_QEMUS", "/nowhere")
        with pytest.raises(Unsupported, match="qemu-system-x86_64 is not installed"):
            trace_syncs(SEABIOS)
