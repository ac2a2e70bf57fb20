"""``precopy bench sync`` as tables, from its document."""

from __future__ import annotations

from typing import Any

from precopy.report.console import FittedTable, show, table
from precopy.units import format_duration, format_size

Body = dict[str, Any]


def show_sync(body: Body) -> None:
    """Prints the variants, each variant's blocks, the peers, and the ratios."""
    blocks = [block for block in body["variants"][0]["blocks"] if block["slots"]]
    unmapped = [block["name"] for block in body["variants"][0]["blocks"] if not block["slots"]]
    show(
        f"layout {body['layout']} with {format_size(body['ram_bytes'])} of RAM; {len(blocks)} mapped RAM blocks in "
        f"{body['slots']} slots; {'; '.join(body['listeners'])}",
        f"the guest {'stands still in each sync' if body['paused'] else 'runs'}; between two syncs it writes "
        f"{body['written_pages']} pages: all of the smaller blocks, {100 * body['ram_share']:g} % of main memory",
        _variants(body),
        _blocks(body),
    )
    if unmapped:
        show(f"not mapped in this layout, and so without a slot: {', '.join(unmapped)}")
    show(*_peers(body))


_TIMES = ("log_sync_s", "bitmap_sync_s", "log_clear_s")
_TIME_COLUMNS = ("log_sync us", "bitmap us", "log_clear us")


def _variants(body: Body) -> FittedTable:
    shown = _figures("variant", "dirty", "get", "clear", "deferred", "sync time us (min to max)", *_TIME_COLUMNS)
    for one in body["variants"]:
        shown.add_row(
            one["variant"],
            *(str(one[name]) for name in ("dirty_pages", "get_log_ioctls")),
            *(str(one[name]) for name in ("clear_log_ioctls", "deferred_clear_ioctls")),
            *(_microseconds(one[name]) for name in ("sync_s", *_TIMES)),
        )
    qemu = body["qemu"]
    if qemu:
        shown.add_row(
            f"QEMU {qemu['version'].split()[0]}, traced",
            *("-", "-", str(qemu["clear_log_ioctls"]), f"{qemu['deferred_clear_ioctls']:g}"),
            _microseconds(qemu["sync_s"]),
            *("-", "-", "-"),
        )
    return shown


def _blocks(body: Body) -> FittedTable:
    shown = _figures("RAM block", "pages", "listeners", "slots", "dirty", "get", "clear", "deferred", *_TIME_COLUMNS)
    for variant in body["variants"]:
        shown.add_row(variant["variant"], style="bold")
        for one in variant["blocks"]:
            if not one["slots"]:
                continue
            shown.add_row(
                f"  {one['name']}",
                f"{one['pages']}{' ' if one['aligned'] else '*'}",
                *(str(one[name]) for name in ("listeners", "slots", "dirty_pages", "get_log_ioctls")),
                *(str(one[name]) for name in ("clear_log_ioctls", "deferred_clear_ioctls")),
                *(_microseconds(one[name]) for name in _TIMES),
            )
    return shown


def _peers(body: Body) -> list[str]:
    lines = [
        "* a length that is no multiple of 64 pages; times of blocks are those in their ioctls (bitmap: alone)",
        "every figure is a median by itself: parts need not add up, but for a variant's ioctls, which are its blocks'",
    ]
    idle = body["idle"]
    lines.append(
        f"idle: a sync takes {format_duration(idle['sync_s']['median'])}, "
        f"{format_duration(idle['beyond_get_s']['median'])} of it outside its get ioctls (median of {idle['syncs']})"
    )
    vhost = body["vhost"]
    walks = [
        f"{vhost[way]['walks_per_sync']} in {format_duration(vhost[way]['log_sync_s']['median'])}"
        for way in ("shared", "per_device")
    ]
    lines.append(
        f"vhost log: {vhost['devices']} device processes share one; walks of it in a sync: {walks[0]}; once a device, "
        f"as before the patch series' other patch: {walks[1]}"
    )
    for one in body["seed"]:
        clears = f"{one['clear_log_ioctls']} ioctls, " if one["clear_log_ioctls"] else ""
        after = f", {format_duration(one['after_s'])} after it" if one["after_s"] is not None else ""
        before = f"{format_duration(one['before_s'])} before the patch"
        lines.append(f"the patch series reports: {one['what']}: {clears}{before}{after}")
    qemu = body["qemu"]
    if qemu:
        lines.append(
            f"QEMU {qemu['version']} on {qemu['accel']}, its VM {qemu['status']}: {qemu['syncs']} syncs without and as "
            f"many with its clears traced ({format_duration(qemu['sync_all_events_s']['median'])} then)"
        )
    ratios = body["ratios"]
    parts = [
        f"1/{1 / ratios[name]:.1f} of {what}"
        for name, what in (("ours_to_before_patch", "before-patch"), ("ours_to_qemu", "QEMU"))
        if ratios[name]
    ]
    if parts:
        lines.append(f"the sync time of ours is {' and '.join(parts)}")
    return lines


def _microseconds(spread: Body) -> str:
    """``median (min to max)``, all in microseconds; just a 0 where nothing was done."""
    median, low, high = (1e6 * spread[name] for name in ("median", "min", "max"))
    return f"{median:.0f} ({low:.0f} to {high:.0f})" if high else "0"


def _figures(*heads: str) -> FittedTable:
    return table(*((head, "r" if number else "l") for number, head in enumerate(heads)))
