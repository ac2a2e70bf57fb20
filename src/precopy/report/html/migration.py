"""The page of one migration."""

from __future__ import annotations

from precopy.migration.results import Migrated
from precopy.report.html.downtime import downtime_figure
from precopy.report.html.parts import Figure, Headline, Part, Report, Tile
from precopy.report.html.prediction import prediction_figures
from precopy.report.html.rounds import round_figures
from precopy.report.html.stall import stall_figure, stall_sentence
from precopy.report.html.words import ROUND_TERMS, duration, several, share
from precopy.report.kinds.migrate import Migration
from precopy.units import format_rate, format_size


def migration_report(done: Migration, prefix: str) -> Report:
    figures = migration_figures(done, prefix)
    decided = f"Policy {done.policy} decided when to switch over. " if done.policy else ""
    intro = f"{decided}Clear policy {done.clear}; what told of the guest's writes: {done.tracker}."
    parts = (Part(f"{prefix}migration", "The migration", intro, tuple(figures)),)
    title = f"{done.guest} guest migrated in {duration(done.unverified_s)}, downtime {duration(done.downtime.total_s)}"
    return Report(title, verdict(done), parts, ROUND_TERMS, done.workload)


def migration_figures(done: Migrated, prefix: str, *, alone: bool = True) -> list[Figure]:
    """``alone``: with its downtime, which otherwise stands beside others'."""
    figures = [*round_figures(done, prefix), *filter(None, [stall_figure(done, prefix)])]
    if alone:
        figures.append(downtime_figure([("", done)], prefix))
    return figures + prediction_figures(done, prefix)


def verdict(done: Migrated) -> Headline:
    """In words what was moved, whether it completed, and what that took."""
    within = done.downtime.total_s <= done.downtime_limit_s
    moved = f"A running {done.guest} guest"
    if done.ram_bytes:
        moved += f" with {format_size(done.ram_bytes)} of memory"
    headline = (
        f"{moved} was moved to another process in {duration(done.unverified_s)}; it stood still for "
        f"{duration(done.downtime.total_s)} of that."
    )
    return Headline(
        "good" if within else "warn",
        f"completed, {'verified' if done.verified else 'not verified'}"
        + ("" if within else ", downtime above its limit"),
        headline,
        _sentences(done, within),
        (_downtime_tile(done), _time_tile(done), _bytes_tile(done), _verified_tile(done)),
    )


def _sentences(done: Migrated, within: bool) -> tuple[str, ...]:
    first = done.rounds[0]
    last = done.rounds[-1]
    sent = (
        f"It took {several(len(done.rounds), 'round')}: the first sent {format_size(first.sent_bytes)}, the last "
        f"{format_size(last.sent_bytes)}."
        if len(done.rounds) > 1
        else "It took one round."
    )
    limit = duration(done.downtime_limit_s)
    held = "within" if within else "above"
    said = [sent, f"The downtime is {held} its limit of {limit}.", *filter(None, [stall_sentence(done)])]
    if done.throttled and any(done.throttled.throttled_s):
        taken = sum(done.throttled.throttled_s)
        said.append(
            f"To slow the guest's writes down, {duration(taken)} were taken from its CPUs within "
            f"{duration(done.throttled.active_s)}."
        )
    return tuple(said)


def _downtime_tile(done: Migrated) -> Tile:
    part = done.downtime.total_s / done.downtime_limit_s if done.downtime_limit_s else None
    said = f"limit {duration(done.downtime_limit_s)}"
    if part is not None:
        said = f"{100 * part:.0f} % of its limit of {duration(done.downtime_limit_s)}"
    return Tile("Downtime", duration(done.downtime.total_s), said, part)


def _time_tile(done: Migrated) -> Tile:
    checked = f"; verification took {duration(done.verify_s)} besides" if done.verify_s else ""
    return Tile("Total time", duration(done.unverified_s), f"{several(len(done.rounds), 'round')}{checked}")


def _bytes_tile(done: Migrated) -> Tile:
    said = []
    if done.ram_bytes:
        said.append(f"{share(done.sent_bytes, done.ram_bytes)} times its memory")
    if done.throughput_bytes_per_s is not None:
        said.append(f"{format_rate(done.throughput_bytes_per_s)} on average")
    if done.verify_bytes:
        said.append(f"and {format_size(done.verify_bytes)} besides for verification")
    return Tile("Sent", format_size(done.sent_bytes), ", ".join(said))


def _verified_tile(done: Migrated) -> Tile:
    if not done.verified:
        return Tile("Verified", "no", "memories were not compared (--verify was not given)")
    pages = f"{done.compared_pages:,} pages were" if done.compared_pages else "every page was"
    return Tile("Verified", "yes", f"before the guest ran on, {pages} compared byte for byte: both memories were equal")
