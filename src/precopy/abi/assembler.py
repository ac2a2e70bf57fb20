"""x86 assembly (Intel syntax) into machine code, with keystone: of guests' programs and of atomic operations.

keystone is the extra ``guests``: tracking a program's own memory needs no assembler. It is imported when something is
assembled, because that takes a while.
"""

from __future__ import annotations

from precopy.errors import PrecopyError, missing_extra


def assemble(source: str, *, bits: int = 64, address: int = 0) -> bytes:
    """Machine code of ``source``, which runs at ``address`` in a mode of 16, 32 or 64 ``bits``; ``#`` begins a comment.

    Raises `Unsupported` where keystone is not installed, `PrecopyError` where the source is no assembly.
    """
    try:
        import keystone  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        raise missing_extra("guests and vhost logs need an assembler,", "keystone-engine", "guests") from None
    mode = {16: keystone.KS_MODE_16, 32: keystone.KS_MODE_32, 64: keystone.KS_MODE_64}[bits]
    lines = (line.split("#")[0].strip() for line in source.splitlines())  # keystone reads only the code
    try:
        code, _ = keystone.Ks(keystone.KS_ARCH_X86, mode).asm("\n".join(filter(None, lines)), address, as_bytes=True)
    except keystone.KsError as error:
        raise PrecopyError(f"{bits}-bit code was not assembled: {error}") from error
    return bytes(code)
