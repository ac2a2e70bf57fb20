"""What the patch series (docs/patch-series.md) reports of its author's machine, shown beside what is measured here.

Source: "migration: merge fragmented clear_dirty ioctls" (RFC v1, its review, and the version that QEMU merged). One VM
with an OVMF flash, two listeners (kvm-memory and kvm-smram); and one of 64 vCPUs and 256 GB that writes 10 GB/s.
"""

from __future__ import annotations

from precopy.report.kinds.bench_sync import Reported

REPORTED = (
    Reported("system.flash0, 1966080 bytes: its clears", 960, 0.049, None),
    Reported("all unaligned blocks: their clears", None, 0.061, 0.001),
    Reported("the whole sync, 64 vCPUs, 256 GB at 10 GB/s", None, 0.073, 0.012),
)
