"""Dirty bitmaps over numpy words, and the runs of pages that they hold. Numpy, or what numba compiles (kernels.py); no
system calls."""

from precopy.bitmap.bitmap import Bitmap
from precopy.bitmap.runs import NO_RUNS, Runs
from precopy.bitmap.words import BITS_PER_WORD, Words

__all__ = ["BITS_PER_WORD", "NO_RUNS", "Bitmap", "Runs", "Words"]
