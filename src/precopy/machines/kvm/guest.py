"""A KVM guest in every role of `precopy.ports.vm`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.dirty import DirtyMemory
from precopy.errors import GuestError, Unsupported
from precopy.machines.kvm import state
from precopy.machines.kvm.machine import SpareVcpu, VirtualMachine
from precopy.machines.kvm.memory import VmMemory
from precopy.machines.kvm.sync_way import choose as choose_sync_way
from precopy.machines.kvm.system import KvmSystem
from precopy.machines.kvm.tracker_choice import choose
from precopy.machines.kvm.vcpu import Vcpu, install_kick_handler
from precopy.machines.vcpu.gate import VcpuGate
from precopy.machines.vcpu.throttle import VcpuThrottle
from precopy.machines.workload import BURST_PORT, IDLE_PORT, BootImage, Workload, boot_image, check_stamps, params_words
from precopy.machines.workload.gaps import GapMeter
from precopy.machines.workload.pacing import Pacer
from precopy.memory import DirtyClient, GuestMemory, Section
from precopy.ports import SelfCheck, StallMeter, SyncWay, Throttled, TrackerChoice
from precopy.ports.vm import MAX_THROTTLE
from precopy.trackers import kvm_ring

# Segment types (Intel SDM volume 3, 3.4.5.1): code, execute/read, accessed; data, read/write, accessed.
_CODE_TYPE, _DATA_TYPE = 11, 3
_CODE_SELECTOR, _DATA_SELECTOR = 0x1B, 0x23
_CR0 = 0x80010033  # PG, WP, NE, ET, MP, PE
_CR4 = 0x620  # OSXMMEXCPT, OSFXSR, PAE
_EFER = 0x500  # LMA, LME
_MEASURED_S = 0.1
"""Seconds over which the dirty rate is measured to choose a tracker."""
_RFLAGS = 0x3002  # IOPL 3 and the bit that is always one


class KvmGuest:
    """A VM with the memory ``memory``, which it owns, and ``vcpus`` vCPUs, all stopped.

    ``tracker``, ``smram_listener`` and ``ring_entries`` are as in `VmMemory`. Boot it with `boot`, or leave it blank
    and let a migration fill it. Raises `Unsupported`, `KernelCallError`, `UsageError`.
    """

    kind = "kvm"

    def __init__(
        self,
        memory: GuestMemory,
        vcpus: int = 1,
        tracker: str = "dirty-log",
        *,
        smram_listener: bool = False,
        ring_entries: int = kvm_ring.DEFAULT_ENTRIES,
    ) -> None:
        install_kick_handler()
        self.memory = memory
        self.running = False
        self._smram_listener, self._ring_entries = smram_listener, ring_entries
        self._gates = [VcpuGate() for _ in range(vcpus)]
        self._throttle = VcpuThrottle(self._gates, self._interrupt)
        self._pacers = [Pacer(params_words(memory, number), gate) for number, gate in enumerate(self._gates)]
        self._spare: SpareVcpu | None = None
        self._system = KvmSystem()
        try:
            self._vm = self._make_vm(tracker)
        except BaseException:
            self._system.close()
            raise

    def __enter__(self) -> KvmGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the vCPUs and gives the memory back."""
        self._throttle.close()
        self.running = False
        self._vm.close()
        if self._spare is not None:
            self._spare.close()
        self._system.close()
        self.memory.close()

    @property
    def vm_memory(self) -> VmMemory:
        """Its memory as KVM knows it: regions, listeners, slots."""
        return self._vm.memory

    @property
    def dirty(self) -> DirtyMemory:
        return self._vm.memory.dirty

    @property
    def tracker(self) -> str:
        """What tells of its writes: one of `precopy.names.KVM_TRACKERS`."""
        return self._vm.memory.tracker

    @property
    def _vcpus(self) -> list[Vcpu]:
        return self._vm.vcpus

    def use_tracker(self, tracker: str) -> float:
        """Has another tracker tell of its writes from now on; returns the seconds that a running guest stood still.

        A VM has its tracker for life, so the guest moves into a new VM of this process, over the same memory and with
        the same vCPU state. ``dirty`` is another one afterwards. Raises `GuestError` while a client logs anything or
        a dirty limit is in force, and what making a VM raises, with the guest as it was.
        """
        if tracker == self.tracker:
            return 0.0
        if self.dirty.logging:
            raise GuestError("the tracker cannot be changed while dirty memory is logged")
        if self._throttle.limits:
            raise GuestError("the tracker cannot be changed while a dirty limit is in force")
        start, ran = time.perf_counter(), self.running
        if ran:
            self.pause()
        old = self._vm
        try:
            new = self._make_vm(tracker)
            try:
                state.load(new.vcpus, state.save(self._system, old.vcpus))
            except BaseException:
                new.close()
                raise
            for log in old.memory.dirty.logs:
                if log not in old.memory.logs:
                    new.memory.dirty.attach(log)
            self._vm = new
            old.close()
        finally:
            if ran:
                self.resume()
        return time.perf_counter() - start if ran else 0.0

    def choose_tracker(self, wanted: str) -> TrackerChoice:
        """As `TrackerChoosing.choose_tracker`; ``auto`` measures the dirty rate first, for a tenth of a second."""
        if wanted == "auto":
            choice = choose(self.memory.layout.pages, self._dirty_rate(), self._ring_entries)
        else:
            choice = TrackerChoice(wanted, "asked for")
        return replace(choice, pause_s=self.use_tracker(choice.tracker))

    def choose_sync_way(self) -> SyncWay:
        """As `SyncWayChoosing.choose_sync_way`."""
        return choose_sync_way(self.dirty)

    def _dirty_rate(self) -> float:
        """Pages dirtied a second, measured with the present tracker."""
        layout = self.memory.layout
        self.dirty.start()
        try:
            self.dirty.sync()
            self.dirty.test_and_clear(DirtyClient.MIGRATION, 0, layout.end_page)
            start = time.perf_counter()
            time.sleep(_MEASURED_S)
            self.dirty.sync()
            return self.dirty.count(DirtyClient.MIGRATION) / (time.perf_counter() - start)
        finally:
            self.dirty.stop()

    def _make_vm(self, tracker: str) -> VirtualMachine:
        return VirtualMachine(
            self._system,
            self.memory,
            self._gates,
            self._on_io,
            tracker,
            smram_listener=self._smram_listener,
            ring_entries=self._ring_entries,
        )

    @property
    def machine(self) -> str:
        return f"kvm x86_64, {len(self._vcpus)} vCPU{'s' if len(self._vcpus) > 1 else ''}"

    def boot(self, workload: Workload, fill: float = 0.0, sections: Sequence[Section] | None = None) -> None:
        """Puts a program into memory and every vCPU at its start, stopped. ``fill`` and ``sections`` are as in
        `boot_image`."""
        khz = self._vm.tsc_khz
        image = boot_image(self.memory, workload, len(self._vcpus), fill, sections, tsc_khz=khz)
        for vcpu in self._vcpus:
            _set_registers(vcpu, image)

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

    def throttle(self, share: float) -> None:
        self._throttle.throttle_to(share)

    def limit_dirtying(self, bytes_per_s: float | None, max_share: float = MAX_THROTTLE) -> None:
        """As `DirtyLimiting.limit_dirtying`, by the dirty ring, which alone says which vCPU dirtied a page."""
        ring = self._vm.memory.ring
        if ring is None:
            raise Unsupported("the dirty log does not say which vCPU dirtied a page", "use --tracker dirty-ring")
        if bytes_per_s is None:
            self._throttle.unlimit()
        else:
            self._throttle.limit(bytes_per_s, ring.dirtied, max_share)

    def throttled(self) -> Throttled:
        return self._throttle.throttled()

    def save_state(self) -> bytes:
        self._need_paused("save")
        return state.save(self._system, self._vcpus)

    def load_state(self, saved: bytes) -> None:
        self._need_paused("load")
        state.load(self._vcpus, saved)

    def rehearse(self) -> None:
        if self._spare is None:
            self._spare = SpareVcpu(self._system)
        vcpus = [self._spare.vcpu]
        state.load(vcpus, state.save(self._system, vcpus))

    def self_check(self) -> SelfCheck:
        self._need_paused("check")
        return check_stamps(self.memory, len(self._vcpus))

    def stall_meter(self) -> StallMeter:
        return GapMeter(self.memory, len(self._vcpus), self._vm.tsc_khz)

    def _need_paused(self, what: str) -> None:
        if self.running:
            raise GuestError(f"cannot {what} a guest that runs")

    def raise_failure(self) -> None:
        """Raises `GuestError` where a vCPU has stopped for a reason that it should not have."""
        for vcpu in self._vcpus:
            if vcpu.error is not None:
                raise vcpu.error

    def _interrupt(self, number: int) -> None:
        self._vm.vcpus[number].interrupt()

    def _on_io(self, vcpu: Vcpu) -> None:
        port = vcpu.run.io.port
        if port == BURST_PORT:
            self._pacers[vcpu.number].wait()
        elif port == IDLE_PORT:
            vcpu.gate.wait()
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
