"""A KVM guest behind `precopy.ports.VmControl`."""

from __future__ import annotations

import contextlib
import os
import time

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.errors import GuestError
from precopy.guests import BURST_PORT, IDLE_PORT, BootImage, Workload, boot_image, check, params_gpa
from precopy.guests.image import words_at
from precopy.guests.pacing import Pacer
from precopy.kvm import state
from precopy.kvm.system import KvmSystem
from precopy.kvm.vcpu import Vcpu, install_kick_handler
from precopy.memory import GuestMemory
from precopy.ports import Witness
from precopy.trackers.kvm_dirty_log import KvmDirtyLog
from precopy.trackers.kvm_slot import MemorySlot
from precopy.units import PAGE_SIZE, HostAddress

# Segment types (Intel SDM volume 3, 3.4.5.1): code, execute/read, accessed; data, read/write, accessed.
_CODE_TYPE, _DATA_TYPE = 11, 3
_CODE_SELECTOR, _DATA_SELECTOR = 0x1B, 0x23
_CR0 = 0x80010033  # PG, WP, NE, ET, MP, PE
_CR4 = 0x620  # OSXMMEXCPT, OSFXSR, PAE
_EFER = 0x500  # LMA, LME
_RFLAGS = 0x3002  # IOPL 3 and the bit that is always one


class KvmGuest:
    """A VM with the memory ``memory``, which it owns, and ``vcpus`` vCPUs, all stopped.

    Boot it with `boot`, or leave it blank and let a migration fill it. Raises `Unsupported`, `KernelCallError`.
    """

    kind = "kvm"

    def __init__(self, memory: GuestMemory, vcpus: int = 1) -> None:
        install_kick_handler()
        self.memory = memory
        self.running = False
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            self._system = KvmSystem()
            undo.callback(self._system.close)
            self._vm = self._system.create_vm()
            undo.callback(os.close, self._vm)
            self._slots = self._map_memory()
            self._vcpus: list[Vcpu] = []
            for number in range(vcpus):
                vcpu = Vcpu(self._system, self._vm, number, self._on_io)
                undo.callback(vcpu.close)
                self._vcpus.append(vcpu)
            self._pacers = [Pacer(words_at(memory, params_gpa(number), PAGE_SIZE)) for number in range(vcpus)]
            for vcpu in self._vcpus:
                vcpu.start()
            self._closing = undo.pop_all()

    def __enter__(self) -> KvmGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the vCPUs and gives the memory back."""
        self.running = False
        self._closing.close()
        self.memory.close()

    @property
    def machine(self) -> str:
        return f"kvm x86_64, {len(self._vcpus)} vCPU{'s' if len(self._vcpus) > 1 else ''}"

    def boot(self, workload: Workload, fill: float = 0.0) -> None:
        """Puts a program into memory and every vCPU at its start, stopped. ``fill`` is as in `boot_image`."""
        image = boot_image(self.memory, workload, len(self._vcpus), fill)
        for vcpu in self._vcpus:
            _set_registers(vcpu, image)

    def dirty_log(self) -> KvmDirtyLog:
        return KvmDirtyLog(self._vm, self._slots, self.memory.layout.end_page)

    def pause(self) -> float:
        start = time.perf_counter()
        for vcpu in self._vcpus:
            vcpu.request_stop()
        try:
            for vcpu in self._vcpus:
                vcpu.wait_stopped()
        except GuestError:
            for vcpu in self._vcpus:  # all or none: a guest of which half stands still is neither
                vcpu.resume()
            raise
        self.running = False
        self.raise_failure()
        return time.perf_counter() - start

    def resume(self) -> None:
        self.raise_failure()
        self.running = True
        for vcpu, pacer in zip(self._vcpus, self._pacers, strict=True):
            pacer.restart()
            vcpu.resume()

    def save_state(self) -> bytes:
        self._need_paused("save")
        return state.save(self._system, self._vcpus)

    def load_state(self, saved: bytes) -> None:
        self._need_paused("load")
        state.load(self._vcpus, saved)

    def check(self) -> Witness:
        self._need_paused("check")
        return check(self.memory, len(self._vcpus))

    def _need_paused(self, what: str) -> None:
        if self.running:
            raise GuestError(f"cannot {what} a guest that runs")

    def raise_failure(self) -> None:
        """Raises `GuestError` where a vCPU has stopped for a reason that it should not have."""
        for vcpu in self._vcpus:
            if vcpu.error is not None:
                raise vcpu.error

    def _map_memory(self) -> list[MemorySlot]:
        slots = []
        for number, section in enumerate(self.memory.layout.sections):
            host = self.memory.host(section.block)
            slot = MemorySlot(
                number,
                section.block.name,
                section.first_page,
                section.pages,
                section.gpa,
                HostAddress(host.address + section.offset * PAGE_SIZE),
            )
            slot.set(self._vm, 0)
            slots.append(slot)
        return slots

    def _on_io(self, vcpu: Vcpu) -> None:
        port = vcpu.run.io.port
        if port == BURST_PORT:
            self._pacers[vcpu.number].wait(vcpu.halt)
        elif port == IDLE_PORT:
            vcpu.halt.wait()
        else:
            raise GuestError(f"{vcpu.target} wrote to port {port:#x}, where nothing is")


def _set_registers(vcpu: Vcpu, image: BootImage) -> None:
    """Long mode at CPL 3 with flat segments, paging on, and I/O allowed."""
    sregs = kvm.Sregs()
    call(vcpu.fd, kvm.GET_SREGS, sregs, target=vcpu.target)
    code = kvm.Segment(limit=0xFFFFFFFF, selector=_CODE_SELECTOR, type=_CODE_TYPE, present=1, dpl=3, s=1, l=1, g=1)
    data = kvm.Segment(limit=0xFFFFFFFF, selector=_DATA_SELECTOR, type=_DATA_TYPE, present=1, dpl=3, db=1, s=1, g=1)
    sregs.cs = code
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, data)
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = _CR0, image.page_table_root, _CR4, _EFER
    call(vcpu.fd, kvm.SET_SREGS, sregs, target=vcpu.target)
    regs = kvm.Regs(rip=image.entry, rbx=image.params(vcpu.number), rflags=_RFLAGS)
    call(vcpu.fd, kvm.SET_REGS, regs, target=vcpu.target)
