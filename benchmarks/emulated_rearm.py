"""Noticing the stores of an emulated CPU: what it costs with a hook, with protected regions, and with the TLB.

A program stores into 1 to 60,000 pages, once into each, again and again. Each mechanism marks the pages that were
written, and is re-armed.

Run: .venv/bin/python benchmarks/emulated_rearm.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import keystone
import numpy as np
import unicorn
from unicorn import x86_const

from precopy.machines.emulated import EmulatedGuest
from precopy.machines.workload import CODE_GPA, Workload
from precopy.machines.workload.image import words_at
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import flat
from precopy.memory.host import HostMemory
from precopy.memory.topology.log_mask import DirtyClient
from precopy.trackers.write_log import WriteLog
from precopy.units import PAGE_SIZE, GuestPhysicalAddress

MIB = 1 << 20
RAM = 256 * MIB
HOT = (1, 64, 1000, 10_000, 60_000)
FRAGMENTS = (1, 16, 256, 1000)
BASE = MIB


def main() -> None:
    print("stores, M/s, by pages written\n   pages   no hook   every store   fast return   TLB (this project)")
    for pages in HOT:
        plain, every, armed = (hooked(pages, hook) for hook in (None, announce, only_unmarked))
        print(f"{pages:>8}   {plain:7.2f}   {every:11.2f}   {armed:11.2f}   {project(pages):18.2f}")
    print("\nguests' programs as fast as they can, M steps/s")
    for pattern in ("sequential", "random", "hotset"):
        print(f"{pattern:>12}   {steps(pattern):6.2f}")
    print(
        "\nre-arming with the CPU running: time until clear() returns, us (median), and TLB entries filled afterwards"
    )
    for pages in HOT:
        took, filled = rearming(pages)
        print(f"{pages:>8} pages   {took:6.0f} us   {filled:6.0f} fills a time")
    print("\nmem_protect between two runs, in fragments of a page: us a call, and ms to protect everything again")
    for fragments in FRAGMENTS:
        each, everything = protecting(fragments)
        print(f"{fragments:>8} fragments   {each:8.0f} us   {everything:7.2f} ms")
    without, with_block = hooked(64, None), hooked(64, None, blocks=True)
    print(f"\na hook for each block: {with_block:.2f} M stores/s instead of {without:.2f}")
    print(f"\na device writes code that runs: set_range returns after {device():.0f} us (median)")


def program(pages: int, count: int) -> bytes:
    """Machine code that stores into one of ``pages`` pages after the other, ``count`` times in all."""
    source = f"""
        mov   rcx, {count}
    outer:
        mov   rdi, {BASE}
        mov   edx, {pages}
    inner:
        mov   [rdi], rcx
        add   rdi, {PAGE_SIZE}
        dec   rcx
        jz    done
        dec   edx
        jnz   inner
        jmp   outer
    done:
        mov   [{CODE_GPA + 0x800}], rcx
    spin:
        jmp   spin
    """
    code, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(source, addr=CODE_GPA, as_bytes=True)
    return bytes(code)


def announce(log: WriteLog) -> Callable[..., None]:
    def hook(_cpu: Any, _access: int, address: int, size: int, _value: int, _data: object) -> None:
        log.wrote(address >> 12, (address + size - 1) >> 12)

    return hook


def only_unmarked(log: WriteLog) -> Callable[..., None]:
    def hook(_cpu: Any, _access: int, address: int, size: int, _value: int, _data: object) -> None:
        if not (log.marked(address >> 12) and log.marked((address + size - 1) >> 12)):
            log.wrote(address >> 12, (address + size - 1) >> 12)

    return hook


def machine(host: HostMemory) -> Any:
    cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    cpu.mem_map_ptr(0, host.size, unicorn.UC_PROT_ALL, host.address)
    return cpu


def hooked(pages: int, make: Callable[[WriteLog], Callable[..., None]] | None, blocks: bool = False) -> float:
    """Million stores a second. ``make`` makes a hook that is called at each store; ``blocks``: a hook that does nothing
    is called at each block of code."""
    count = 300_000 if make or blocks else 5_000_000
    host = HostMemory("ram", RAM)
    host.touch()
    code = program(pages, count)
    host.words.view(np.uint8)[CODE_GPA : CODE_GPA + len(code)] = np.frombuffer(code, np.uint8)
    cpu = machine(host)
    if make:
        layout = flat(RAM)
        cpu.hook_add(unicorn.UC_HOOK_MEM_WRITE, make(WriteLog(layout.end_page, layout.runs)))
    if blocks:
        cpu.hook_add(unicorn.UC_HOOK_BLOCK, lambda *_: None)
    start = time.perf_counter()
    cpu.emu_start(CODE_GPA, CODE_GPA + len(code) - 2)
    took = time.perf_counter() - start
    del cpu
    host.close()
    return count / took / 1e6


def guest_with(code: bytes) -> EmulatedGuest:
    memory = GuestMemory(flat(RAM))
    memory.touch()
    guest = EmulatedGuest(memory)
    guest.boot(Workload("idle", rate=None))
    page = words_at(memory, GuestPhysicalAddress(CODE_GPA), PAGE_SIZE).view(np.uint8)
    page[: len(code)] = np.frombuffer(code, np.uint8)
    page[0x800:0x808] = 1
    return guest


def project(pages: int) -> float:
    """Million stores a second of the project's guest, from the first to the last."""
    count = max(5_000_000, 200 * pages)
    with guest_with(program(pages, count)) as guest:
        done = words_at(guest.memory, GuestPhysicalAddress(CODE_GPA + 0x800), 8)
        start = time.perf_counter()
        guest.resume()
        while done[0]:
            time.sleep(1e-3)
        took = time.perf_counter() - start
        guest.pause()
    return count / took / 1e6


def steps(pattern: str) -> float:
    """Million steps a second of a guest, once it has run for a second."""
    memory = GuestMemory(flat(RAM))
    memory.touch()
    with EmulatedGuest(memory) as guest:
        guest.boot(Workload(pattern, rate=None))
        counts = []
        for _ in range(2):
            guest.resume()
            time.sleep(1)
            guest.pause()
            counts.append(guest.self_check().steps)
    return (counts[1] - counts[0]) / 1e6


def rearming(pages: int, times: int = 100) -> tuple[float, float]:
    """(microseconds that re-arming all pages takes, TLB entries filled from one re-arming to the next)."""
    took = []
    with guest_with(program(pages, 1 << 60)) as guest:
        guest.dirty.start()
        guest.resume()
        for time_no in range(times + 20):
            time.sleep(0.01)
            guest.dirty.sync()
            if time_no == 20:
                before = guest._tlb.fills
            start = time.perf_counter()
            guest.dirty.test_and_clear(DirtyClient.MIGRATION, 0, guest.memory.layout.end_page)
            took.append(time.perf_counter() - start)
        filled = (guest._tlb.fills - before) / times
        guest.pause()
    return 1e6 * statistics.median(took[20:]), filled


def protecting(fragments: int) -> tuple[float, float]:
    """(microseconds to make one of ``fragments`` pages writable, milliseconds to protect all again). Not from a hook,
    where Unicorn 2.1.4 ends with a segmentation fault at the second page."""
    host = HostMemory("ram", 64 * MIB)
    cpu = machine(host)
    size = host.size - BASE
    cpu.mem_protect(BASE, size, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
    start = time.perf_counter()
    for page in range(fragments):
        cpu.mem_protect(BASE + 2 * page * PAGE_SIZE, PAGE_SIZE, unicorn.UC_PROT_ALL)
    each = (time.perf_counter() - start) / fragments
    start = time.perf_counter()
    cpu.mem_protect(BASE, size, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
    everything = time.perf_counter() - start
    cpu.reg_read(x86_const.UC_X86_REG_RIP)
    del cpu
    host.close()
    return 1e6 * each, 1e3 * everything


def device(times: int = 200) -> float:
    """Microseconds that `DirtyMemory.set_range` takes for the page that the CPU runs in."""
    took = []
    with guest_with(program(64, 1 << 60)) as guest:
        guest.resume()
        for _ in range(times):
            time.sleep(0.002)
            start = time.perf_counter()
            guest.dirty.set_range(CODE_GPA // PAGE_SIZE, 1)
            took.append(time.perf_counter() - start)
        guest.pause()
    return 1e6 * statistics.median(took)


if __name__ == "__main__":
    main()
