"""An emulated guest in all roles of `precopy.ports.vm`: the same programs, memory and self-check as under KVM, one CPU.

The CPU runs in a thread, on the guest's own host memory. The first store to a page that is armed is announced to a
`WriteLog` before it is done (tlb.py); the announcement is settled at any stop of the CPU between two instructions.
Unicorn's CPU is in long mode with flat memory from the start, so the programs' identity mapping needs no page tables
here.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec

from precopy.dirty import DirtyMemory
from precopy.errors import GuestError, Unsupported, missing_extra
from precopy.machines.emulated.clock import tsc_khz
from precopy.machines.emulated.code import CodeClient
from precopy.machines.emulated.exclusive import STOP_S, Exclusive
from precopy.machines.emulated.tlb import Tlb
from precopy.machines.vcpu.gate import VcpuGate
from precopy.machines.vcpu.throttle import VcpuThrottle
from precopy.machines.workload import BURST_PORT, IDLE_PORT, Workload, boot_image, check_stamps, params_words
from precopy.machines.workload.gaps import GapMeter
from precopy.machines.workload.pacing import Pacer
from precopy.memory import GuestMemory
from precopy.memory.topology.log_mask import DirtyClient
from precopy.ports import SelfCheck, StallMeter, Throttled, TrackerChoice
from precopy.units import PAGE_SIZE

_AGAIN_S = 0.001
"""Seconds after which a stop is repeated: Unicorn forgets a stop that comes just before the CPU starts."""
_VERSION = 1
_REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "eflags",
)  # fmt: skip


def unavailable() -> Unsupported | None:
    """Why no guest can be emulated here; None where one can."""
    try:
        import unicorn  # noqa: F401, PLC0415
    except ImportError:
        return missing_extra("emulating a CPU takes", "unicorn", "emulated")
    return None


class EmulatedGuest:
    """A CPU with the memory ``memory``, which it owns, stopped. Raises `Unsupported` where Unicorn is missing.

    Without ``protect_code``, code that is written into memory from outside may not be noticed: experiments only.
    """

    kind = "emulated"
    machine = "emulated x86_64, 1 vCPU"

    def __init__(self, memory: GuestMemory, protect_code: bool = True) -> None:
        try:
            import unicorn  # noqa: PLC0415
            from unicorn import x86_const  # noqa: PLC0415
        except ImportError:
            raise missing_extra("emulating a CPU takes", "unicorn", "emulated") from None
        self.memory = memory
        self.running = False
        tsc_khz()  # is measured at the first call, and not to be measured while a guest stands still
        self._ids = {name: getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name in _REGISTERS}
        self._cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self._cpu.ctl_exits_enabled(True)  # and there are none: it runs until it is stopped
        self._exclusive = Exclusive(self._cpu.emu_stop)
        self._tlb = Tlb(self._cpu, memory, self._exclusive, self._no_ram)
        self._log = self._tlb.log
        self.dirty = DirtyMemory(memory.layout, self._log)
        if protect_code:
            self._tlb.code = CodeClient(self._cpu, self.dirty, self._exclusive, self._tlb.flush)
        for section in memory.layout.sections:
            address = memory.host(section.block).address + section.offset * PAGE_SIZE
            self._cpu.mem_map_ptr(section.gpa, section.pages * PAGE_SIZE, unicorn.UC_PROT_ALL, address)
        self._cpu.hook_add(unicorn.UC_HOOK_INSN, self._on_out, None, 1, 0, x86_const.UC_X86_INS_OUT)
        self._gate = VcpuGate()
        self._throttle = VcpuThrottle([self._gate], self._interrupt)
        self._pacer = Pacer(params_words(memory, 0), self._gate)
        self.error: GuestError | None = None
        self._change = threading.Condition()
        self._wanted = False  # to run
        self._parked = False  # its thread waits to be told to run
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="emulated-cpu", daemon=True)
        self._thread.start()

    def __enter__(self) -> EmulatedGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the CPU and gives the memory back."""
        if not self._closing:
            self._throttle.close()
            self._stop()
            with self._change:
                self._closing = True
                self._change.notify_all()
            self._thread.join(STOP_S)
            self.running = False
            self.memory.close()

    def boot(self, workload: Workload, fill: float = 0.0) -> None:
        """Puts a program into memory and the CPU at its start. ``fill`` is as in `boot_image`."""
        image = boot_image(self.memory, workload, 1, fill, tsc_khz=tsc_khz())
        self._code_is_new()
        self._cpu.reg_write(self._ids["rip"], image.entry)
        self._cpu.reg_write(self._ids["rbx"], image.params(0))

    def pause(self) -> float:
        start = time.perf_counter()
        if not self._stop():
            self.resume()  # a guest that runs on, late, is better than one that stands still and is said to run
            raise GuestError(f"the emulated CPU did not stop within {STOP_S:g} s")
        self.running = False
        self.raise_failure()
        return time.perf_counter() - start

    def resume(self) -> None:
        self.raise_failure()
        self.running = True
        self._pacer.restart()
        with self._change:
            self._gate.clear()
            self._wanted = True
            self._change.notify_all()

    def throttle(self, share: float) -> None:
        self._throttle.throttle_to(share)

    def throttled(self) -> Throttled:
        return self._throttle.throttled()

    def save_state(self) -> bytes:
        self._need_paused("save")
        registers = {name: int(self._cpu.reg_read(number)) for name, number in self._ids.items()}
        return msgspec.msgpack.encode({"version": _VERSION, "registers": registers})

    def load_state(self, saved: bytes) -> None:
        self._need_paused("load")
        try:
            state = msgspec.msgpack.decode(saved, type=dict[str, int | dict[str, int]])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise GuestError(f"the CPU's state cannot be read: {error}") from error
        registers = state.get("registers")
        if state.get("version") != _VERSION or not isinstance(registers, dict) or set(registers) != set(_REGISTERS):
            raise GuestError("the CPU's state is none of this version's")
        if not all(0 <= value < 1 << 64 for value in registers.values()):
            raise GuestError("the CPU's state holds a register of more than 64 bits")
        for name, value in registers.items():
            self._cpu.reg_write(self._ids[name], value)
        self._code_is_new()

    def self_check(self) -> SelfCheck:
        self._need_paused("check")
        return check_stamps(self.memory, 1)

    def stall_meter(self) -> StallMeter:
        return GapMeter(self.memory, 1, tsc_khz())

    def choose_tracker(self, wanted: str) -> TrackerChoice:
        """As `TrackerChoosing.choose_tracker`: there is one."""
        if wanted != "auto":
            raise Unsupported(f"an emulated CPU has no KVM {wanted.replace('-', ' ')}", "use --tracker auto")
        return TrackerChoice(self.dirty.name, "the only one that an emulated CPU has")

    def raise_failure(self) -> None:
        """Raises `GuestError` where the CPU has stopped for a reason that it should not have."""
        if self.error is not None:
            raise self.error

    def _need_paused(self, what: str) -> None:
        if self.running:
            raise GuestError(f"cannot {what} a guest that runs")

    def _code_is_new(self) -> None:
        for start, count in self.memory.layout.runs:
            self.dirty.set_range(start, count, DirtyClient.CODE)

    def _no_ram(self, address: int) -> None:
        self.error = GuestError(f"the guest used the address {address:#x}, where no RAM is")

    def _on_out(self, cpu: Any, port: int, _size: int, _value: int, _data: object) -> None:
        self._log.settled()
        if port == BURST_PORT:
            with self._exclusive.resting():
                self._pacer.wait()
        elif port == IDLE_PORT:
            with self._exclusive.resting():
                self._gate.wait()
        else:
            self.error = GuestError(f"the guest wrote to port {port:#x}, where nothing is")
        if self._gate.is_set() or self._gate.sleeping or self.error:
            cpu.emu_stop()

    def _interrupt(self, _number: int) -> None:
        """Returns once the CPU is where it notices that it is to sleep. Raises `GuestError`."""
        with self._exclusive.section():
            pass

    def _stop(self) -> bool:
        """Has the CPU's thread stand still; returns whether it does."""
        with self._change:
            self._wanted = False
        self._gate.set()
        end = time.monotonic() + STOP_S
        with self._change:
            while not self._parked and time.monotonic() < end:
                self._cpu.emu_stop()
                self._change.wait(_AGAIN_S)
            return self._parked

    def _main(self) -> None:
        while True:
            if self.error or not self._wanted:
                self._park()
            if self._closing:
                return
            self._gate.throttle_sleep()
            try:
                with self._exclusive.executing():
                    if not self._gate.sleeping:
                        self._run()
                self._tlb.settle()
                if self._tlb.code is not None:
                    self._tlb.code.settle()
            except Exception as error:  # a thread that ended silently would look like a guest that runs
                self.error = self.error or GuestError(f"the emulated CPU failed: {type(error).__name__}: {error}")

    def _run(self) -> None:
        try:
            self._cpu.emu_start(self._cpu.reg_read(self._ids["rip"]), 0)
        finally:
            self._log.settled()

    def _park(self) -> None:
        """Stands still until it is to run, which it also does where it was resumed and stopped again unnoticed."""
        with self._change:
            self._parked = True
            self._change.notify_all()
            self._change.wait_for(lambda: self._closing or (self._wanted and self.error is None))
            self._parked = False
