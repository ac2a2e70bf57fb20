"""Atomic operations on words that another process changes at the same time, without a C extension.

Python has none, and numpy's read and write in two steps: a bit set between them would be lost. So a few instructions
of x86-64 are assembled when they are first needed and called through ctypes, which releases the interpreter's lock.
docs/adr/0009-atomics-without-a-c-extension.md has the figures.

Memory is never writable and executable at once: the page is written first and then made read-only and executable.

On x86-64 each of these is sequentially consistent (Intel SDM volume 3, "Locked Atomic Operations" and "Memory
Ordering": locked instructions have a total order, and loads and stores are not reordered with them). So a thread that
takes a bit here reads, from then on, everything that the process which set it had stored before.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from precopy.abi.assembler import assemble
from precopy.errors import BitmapRangeError, Unsupported

Words = npt.NDArray[np.uint64]

_BITS = 64  # in a word

# System V calling convention: arguments in rdi, rsi, rdx, rcx, the result in rax; only registers that a callee may
# change are used, and no stack.

EXCHANGE = """
    xor   eax, eax
next:
    mov   r8, rsi
    cmp   rsi, 8
    jb    rest
    mov   rcx, [rdi]            # a line of eight clean words, which is most of a log, costs loads only
    or    rcx, [rdi + 8]
    or    rcx, [rdi + 16]
    or    rcx, [rdi + 24]
    or    rcx, [rdi + 32]
    or    rcx, [rdi + 40]
    or    rcx, [rdi + 48]
    or    rcx, [rdi + 56]
    mov   r8d, 8
    jnz   some
    add   rdi, 64
    add   rdx, 64
    sub   rsi, 8
    jmp   next
rest:
    test  r8, r8
    jz    done
some:
    sub   rsi, r8
take:
    cmp   qword ptr [rdi], 0    # a locked instruction would take the line from the CPU that writes it
    je    clean
    xor   ecx, ecx
    xchg  [rdi], rcx            # locked without a prefix
    or    [rdx], rcx
    inc   rax
clean:
    add   rdi, 8
    add   rdx, 8
    dec   r8
    jnz   take
    jmp   next
done:
    ret
"""

CLEAR = """
    xor   eax, eax
    test  rsi, rsi
    jz    done
next:
    mov   rcx, [rdx]
    test  [rdi], rcx
    jz    clean
    not   rcx
    lock and [rdi], rcx
    inc   rax
clean:
    add   rdi, 8
    add   rdx, 8
    dec   rsi
    jnz   next
done:
    ret
"""

SET = """
    test  rdx, rdx
    jz    done
next:
    lock bts qword ptr [rdi], rsi
    add   rsi, rcx
    dec   rdx
    jnz   next
done:
    ret
"""


def exchange_words(source: Words, dest: Words) -> int:
    """Takes every word of ``source`` (exchanges it with 0), adds its bits to ``dest``, and counts those that had any.

    Each word is taken at once: a bit that another process sets meanwhile is either taken now or still there later.
    ``dest`` is as long as ``source`` and is this thread's alone. Raises `ValueError`, `Unsupported`.
    """
    source_address, dest_address = _address(source), _address(dest)
    _same_size(source, dest)
    return int(_operations().exchange(source_address, source.size, dest_address))


def clear_words(target: Words, mask: Words) -> int:
    """Clears in ``target`` the bits that are set in ``mask``; returns how many words had any of them.

    ``mask`` is as long as ``target`` and is this thread's alone. Raises `ValueError`, `Unsupported`.
    """
    target_address, mask_address = _address(target), _address(mask)
    _same_size(target, mask)
    return int(_operations().clear(target_address, target.size, mask_address))


def set_bits(target: Words, first: int, count: int = 1, stride: int = 1) -> None:
    """Sets ``count`` bits of ``target`` one after the other, from bit ``first`` on, each ``stride`` (which may be
    negative) above the one before.

    Raises `BitmapRangeError` where one lies outside, `ValueError`, `Unsupported`.
    """
    low, high = sorted((first, first + max(count - 1, 0) * stride))
    if low < 0 or count < 0 or high >= target.size * _BITS:
        raise BitmapRangeError(low, high + 1 - low, target.size * _BITS)
    _operations().set(_address(target), first, count, stride)


@dataclass(frozen=True)
class _Operations:
    """The three as C functions, and the page that holds their code."""

    page: mmap.mmap
    exchange: Any
    clear: Any
    set: Any


def _operations() -> _Operations:
    # Two threads that come first together must not make two: the page of the one that is dropped would be unmapped,
    # with a thread in it.
    with _making:
        return _made()


_making = threading.Lock()


@cache
def _made() -> _Operations:
    """Assembles them: once, and only where they are used, because the assembler takes a while to load."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.maxsize < 1 << 32:
        raise Unsupported(
            f"atomic operations on shared memory are not there for {platform.machine()}", "use 64-bit Python on x86-64"
        )
    code, starts = bytearray(), []
    for source in (EXCHANGE, CLEAR, SET):
        starts.append(len(code))
        code += assemble(source)
        code += bytes(-len(code) % 64)
    page, address = executable(bytes(code))
    exchange, clear, setter = (address + start for start in starts)
    words = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    bits = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64)
    return _Operations(page, words(exchange), words(clear), bits(setter))


def executable(code: bytes) -> tuple[mmap.mmap, int]:
    """Memory that holds ``code`` and can be executed and no longer written, and its address.

    Raises `Unsupported` where the system does not let this process have such memory.
    """
    try:
        page = mmap.mmap(-1, len(code), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.write(code)
        address = int(np.frombuffer(page, np.uint8).__array_interface__["data"][0])
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if protect(address, len(code), mmap.PROT_READ | mmap.PROT_EXEC) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError as error:
        raise Unsupported(
            f"this process may not make memory executable ({error.strerror}), which atomic operations need",
            "allow it (systemd: MemoryDenyWriteExecute=no; SELinux: execmem)",
        ) from error
    return page, address


def _address(words: Words) -> int:
    """Where ``words`` lie. They have to be aligned: a locked access across two cache lines stops every CPU."""
    if words.dtype != np.uint64 or words.ndim != 1 or not words.flags.carray:
        raise ValueError(f"atomic operations take one row of aligned, writable uint64 words, not {words.dtype}")
    return int(words.__array_interface__["data"][0])


def _same_size(one: Words, other: Words) -> None:
    if one.size != other.size:
        raise ValueError(f"{one.size} words and {other.size}")
