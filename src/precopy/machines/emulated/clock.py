"""The emulated CPU's time stamp counter: Unicorn gives its guest the host's own, whose frequency is measured here."""

from __future__ import annotations

import functools
import time

_PERIOD_S = 0.02
"""Seconds over which the frequency is measured: reading the counter takes some 20 us from here, a thousandth of it."""
_READ = bytes.fromhex("0f3148c1e2204809d0")
"""rdtsc; shl rdx, 32; or rax, rdx"""
_AT = 0x1000


@functools.cache
def tsc_khz() -> int:
    """Ticks in a millisecond, measured over `_PERIOD_S` at the first call, and the same ever after."""
    import unicorn  # noqa: PLC0415 - an extra, and slow to import
    from unicorn import x86_const  # noqa: PLC0415

    cpu, code = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64), _READ
    cpu.mem_map(_AT, 0x1000)
    cpu.mem_write(_AT, code)

    def read() -> tuple[int, int]:
        """(ticks, nanoseconds) of one moment: of several readings the one that took least."""
        readings = []
        for _ in range(5):
            before = time.perf_counter_ns()
            cpu.emu_start(_AT, _AT + len(code))
            after = time.perf_counter_ns()
            readings.append((after - before, int(cpu.reg_read(x86_const.UC_X86_REG_RAX)), (before + after) // 2))
        _, ticks, at = min(readings)
        return ticks, at

    ticks, began = read()
    time.sleep(_PERIOD_S)
    end_ticks, ended = read()
    return (end_ticks - ticks) * 1_000_000 // (ended - began)
