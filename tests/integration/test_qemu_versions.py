"""Every version of QEMU that scripts/install-qemu-versions puts beside the installed one is a peer like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from precopy.bench.peers.qemu.launcher import find_qemus
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
