"""zstd, where the package is installed (extra ``snapshot``). Groups of a mebibyte, never single pages."""

from __future__ import annotations

import enum
from types import ModuleType
from typing import Protocol

from precopy.errors import UsageError, missing_extra
from precopy.memory.ram import Pages
from precopy.units import shown

LEVEL = -1
"""zstd's level where none is asked for: see docs/adr/0013-snapshot-format.md for what others gave."""


class Compression(enum.Enum):
    """What was done to each group."""

    NONE = "none"
    ZSTD = "zstd"


class Compressor(Protocol):
    """Makes a group shorter."""

    def __call__(self, pages: Pages, /) -> bytes: ...


def compression_of(name: str | None) -> Compression:
    """Raises `UsageError` for a name that is none."""
    if name is None:
        return Compression.NONE
    if not isinstance(name, str) or name != Compression.ZSTD.value:
        raise UsageError(f"{shown(name)} is no compression; there is zstd, and None for none")
    return Compression.ZSTD


def compressor(level: int | None) -> Compressor:
    """Raises `Unsupported` without the package, `UsageError` for a level that zstd does not have."""
    zstd = _zstd()
    try:
        made = zstd.ZstdCompressor(level=LEVEL if level is None else level)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{level} is no level of zstd: {error}") from error
    compress: Compressor = made.compress
    return compress


class Decompressor:
    """Undoes it for one group after another. Raises `Unsupported` without the package."""

    def __init__(self) -> None:
        self._zstd = _zstd()
        self._made = self._zstd.ZstdDecompressor()

    def into(self, data: bytes, pages: Pages) -> bool:
        """Fills ``pages`` from what a `Compressor` made of just as many; False where it cannot be that."""
        try:
            # The frame says what its content takes before anything is allocated for it.
            if self._zstd.get_frame_parameters(data).content_size != pages.nbytes:
                return False
            content = self._made.decompress(data, max_output_size=pages.nbytes)
        except self._zstd.ZstdError:
            return False
        if len(content) != pages.nbytes:
            return False
        pages.data.cast("B")[:] = content
        return True


def _zstd() -> ModuleType:
    try:
        import zstandard  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing_extra("compressed snapshots need", "zstandard", "snapshot") from None
    return zstandard
