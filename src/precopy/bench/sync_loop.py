"""The compiled peers of ``precopy bench bitmap``: sync_loop.c, built by the system's C compiler when it is measured.

They are built as a distribution builds programs: -O2, for every x86-64, so without the popcnt instruction.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from precopy.bitmap import BITS_PER_WORD, Bitmap
from precopy.bitmap.words import words_for
from precopy.errors import Unsupported

SOURCE = Path(__file__).with_name("sync_loop.c")
FLAGS = ("-O2", "-shared", "-fPIC")
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class SyncLoop:
    """The compiled loops. ``compiler`` says what built them, and how."""

    compiler: str
    library: ctypes.CDLL

    def by_word(self, source: Bitmap, dest: Bitmap, start: int, count: int) -> int:
        """Takes over all words that a range of pages touches, wholly. Returns how many pages were new in ``dest``."""
        first, last = start // BITS_PER_WORD, words_for(start + count)
        return int(
            self.library.sync_words(
                ctypes.c_void_p(source.words[first:last].ctypes.data),
                ctypes.c_void_p(dest.words[first:last].ctypes.data),
                ctypes.c_size_t(last - first),
            )
        )

    def by_page(self, source: Bitmap, dest: Bitmap, start: int, count: int) -> int:
        """Takes over a range of pages, one by one. Returns how many were new in ``dest``."""
        return int(
            self.library.sync_pages(
                ctypes.c_void_p(source.words.ctypes.data),
                ctypes.c_void_p(dest.words.ctypes.data),
                ctypes.c_size_t(start),
                ctypes.c_size_t(count),
            )
        )


def compile_loop(source: Path = SOURCE) -> SyncLoop:
    """Builds ``source`` in a directory that is gone afterwards. Raises `Unsupported` where no C compiler can."""
    compiler = _find_compiler()
    with tempfile.TemporaryDirectory(prefix="precopy-") as directory:
        built = os.path.join(directory, "sync_loop.so")
        _run([*compiler, *FLAGS, "-o", built, str(source)])
        library = ctypes.CDLL(built)
    for function in (library.sync_words, library.sync_pages):
        function.restype = ctypes.c_uint64
    version = _run([*compiler, "--version"]).partition("\n")[0].strip()
    return SyncLoop(f"{version} {' '.join(FLAGS)}", library)


def _find_compiler() -> list[str]:
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return command
    raise Unsupported("no C compiler is installed, and the peer is compiled here", "install gcc, or set CC to one")


def _run(command: list[str]) -> str:
    """Stdout of the compiler."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported(f"the C compiler {command[0]} does not run: {error}", "set CC to another one") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it does not say why"]
        raise Unsupported(f"the C compiler {command[0]} failed: {lines[0].strip()}", "set CC to another one")
    return done.stdout
