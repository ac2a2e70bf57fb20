"""Documents to make pages of, as `precopy ... --json` prints them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from precopy.planning.policies import POLICIES

RAM = 256 << 20
PARTS = 128
MACHINE = {
    "cpu": "AMD EPYC",
    "cores": 2,
    "memory_bytes": 25276502016,
    "kernel": "6.18.44",
    "python": "3.11.7",
    "precopy": "0.1.0",
}


def estimate(value: float, spread: float = 0.2) -> dict[str, float]:
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + spread)}


def round_of(number: int, pages: int, last: bool, **more: Any) -> dict[str, Any]:
    """A round that sends ``pages`` at 400 MB/s."""
    transfer = pages * 4096 / 4e8
    return {
        "number": number,
        "final": last,
        "sync_s": 0.0004 + 2e-8 * pages,
        "log_sync_s": 0.0001,
        "bitmap_sync_s": 0.0001,
        "log_clear_s": 0.0002,
        "transfer_s": transfer,
        "send_s": transfer * 0.95,
        "scan_s": 0.0,
        "clear_s": 0.0,
        "dirty_pages": pages,
        "new_dirty_pages": pages,
        "sent_pages": pages,
        "zero_pages": 0,
        "torn_batches": 1,
        "sent_bytes": pages * 4104,
        "get_log_ioctls": 11,
        "clear_log_ioctls": 7,
        "get_log_ioctl_s": 0.0001,
        "clear_log_ioctl_s": 0.0001,
        "bandwidth_bytes_per_s": 4e8,
        "dirty_rate_bytes_per_s": 9e7 if number > 1 else 0.0,
        **more,
    }


def migration(
    rounds: int = 5, *, live: bool = False, clear: str = "deferred", slow: float = 1.0, clears: int = 7
) -> dict[str, Any]:
    """A migration that converges in ``rounds``; ``live``: with what the live verdict adds to it."""
    pages = [int(65536 * 0.3**number) + 200 for number in range(rounds)]
    made = []
    for number, count in enumerate(pages, start=1):
        more: dict[str, Any] = {
            "pending_bytes": 4096 * count,
            "arrived_s": 0.2 * number,
            "throttled_share": 0.0,
            "dirty_map": dirty_map(number, count),
            "stall": stall(0.2, 0.0008 * number),
        }
        made.append(round_of(number, count, number == rounds, clear_log_ioctls=clears, **(more if live else {})))
    downtime = {
        "pause_s": 0.0004 * slow,
        "final_sync_s": 0.0009 * slow,
        "final_send_s": 0.021 * slow,
        "state_s": 0.0011 * slow,
        "commit_s": 0.0005 * slow,
    }
    total = sum(one["sync_s"] + one["transfer_s"] for one in made) + 0.02
    sent = sum(one["sent_bytes"] for one in made)
    body = {
        "session": "0123456789abcdef",
        "guest": "kvm",
        "tracker": "kvm dirty log",
        "tracker_why": "what the guest has",
        "tracker_pause_s": 0.0,
        "clear": clear,
        "clear_chunk_shift": 15,
        **({"policy": "ours", "throttled": {"throttled_s": [0.02], "active_s": 0.1}} if live else {}),
        "rounds": made,
        "downtime_limit_s": 0.03,
        "total_s": total,
        "verify_s": 0.01,
        "setup_s": 0.001,
        "sent_bytes": sent,
        "ram_bytes": RAM,
        "compared_pages": RAM // 4096,
        "verify_bytes": RAM + (1 << 20),
        "setup_bytes": 800,
        "other_bytes": 0,
        "moving_s": total - 0.011,
        "completed": True,
        "verified": True,
        "downtime_s": sum(downtime.values()),
        "downtime": downtime,
        "throughput_bytes_per_s": sent / (total - 0.011),
        "get_log_ioctls": 11 * rounds,
        "clear_log_ioctls": clears * rounds,
        "zero_pages": 0,
        "torn_batches": rounds,
    }
    if not live:
        return body
    stalls = {"before": stall(0.2, 0.0004), "precopy": stall(0.2 * rounds, 0.0008 * rounds), "why_not": ""}
    return {**body, "stall": stalls, "verdicts": verdicts(rounds, body["downtime_s"], total - 0.01)}


def stall(window_s: float, longest_s: float) -> dict[str, float]:
    """Ten gaps, of which nine are a quarter as long as the longest."""
    return {
        "window_s": window_s,
        "longest_s": longest_s,
        "stalled_s": 3.25 * longest_s,
        "gaps": 10,
        "unread": 0,
    }


def dirty_map(number: int, pages: int) -> list[int]:
    """Every page at first; then two hot places, and a few pages everywhere."""
    if number == 1:
        return [RAM // 4096 // PARTS] * PARTS
    rng = random.Random(number)
    heat = [math.exp(-(((part - 30) / 6) ** 2)) + 0.6 * math.exp(-(((part - 92) / 3) ** 2)) for part in range(PARTS)]
    whole = RAM // 4096 // PARTS
    return [min(whole, int(pages * one / sum(heat)) + (rng.random() < 0.2)) for one in heat]


def verdicts(rounds: int, downtime_s: float, total_s: float) -> list[dict[str, Any]]:
    """One after each round but the last; the first knows of no end."""
    made = []
    for number in range(1, rounds):
        spread = 0.9 / number
        unknown = number == 1
        open_end = {"value": None, "low": 0.01, "high": None}
        made.append(
            {
                "round": number,
                "elapsed_s": 0.2 * number,
                "converges": None if unknown else True,
                "more_rounds": estimate(rounds - number, 0.3),
                "downtime_s": open_end if unknown else estimate(downtime_s * (1 + 0.1 / number), spread),
                "total_s": open_end if unknown else estimate(total_s * (1 - 0.1 / number), spread),
                "smallest_downtime_limit_s": dict.fromkeys(open_end) if unknown else estimate(0.011, 0.3),
                "largest_dirty_rate_bytes_per_s": None if unknown else 2e8,
                "remaining_bytes": 1 << 20,
                "throttle_to": 0.0,
                "action": "switch over" if number == rounds - 1 else "go on",
                "reason": "what is left takes longer than the limit",
                "bandwidth_bytes_per_s": estimate(4e8, 0.1),
                "dirty_rate_bytes_per_s": 9e7,
                "downtime_limit_s": 0.03,
            }
        )
    return made


def migrate(rounds: int = 6, *, live: bool = True) -> dict[str, Any]:
    return {"schema": "precopy.migrate/2", **migration(rounds, live=live)}


def demo() -> dict[str, Any]:
    """Three policies, the last of which failed."""
    runs: list[dict[str, Any]] = [
        {**migration(4, clear="per-page", slow=1.8, clears=5568), "verdict": "yes"},
        {**migration(3, clear="merged", slow=0.7), "verdict": "yes"},
        {"completed": False, "clear": "broken", "verified": False, "verdict": "page 17 differs"},
    ]
    return {"schema": "precopy.demo/2", "machine": MACHINE, "guest": "kvm", "why": "/dev/kvm works here", "runs": runs}


def spread(value: float) -> dict[str, float]:
    return {"median": value, "min": value * 0.9, "max": value * 1.4}


BLOCKS = (("pc.ram", 131072, True, 1), ("system.flash0", 480, False, 960), ("system.flash1", 32, False, 64),
          ("vga.vram", 4096, True, 1), ("unmapped", 16, False, 0))  # fmt: skip


def bench_sync() -> dict[str, Any]:
    """Three variants over four mapped blocks and one that is not."""
    variants = []
    for name, times, shrink in (("before-patch", 0.037, 1), ("upstream", 0.0004, 60), ("ours", 0.00012, 0)):
        blocks = [
            {
                "name": block,
                "pages": pages,
                "aligned": aligned,
                "listeners": 2,
                "slots": 0 if block == "unmapped" else 2,
                "dirty_pages": pages // 4,
                "get_log_ioctls": 2,
                "clear_log_ioctls": -(-clears // shrink) if shrink else 0,
                "deferred_clear_ioctls": 0 if shrink else 2,
                **{part: spread(times / 10) for part in ("log_sync_s", "bitmap_sync_s", "log_clear_s")},
            }
            for block, pages, aligned, clears in BLOCKS
        ]
        variants.append(
            {
                "variant": name,
                "clear": name,
                **{part: spread(times) for part in ("sync_s", "log_sync_s", "bitmap_sync_s", "log_clear_s")},
                "dirty_pages": 2389,
                "get_log_ioctls": 12,
                "clear_log_ioctls": sum(block["clear_log_ioctls"] for block in blocks),
                "deferred_clear_ioctls": sum(block["deferred_clear_ioctls"] for block in blocks),
                "blocks": blocks,
            }
        )
    qemu = {
        "version": "7.2.22",
        "accel": "kvm",
        "status": "running",
        "command": ["qemu-system-x86_64", "-m", "512"],
        "syncs": 9,
        "sync_s": spread(0.00076),
        "sync_all_events_s": spread(0.0031),
        "clear_log_ioctls": 1088,
        "deferred_clear_ioctls": 2.0,
    }
    return {
        "schema": "precopy.bench-sync/1",
        "machine": MACHINE,
        "layout": "q35-ovmf-512m-cirrus",
        "notes": ["vga.vram is not mapped"],
        "ram_bytes": 512 << 20,
        "ram_share": 0.01,
        "paused": False,
        "unaligned_mapped_pages": 1088,
        "listeners": ["kvm-memory: dirty log", "kvm-smram: dirty log"],
        "slots": 11,
        "written_pages": 2388,
        "variants": variants,
        "idle": {"syncs": 200, **dict.fromkeys(("sync_s", "get_log_s", "beyond_get_s"), spread(0.0001))},
        "vhost": {
            "devices": 4,
            "logged_pages": 1024,
            "shared": {"walks_per_sync": 1, "log_sync_s": spread(0.00003)},
            "per_device": {"walks_per_sync": 4, "log_sync_s": spread(0.00011)},
        },
        "repeats": 9,
        "failed": [],
        "seed": [{"what": "its clears", "clear_log_ioctls": 960, "before_s": 0.049, "after_s": None}],
        "qemu": qemu,
        "ratios": {"ours_to_before_patch": 0.0033, "ours_to_qemu": 0.16},
    }


def bench_migrate() -> dict[str, Any]:
    qemu = {
        "version": "7.2.22",
        "total_s": 0.097,
        "downtime_s": 0.012,
        "setup_s": 0.001,
        "transferred_bytes": 1 << 28,
        "throughput_bytes_per_s": 3.1e9,
        "rounds": 2,
        "downtime_limit_s": 0.03,
        "wall_s": 0.1,
        "wall_throughput_bytes_per_s": 3e9,
        "stop_to_resume_s": 0.014,
        "write_rate_pages_per_s": 1e6,
    }
    repeats = [
        {
            "ceiling_bytes_per_s": 6.9e9,
            "precopy": migration(2, slow=slow),
            "overhead_bytes": {"source": 1, "destination": 1},
            "qemu": qemu,
            "other_qemus": [
                {**qemu, "version": "11.1.3", "tracker": "dirty ring", "channels": 2, "throughput_bytes_per_s": 2.9e9}
            ],
        }
        for slow in (1.0, 1.1)
    ]
    return {
        "schema": "precopy.bench-migrate/3",
        "machine": MACHINE,
        "throughput_bytes_per_s": 3.95e9,
        "downtime_s": 0.011,
        "ceiling_bytes_per_s": 6.9e9,
        "ratio_to_ceiling": 0.57,
        "ratio_to_qemu": 1.28,
        "setup": {"ram": RAM, "rewritten": 1 << 20, "write_rate": None, "downtime_limit_s": 0.03, "verify": True},
        "overhead_bytes": {"source": 1, "destination": 1},
        "idle_sync": {"slots": 12, "syncs": 300, "median_s": 0.00003, "min_s": 0.00002, "max_s": 0.001},
        "repeats": repeats,
        "failed": [],
    }


def compare() -> dict[str, Any]:
    """Two traces; on the second, points lie close together and one policy does not complete."""
    traces = []
    for name, near in (("hotset-64m-at-1G", 1.0), ("random-256m-at-400M", 0.15)):
        rng = random.Random(name)
        points = [(1.4 + near * rng.random() * 3, 0.05 + near * rng.random() * 0.4) for _ in POLICIES]
        results = []
        for policy, (total, downtime) in zip(POLICIES, points, strict=True):
            completed = not (near < 1 and policy == "nova")
            beaten = any(a <= total and b <= downtime and (a, b) != (total, downtime) for a, b in points)
            results.append(
                {
                    "policy": policy,
                    "completed": completed,
                    "downtime_s": downtime if completed else None,
                    "total_s": total if completed else None,
                    "sent_bytes": total * 4e8,
                    "guest_time_lost_s": downtime + rng.random(),
                    "rounds": 3 + int(total),
                    "reason": "what is left fits" if completed else "no round got shorter",
                    "on_front": completed and not beaten,
                }
            )
        traces.append({"name": name, "results": results})
    return {"schema": "precopy.compare/1", "traces": traces, "failed": []}


CASE = {"workload": "random", "write_rate": 20000, "working_set": None, "max_bandwidth": 160_000_000,
        "downtime_limit_s": 0.04, "ram": 128 << 20, "converges": True}  # fmt: skip


WITHIN = ("share_within", "downtime_within", "total_within", "share_within_ahead")


def bench_predict(migrations: int = 50) -> dict[str, Any]:
    rng = random.Random(7)
    made = []
    for number in range(migrations):
        downtime, total = 10 ** rng.uniform(-2.3, -0.5), 10 ** rng.uniform(-0.3, 1.0)
        predicted_downtime = estimate(downtime * rng.gauss(1, 0.12), 0.25)
        predicted_total = estimate(total * rng.gauss(1, 0.08), 0.2)
        made.append(
            {
                "name": f"{('sequential', 'random', 'hotset')[number % 3]}, 20000 pages a second",
                "case": CASE,
                "rounds": 4,
                "predicted_after": 3,
                "predicted_downtime_s": predicted_downtime,
                "measured_downtime_s": downtime,
                "downtime_error": (predicted_downtime["value"] - downtime) / downtime,
                "predicted_total_s": predicted_total,
                "measured_total_s": total,
                "total_error": (predicted_total["value"] - total) / total,
                "said": [
                    {
                        "after": 1,
                        "converges": None,
                        "downtime_s": {"value": None, "low": 0.01, "high": None},
                        "downtime_held": True,
                        "total_s": predicted_total,
                        "total_held": True,
                    }
                ],
            }
        )
    hopeless = {
        "name": "random, as fast as it goes",
        "case": CASE,
        "named_after": 3,
        "smallest_downtime_limit_s": 1.9,
        "then_completed": True,
        "then_rounds": 4,
        "then_downtime_s": 1.7,
        "detail": "",
    }
    return {
        "schema": "precopy.bench-predict/1",
        "machine": MACHINE,
        "migrations": made,
        "hopeless": [hopeless],
        "held": [
            {
                "after": after,
                "migrations": migrations,
                "downtime": 0.95,
                "total": 0.9,
                "both": 0.88,
                "downtime_width": 12.5 / after,
                "total_width": None,
            }
            for after in (1, 2, 3)
        ],
        "missed": [
            {
                "name": "random, 20000 pages a second",
                "case": CASE,
                "failed": {
                    "name": "random",
                    "kind": "NotConverged",
                    "message": "did not converge in 30 rounds",
                    "exit_code": 4,
                    "converged": False,
                },
                "rounds": 29,
                "named_after": None,
            }
        ],
        **{key: {"10": 0.6, "20": 0.86, "50": 0.98} for key in WITHIN},
        "ahead": 3,
        "hopeless_named": 1.0,
        "hopeless_completed": 1.0,
    }


def bench_bitmap() -> dict[str, Any]:
    """One of those that have no pictures of their own."""
    cases = [
        {
            "guest_bytes": 1 << 34, "pages": 1 << 22, "pattern": "dense", "aligned": aligned,
            "start": 0 if aligned else 13, "length": 1 << 22 if aligned else (1 << 22) - 42, "bytes": 1 << 19,
            "new_pages": 1 << 20, "ours_gb_per_s": 2.33, "c_gb_per_s": 1.41, "copy_gb_per_s": 5.2,
            "c_per_page_gb_per_s": None if aligned else 0.012, "ratio_to_c": 1.66, "ratio_to_copy": 0.45,
            "ratio_to_aligned": None if aligned else 1.1,
        }
        for aligned in (True, False)
    ]  # fmt: skip
    body = {"compiler": "cc 12.2.0 -O2", "cases": cases, "unaligned_to_aligned": 1.1}
    return {"schema": "precopy.bench-bitmap/1", "machine": MACHINE, **body}


def failure() -> dict[str, Any]:
    error = {"kind": "NotConverged", "message": "did not converge in 30 rounds", "exit_code": 4}
    return {"schema": "precopy.error/1", "error": error}


GOLDEN = Path(__file__).parents[1] / "golden" / "documents"
"""What version 0.1 printed, with shorter lists."""


def golden(kind: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GOLDEN / f"{kind}.json").read_text(encoding="utf-8"))
    return document


ALL: dict[str, Callable[[], dict[str, Any]]] = {
    "migrate": migrate,
    "demo": demo,
    "bench-sync": bench_sync,
    "bench-migrate": bench_migrate,
    "compare": compare,
    "bench-predict": bench_predict,
    "bench-bitmap": bench_bitmap,
    "error": failure,
}
ALL |= {path.stem: partial(golden, path.stem) for path in sorted(GOLDEN.glob("*.json")) if path.stem not in ALL}
