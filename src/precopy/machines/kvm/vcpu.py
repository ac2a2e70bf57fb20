"""One vCPU: a thread in KVM_RUN that can be stopped at an instruction boundary within fractions of a millisecond.

To stop it, ``immediate_exit`` is set in its ``kvm_run`` and a signal is sent to its thread, whose handler does
nothing. Whichever comes first, the vCPU leaves KVM_RUN, or does not enter it. An exit that the kernel completes only
on the next entry (port output) is completed by entering once more with ``immediate_exit`` set, so that the saved
state is whole. Source: Documentation/virt/kvm/api.rst, "immediate_exit" and the note on completing exits.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import signal
import threading
from collections.abc import Callable

import numpy as np

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.errors import GuestError, KernelCallError, system_call
from precopy.machines.kvm.system import KvmSystem
from precopy.machines.vcpu.gate import VcpuGate
from precopy.trackers.kvm_ring import KvmDirtyRing

KICK = signal.SIGRTMIN + 4
_STOP_S = 10.0
"""Seconds that a vCPU may take to leave KVM_RUN: more than a busy machine needs."""

ExitHandler = Callable[["Vcpu"], None]


def install_kick_handler() -> None:
    """Has the kick signal do nothing, instead of ending the process. Python allows this in the main thread only, so
    a guest made in another thread needs it called before. Raises `GuestError` where it was not."""
    if callable(signal.getsignal(KICK)):
        return
    try:
        signal.signal(KICK, lambda *_: None)
    except ValueError as error:
        raise GuestError("the first KVM guest of a process has to be made in its main thread") from error


class Vcpu:
    """vCPU ``number`` of a VM, stopped at first. ``on_io`` is called in its thread for each port output. Where the VM
    has a dirty ``ring``, the vCPU's part of it has ``ring_entries``.

    ``gate`` is set while the vCPU is to stop: a handler that waits should wait for this. A throttle that takes time
    from the vCPU calls `interrupt`."""

    def __init__(
        self,
        system: KvmSystem,
        vm: int,
        number: int,
        on_io: ExitHandler,
        *,
        gate: VcpuGate | None = None,
        ring: KvmDirtyRing | None = None,
        ring_entries: int = 0,
    ) -> None:
        self.number, self._on_io = number, on_io
        self.target = f"vCPU {number}"
        self.fd = call(vm, kvm.CREATE_VCPU, number, target=self.target)
        with system_call("mmap", self.target):
            self._page = mmap.mmap(self.fd, system.run_size)
        self.run = kvm.Run.from_buffer(self._page)
        self._ring = ring
        if ring is not None:
            with system_call("mmap", self.target):
                entries = mmap.mmap(
                    self.fd, ring_entries * kvm.DIRTY_GFN_SIZE, offset=kvm.DIRTY_LOG_PAGE_OFFSET * mmap.PAGESIZE
                )
            ring.attach(np.frombuffer(entries, np.uint32).reshape(ring_entries, -1))
        table = system.cpuid_of(number)
        call(self.fd, kvm.SET_CPUID2, table, target=self.target)
        self.cpuid = bytes(table.entries)[: table.nent * ctypes.sizeof(kvm.CpuidEntry)]
        """The entries of ``struct kvm_cpuid2`` that it has."""
        self.error: GuestError | None = None
        self.gate = gate or VcpuGate()
        self.gate.set()
        self._change = threading.Condition()
        self._wanted = False  # to run
        self._parked = False  # its thread waits to be told to run
        self._closing = False
        self._thread = threading.Thread(target=self._main, name=f"vcpu-{number}", daemon=True)

    def tsc_khz(self, system: KvmSystem) -> int:
        """Ticks of its time stamp counter in a millisecond, before it is started; 0 where KVM does not say."""
        if not system.capability(kvm.CAP_GET_TSC_KHZ):
            return 0
        with contextlib.suppress(KernelCallError):  # EIO: the host's counter is not stable
            return call(self.fd, kvm.GET_TSC_KHZ, target=self.target)
        return 0

    def start(self) -> None:
        """Starts the thread; the vCPU stays stopped."""
        self._thread.start()
        self.wait_stopped()

    def resume(self) -> None:
        with self._change:
            self.gate.clear()
            self.run.immediate_exit = 0
            self._wanted = True
            self._change.notify_all()

    def request_stop(self) -> None:
        """Asks the vCPU to stop; `wait_stopped` waits until it has."""
        with self._change:
            self._wanted = False
            self.run.immediate_exit = 1
        self.gate.set()
        self._kick()

    def interrupt(self) -> None:
        """Has a vCPU that runs leave the guest, to go on once it has rested as ``gate`` says. May be called at any
        time."""
        with self._change:
            if self._wanted and not self._closing:
                self.run.immediate_exit = 1
                self._kick()

    def wait_stopped(self) -> None:
        """Raises `GuestError` where the vCPU does not stop within seconds."""
        with self._change:
            if not self._change.wait_for(lambda: self._parked, _STOP_S):
                raise GuestError(f"{self.target} did not stop within {_STOP_S:g} s")

    def close(self) -> None:
        """Ends the thread and gives the vCPU back."""
        self.request_stop()
        with self._change:
            self._closing = True
            self._change.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)
        del self.run
        with contextlib.suppress(BufferError):
            self._page.close()
        os.close(self.fd)

    def _kick(self) -> None:
        ident = self._thread.ident
        if ident is not None and self._thread.is_alive():
            with contextlib.suppress(ProcessLookupError):
                signal.pthread_kill(ident, KICK)

    def _main(self) -> None:
        incomplete = False  # an exit that the next entry completes
        while True:
            if self.error or not (self._wanted or incomplete):
                self._park()
            if self._closing:
                return
            if self.run.immediate_exit:
                self._rest()
            try:
                incomplete = self._enter()
            except GuestError as error:
                self.error = error
            except Exception as error:  # a thread that ended silently would look like a guest that runs
                self.error = GuestError(f"{self.target} failed: {type(error).__name__}: {error}")

    def _park(self) -> None:
        """Stands still until it is to run. A vCPU that is resumed and stopped again before its thread has noticed
        either is still parked; one that failed stays so until it is closed."""
        with self._change:
            self._parked = True
            self._change.notify_all()
            self._change.wait_for(lambda: self._closing or (self._wanted and self.error is None))
            self._parked = False

    def _rest(self) -> None:
        """Stands still where it was interrupted for that, and may enter the guest again unless it is to stop."""
        self.gate.throttle_sleep()
        with self._change:
            if self._wanted and not self.gate.sleeping:
                self.run.immediate_exit = 0

    def _enter(self) -> bool:
        """Runs until an exit; returns whether it needs another entry to be complete. Raises `GuestError`."""
        try:
            fcntl.ioctl(self.fd, kvm.RUN.number, 0)
        except InterruptedError:
            return False
        except OSError as error:
            raise GuestError(f"{self.target}: KVM_RUN failed: {error.strerror}") from error
        reason = self.run.exit_reason
        if reason == kvm.EXIT_DIRTY_RING_FULL and self._ring is not None:
            self._ring.relieve(self.number)
            return False
        if reason != kvm.EXIT_IO:
            name = kvm.EXIT_REASONS.get(reason, "not one that precopy knows")
            raise GuestError(f"{self.target} left the guest for reason {reason} ({name})")
        self._on_io(self)
        return True
