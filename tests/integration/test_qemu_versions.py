"""Every version of QEMU that scripts/install-qemu-versions puts beside the installed one is a peer like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from precopy.bench.peers.qemu.launcher import absent_qemus, find_qemus, qemu_name
from precopy.bench.peers.qemu.migrate import measure_migration
from precopy.bench.peers.qemu.trace_events import trace_syncs
from support.patience import IN_TIME_S

FLASH = (
    "qemu-system-x86_64 -accel kvm -machine q35,smm=off -m 256 -vga none "
    "-drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"
)
CODE_PAGES = 892
"""Of system.flash0: not a multiple of 64."""

VERSIONS = [
    pytest.param("10.0", marks=[pytest.mark.needs("qemu10"), pytest.mark.needs("kvm")]),
    pytest.param("11.1", marks=[pytest.mark.needs("qemu11"), pytest.mark.needs("kvm")]),
]


def path_of(version: str) -> str:
    return next(path for path in find_qemus() if Path(path).parent.name == version)


@pytest.mark.parametrize("version", VERSIONS)
def test_migrates(version: str) -> None:
    done = measure_migration(ram=128 << 20, rewritten=16 << 20, timeout=IN_TIME_S, qemu=path_of(version))
    assert done.version.startswith(f"{version}.")
    assert done.transferred_bytes > 0.98 * (128 << 20)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.skipif(not Path("/usr/share/OVMF/OVMF_CODE_4M.fd").exists(), reason="OVMF is not installed")
def test_syncs_are_traced_with_and_without_the_patch_series(version: str) -> None:
    traced = trace_syncs(FLASH, syncs=2, timeout=IN_TIME_S, qemu=path_of(version))
    assert traced.version.startswith(f"{version}.")
    assert all(0 < sync.sync_s < 60 for sync in traced.timed)
    if version == "10.0":  # a clear for every page of the flash, and again for the same pages seen by the firmware
        assert traced.clear_ioctls >= CODE_PAGES
    else:
        assert traced.clear_ioctls < 64


@pytest.mark.parametrize("version", VERSIONS)
def test_every_tracker_and_channel_is_a_way_of_its_own(version: str) -> None:
    path = path_of(version)
    done = measure_migration(ram=64 << 20, rewritten=8 << 20, timeout=IN_TIME_S, qemu=path, dirty_ring=True, channels=2)
    assert done.name == f"{qemu_name(path)}, ring, multifd 2"
    assert done.transferred_bytes > 0.98 * (64 << 20)


def test_one_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what a program says of itself, such as the installed one, or by its folder's name."""

    def put(folder: Path, does: str) -> None:
        folder.mkdir(parents=True)
        (folder / "qemu-system-x86_64").write_text(f"#!/bin/sh\n{does}\n")
        (folder / "qemu-system-x86_64").chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PRECOPY_QEMUS", str(tmp_path / "qemus"))
    assert len(absent_qemus()) == 2
    put(tmp_path / "bin", "echo QEMU emulator version 10.0.2")
    (absent,) = absent_qemus()
    assert absent == "QEMU 11.1 is not here and was left out; run scripts/install-qemu-versions 11.1"
    put(tmp_path / "qemus" / "11.1", "exit 1")
    assert absent_qemus() == []
    assert [*map(qemu_name, find_qemus())] == ["QEMU 10.0.2", "QEMU"]


def test_oldest_first_and_the_installed_one_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "bin" / "qemu-system-x86_64"
    paths = [tmp_path / "qemus" / version / "qemu-system-x86_64" for version in ("9.2", "10.0", "11.1")]
    for path in (installed, *paths, tmp_path / "qemus" / ".11.1.part" / "qemu-system-x86_64"):
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(installed.parent))
    monkeypatch.setenv("PRECOPY_QEMUS", str(tmp_path / "qemus"))
    assert find_qemus() == [str(installed), *map(str, paths)]
    monkeypatch.setenv("PATH", "")
    assert find_qemus() == [*map(str, paths)]
