"""Machines of a real QEMU, of many kinds: what its monitor says of each is read, written back, rebuilt and scaled."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from precopy.errors import LayoutError
from precopy.memory import Capture
from precopy.memory.captures.main_memory import main_memory
from precopy.memory.captures.mtree import format_mtree, parse_mtree
from precopy.memory.captures.ramblock import format_ramblock
from support.layout_texts import said, shown_again, write_capture
from support.qemu_texts import qemu

pytestmark = pytest.mark.needs("qemu")

MIB, GIB = 1 << 20, 1 << 30


def ram(name: str, size: str, kind: str = "ram", more: str = "") -> list[str]:
    return ["-object", f"memory-backend-{kind},id={name},size={size}{more}"]


def nodes(*names: str) -> list[str]:
    return [word for name in names for word in ("-numa", f"node,memdev={name}")]


SLOTS = "slots=4,maxmem=8G"
MACHINES: dict[str, tuple[Sequence[str], int]] = {
    "pc": (["-machine", "pc", "-m", "256M", "-vga", "std"], 256 * MIB),
    "pc-6g": (["-machine", "pc", "-m", "6G", "-vga", "vmware"], 6 * GIB),
    "pc-odd-size": (["-machine", "pc", "-m", "257M"], 257 * MIB),
    "pc-hole-at-1g": (["-machine", "pc,max-ram-below-4g=1G", "-m", "2G"], 2 * GIB),
    "q35": (["-machine", "q35", "-m", "3G"], 3 * GIB),
    "isapc": (["-machine", "isapc", "-m", "64M", "-vga", "std"], 64 * MIB),
    "microvm": (["-machine", "microvm", "-m", "256M"], 256 * MIB),
    "no machine": (["-machine", "none", "-m", "64M"], 64 * MIB),
    "four nodes": (
        ["-machine", "q35", "-m", "1G", *ram("m1", "256M"), *ram("m2", "256M"), *ram("m3", "256M"),
         *ram("m4", "256M"), *nodes("m1", "m2", "m3", "m4")],
        GIB,
    ),
    "nodes of shared memory and a DIMM": (
        ["-machine", "q35", "-m", f"512M,{SLOTS}", *ram("ram-node0", "256M", "memfd", ",share=on"),
         *ram("ram-node1", "256M", "memfd", ",share=on"), *nodes("ram-node0", "ram-node1"),
         *ram("memdimm0", "1G"), "-device", "pc-dimm,memdev=memdimm0"],
        512 * MIB,
    ),
    "virtio-mem": (
        ["-machine", "q35", "-m", f"512M,{SLOTS}", *ram("vm", "2G"),
         "-device", "virtio-mem-pci,memdev=vm,requested-size=512M"],
        512 * MIB,
    ),
    "NVDIMM with a label": (
        ["-machine", "pc,nvdimm=on", "-m", f"256M,{SLOTS}", *ram("nv", "128M"),
         "-device", "nvdimm,memdev=nv,label-size=128K"],
        256 * MIB,
    ),
    "virtio-pmem": (
        ["-machine", "q35", "-m", f"256M,{SLOTS}", *ram("pm", "128M"), "-device", "virtio-pmem-pci,memdev=pm"],
        256 * MIB,
    ),
    "CXL": (
        ["-machine", "q35,cxl=on", "-m", f"256M,{SLOTS}", *ram("cx", "256M"), *ram("lsa", "1M"),
         "-device", "pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl", "-device", "cxl-rp,port=0,bus=cxl,id=rp0,chassis=0,slot=2",
         "-device", "cxl-type3,bus=rp0,memdev=cx,lsa=lsa,id=cx0",
         "-M", "cxl-fmw.0.targets.0=cxl,cxl-fmw.0.size=4G"],
        256 * MIB,
    ),
    "two of ivshmem": (
        ["-machine", "q35", "-m", "256M", *ram("iv", "16M"), "-device", "ivshmem-plain,memdev=iv", *ram("iv2", "16M"),
         "-device", "ivshmem-plain,memdev=iv2"],
        256 * MIB,
    ),
    "displays of five kinds": (
        ["-machine", "q35", "-m", "256M", "-vga", "std", "-device", "secondary-vga",
         "-device", "secondary-vga,vgamem_mb=32", "-device", "virtio-gpu-pci", "-device", "ati-vga",
         "-device", "bochs-display", "-device", "ramfb"],
        256 * MIB,
    ),
    "four network cards": (
        ["-machine", "q35", "-m", "256M", "-device", "virtio-net-pci", "-device", "virtio-net-pci", "-device", "e1000e",
         "-device", "rtl8139"],
        256 * MIB,
    ),
    "NVMe with memory": (
        ["-machine", "q35", "-m", "256M", *ram("pmr", "16M"),
         "-device", "nvme,serial=x,pmrdev=pmr,cmb_size_mb=16"],
        256 * MIB,
    ),
    "a backend's path for a name": (
        ["-machine", "q35,memory-backend=mem0", "-m", "256M",
         *ram("mem0", "256M", more=",x-use-canonical-path-for-ramblock-id=on")],
        256 * MIB,
    ),
    "IOMMU": (
        ["-machine", "q35,kernel-irqchip=split", "-m", "256M", "-device", "intel-iommu,intremap=on",
         "-device", "virtio-net-pci,disable-legacy=on,iommu_platform=on"],
        256 * MIB,
    ),
}  # fmt: skip


def line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n")


@pytest.mark.parametrize("name", MACHINES)
def test_a_machine(name: str, tmp_path: Path) -> None:
    options, main_size = MACHINES[name]
    with qemu([*options, "-accel", "tcg"], tmp_path) as monitor:
        ramblock = monitor.ask("info ramblock")
        texts = [monitor.ask(f"info mtree -f{more}") for more in ("", " -o", " -d", " -d -o")]
    for text in texts:
        assert format_mtree(parse_mtree(line_feeds(text))) == line_feeds(text)
    captures = [Capture.read(write_capture(tmp_path / str(n), ramblock, text)) for n, text in enumerate(texts)]
    capture = captures[0]
    assert format_ramblock(capture.blocks) == line_feeds(ramblock)
    assert shown_again(capture) == said(capture)
    layout = capture.layout()
    assert all(other.layout() == layout for other in captures[1:])
    main = main_memory(layout)
    assert sum(block.pages for block in main) * 4096 == main_size
    scaled = capture.layout(20 * GIB)
    names = {block.name for block in main}
    assert sum(block.pages for block in scaled.blocks if block.name in names) * 4096 == 20 * GIB
    assert [block.pages for block in scaled.blocks if block.name not in names] == [
        block.pages for block in layout.blocks if block.name not in names
    ]


def test_nodes_whose_names_do_not_say_that_they_are_main_memory(tmp_path: Path) -> None:
    options = ["-machine", "pc", "-m", "6G", *ram("a", "5G"), *ram("b", "1G"), *nodes("a", "b"), "-accel", "tcg"]
    with qemu(options, tmp_path) as monitor:
        texts = (monitor.ask("info ramblock"), monitor.ask("info mtree -f"))
    capture = Capture.read(write_capture(tmp_path / "texts", *texts))
    with pytest.raises(LayoutError, match="whether 'b', which follows 'a', is main memory too or was plugged in"):
        capture.layout(GIB)


def test_bars_that_firmware_has_set(tmp_path: Path) -> None:
    """Two displays of the same kind, after SeaBIOS has found them."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is missing, so nothing would end a guest that runs")
    options = ["-machine", "q35", "-m", "128M", "-vga", "std", "-device", "secondary-vga", "-accel", "tcg"]
    with qemu(options, tmp_path) as monitor:
        monitor.run_until(lambda text: text.count("ram): vga.vram") >= 2)
        texts = (monitor.ask("info ramblock"), monitor.ask("info mtree -f"))
    capture = Capture.read(write_capture(tmp_path / "texts", *texts))
    displays = [one for one in capture.layout().sections if one.block.name.endswith("/vga.vram")]
    assert len({one.block.name for one in displays}) == 2
    assert "chosen by size" in capture.notes[0]
    assert shown_again(capture) == said(capture)
