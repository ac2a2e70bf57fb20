"""An emulated guest behind `precopy.ports.VmControl`: the same programs, memory and witness as under KVM, one CPU.

The CPU runs in a thread, on the guest's own host memory. Each store is announced to a `WriteLog` before it is done;
the announcement is settled wherever the CPU stands between two instructions. Unicorn's CPU is in long mode with flat
memory from the start, so the programs' identity mapping needs no page tables here.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
import numpy as np

from precopy.dirty import DirtyMemory
from precopy.errors import GuestError, Unsupported
from precopy.guests import BURST_PORT, IDLE_PORT, Workload, boot_image, check, params_gpa
from precopy.guests.image import words_at
from precopy.guests.pacing import Pacer
from precopy.memory import GuestMemory
from precopy.ports import Witness
from precopy.trackers.write_log import WriteLog
from precopy.units import PAGE_SIZE

_PAGE_SHIFT = PAGE_SIZE.bit_length() - 1
_STOP_S = 10.0
_VERSION = 1
_ENDLESS = 1 << 64  # an address that no program reaches: run until stopped
_REGISTERS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "eflags",
)  # fmt: skip


def unavailable() -> str | None:
    """Why no guest can be emulated here, in one sentence; None where one can."""
    try:
        import unicorn  # noqa: F401, PLC0415
    except ImportError as error:
        return f"the package unicorn, which emulates CPUs, cannot be imported ({error})"
    return None


class EmulatedGuest:
    """A CPU with the memory ``memory``, which it owns, stopped. Raises `Unsupported` where Unicorn is missing."""

    kind = "emulated"
    machine = "emulated x86_64, 1 vCPU"

    def __init__(self, memory: GuestMemory) -> None:
        try:
            import unicorn  # noqa: PLC0415
            from unicorn import x86_const  # noqa: PLC0415
        except ImportError as error:
            raise Unsupported(f"no CPU can be emulated: {error}", "install precopy[emulated]") from error
        self.memory = memory
        self.running = False
        self._log = WriteLog(memory.layout.end_page, memory.layout.runs)
        self.dirty = DirtyMemory(memory.layout, self._log)
        self._ids = {name: getattr(x86_const, f"UC_X86_REG_{name.upper()}") for name in _REGISTERS}
        self._cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self._map_memory(unicorn)
        self._cpu.hook_add(unicorn.UC_HOOK_MEM_WRITE, self._on_write)
        self._cpu.hook_add(unicorn.UC_HOOK_INSN, self._on_out, None, 1, 0, x86_const.UC_X86_INS_OUT)
        self._pacer = Pacer(words_at(memory, params_gpa(0), PAGE_SIZE))
        self.error: GuestError | None = None
        self._halt = threading.Event()
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
            self._request_stop()
            with self._change:
                self._change.wait_for(lambda: self._parked, _STOP_S)
                self._closing = True
                self._change.notify_all()
            self._thread.join(_STOP_S)
            self.running = False
            self.memory.close()

    def boot(self, workload: Workload, fill: float = 0.0) -> None:
        """Puts a program into memory and the CPU at its start. ``fill`` is as in `boot_image`."""
        image = boot_image(self.memory, workload, 1, fill)
        self._cpu.reg_write(self._ids["rip"], image.entry)
        self._cpu.reg_write(self._ids["rbx"], image.params(0))

    def pause(self) -> float:
        start = time.perf_counter()
        self._request_stop()
        with self._change:
            if not self._change.wait_for(lambda: self._parked, _STOP_S):
                raise GuestError(f"the emulated CPU did not stop within {_STOP_S:g} s")
        self.running = False
        self.raise_failure()
        return time.perf_counter() - start

    def resume(self) -> None:
        self.raise_failure()
        self.running = True
        self._pacer.restart()
        with self._change:
            self._halt.clear()
            self._wanted = True
            self._change.notify_all()

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

    def check(self) -> Witness:
        self._need_paused("check")
        return check(self.memory, 1)

    def raise_failure(self) -> None:
        """Raises `GuestError` where the CPU has stopped for a reason that it should not have."""
        if self.error is not None:
            raise self.error

    def _need_paused(self, what: str) -> None:
        if self.running:
            raise GuestError(f"cannot {what} a guest that runs")

    def _map_memory(self, unicorn: Any) -> None:
        # Page numbers of the ram_addr space by guest page, for ranges of guest pages in ascending order.
        sections = sorted(self.memory.layout.sections, key=lambda section: section.gpa)
        for section in sections:
            address = self.memory.host(section.block).address + section.offset * PAGE_SIZE
            self._cpu.mem_map_ptr(section.gpa, section.pages * PAGE_SIZE, unicorn.UC_PROT_ALL, address)
        self._starts = np.array([section.gpa >> _PAGE_SHIFT for section in sections])
        self._first = [section.first_page for section in sections]
        self._last_range = (0, 0, 0)

    def _ram_page(self, page: int) -> int:
        """The ram_addr page of a guest page; the range of the last answer is tried first."""
        start, end, first = self._last_range
        if not start <= page < end:
            index = int(np.searchsorted(self._starts, page, side="right")) - 1
            start, first = int(self._starts[index]), self._first[index]
            end = int(self._starts[index + 1]) if index + 1 < len(self._first) else 1 << 52
            self._last_range = (start, end, first)
        return first + page - start

    def _on_write(self, cpu: Any, _access: int, address: int, size: int, _value: int, _data: object) -> None:
        first = self._ram_page(address >> _PAGE_SHIFT)
        across = (address + size - 1) >> _PAGE_SHIFT != address >> _PAGE_SHIFT
        self._log.wrote(first, self._ram_page((address + size - 1) >> _PAGE_SHIFT) if across else first)
        if self._halt.is_set():
            cpu.emu_stop()

    def _on_out(self, cpu: Any, port: int, _size: int, _value: int, _data: object) -> None:
        self._log.settled()
        if port == BURST_PORT:
            self._pacer.wait(self._halt)
        elif port == IDLE_PORT:
            self._halt.wait()
        else:
            self.error = GuestError(f"the guest wrote to port {port:#x}, where nothing is")
        if self._halt.is_set() or self.error:
            cpu.emu_stop()

    def _request_stop(self) -> None:
        with self._change:
            self._wanted = False
        self._halt.set()
        self._cpu.emu_stop()

    def _main(self) -> None:

        while True:
            if self.error or not self._wanted:
                self._log.settled()
                self._park()
            if self._closing:
                return
            try:
                self._cpu.emu_start(self._cpu.reg_read(self._ids["rip"]), _ENDLESS - 1)
            except Exception as error:  # a thread that ended silently would look like a guest that runs
                self.error = GuestError(f"the emulated CPU failed: {type(error).__name__}: {error}")

    def _park(self) -> None:
        """Stands still until it is to run, which it also does where it was resumed and stopped again unnoticed."""
        with self._change:
            self._parked = True
            self._change.notify_all()
            self._change.wait_for(lambda: self._closing or (self._wanted and self.error is None))
            self._parked = False
