"""``precopy replay``: what would have become of a recorded migration under other terms, beside what did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.migration.results import MOST_ROUNDS, finite
from precopy.planning import Limits, Outcome, RoundSample
from precopy.planning.model.trace import Trace
from precopy.report.kinds.compare import EXPECTED, NOT_THE_LAST, downtime_of, yes
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.table import Column, Shown, Table, tabulate
from precopy.units import format_duration, format_rate, format_size

_FASTER = 1.3
"""Factor over the recorded bandwidth from which the guest's writes are reckoned beyond what was seen of them."""


@dataclass(frozen=True)
class ReplayRound:
    """A round of a recorded or a replayed migration: one sync and the sending after it.

    - ``sync_s``: of the sync that begins it (the first one's is None where the recording does not have it), and
      ``dirty_bytes``: what that found newly dirty, which is all memory in the first round;
    - ``pending_bytes``: to be sent when it began; ``transfer_s``, ``send_s``, ``scan_s``, ``clear_s``, ``sent_bytes``,
      ``read_bytes``, ``throttled_share``: of its sending.
    """

    number: Count
    sync_s: Number | None
    dirty_bytes: Number
    pending_bytes: Number
    transfer_s: Number
    send_s: Number
    scan_s: Number
    clear_s: Number
    sent_bytes: Number
    read_bytes: Number
    throttled_share: Number


@dataclass(frozen=True)
class LastSync:
    """The sync after the last of the rounds, after which it was decided to switch over or to give up."""

    sync_s: Number
    dirty_bytes: Number
    pending_bytes: Number


@dataclass(frozen=True)
class Course:
    """The terms and the course of one side; None: not known, or infinite. ``bandwidth_bytes_per_s`` None: no limit, or
    the recorded link. ``action`` is what was decided in the end, ``reason`` why."""

    policy: Text
    clear: Text
    bandwidth_bytes_per_s: Number | None
    limits: Limits
    completed: bool | None
    downtime_s: Number | None
    total_s: Number | None
    sent_bytes: Number | None
    guest_time_lost_s: Number | None
    reason: Text
    rounds: Annotated[tuple[ReplayRound, ...], Meta(max_length=MOST_ROUNDS)]
    last_sync: LastSync | None
    action: Text = ""


@dataclass(frozen=True)
class Replay:
    """``machine`` is the recorded one, in ``ram_blocks`` RAM blocks; ``caution`` says why the replay may be far off,
    where it may be."""

    file: Text
    machine: Text
    guest: Text
    tracker: Text
    ram_bytes: Count
    note: Text
    caution: Text
    recorded: Course
    replayed: Course
    ram_blocks: Count = 0

    @classmethod
    def of(
        cls,
        file: str,
        trace: Trace,
        outcome: Outcome,
        *,
        policy: str,
        clear: str,
        bandwidth: float | None,
        limits: Limits,
    ) -> Replay:
        """``bandwidth`` None: over the recorded link."""
        return cls(
            file=file,
            machine=trace.facts.machine,
            guest=trace.facts.guest,
            tracker=trace.facts.tracker,
            ram_bytes=trace.ram_bytes,
            note=trace.note,
            caution=_caution(trace, bandwidth),
            recorded=_recorded(trace),
            replayed=Course(
                policy=policy,
                clear=clear,
                bandwidth_bytes_per_s=bandwidth,
                limits=limits,
                completed=outcome.completed,
                downtime_s=finite(outcome.downtime_s),
                total_s=finite(outcome.total_s),
                sent_bytes=finite(outcome.sent_bytes),
                guest_time_lost_s=finite(outcome.guest_time_lost_s),
                reason=outcome.decision.reason,
                rounds=replay_rounds(outcome.rounds, trace.facts.first_sync_s, trace.ram_bytes),
                last_sync=_last_sync(outcome.rounds),
                action=outcome.decision.action.value,
            ),
            ram_blocks=len(trace.layout.blocks),
        )


def replay_rounds(
    samples: Sequence[RoundSample], first_sync_s: float | None, ram_bytes: int
) -> tuple[ReplayRound, ...]:
    """The rounds of these samples, each of which is a round's sending and the sync of the next round."""
    syncs = [(first_sync_s, float(ram_bytes), float(ram_bytes))]
    syncs += [(sample.sync_s, sample.dirty_bytes, sample.remaining_bytes) for sample in samples]
    return tuple(
        ReplayRound(
            number=sample.number,
            sync_s=sync_s,
            dirty_bytes=dirty_bytes,
            pending_bytes=pending_bytes,
            transfer_s=sample.transfer_s,
            send_s=sample.send_s,
            scan_s=sample.scan_s,
            clear_s=sample.clear_s,
            sent_bytes=sample.sent_bytes,
            read_bytes=sample.read_bytes,
            throttled_share=sample.throttled_share,
        )
        for sample, (sync_s, dirty_bytes, pending_bytes) in zip(samples, syncs, strict=False)
    )


def _last_sync(samples: Sequence[RoundSample]) -> LastSync | None:
    if not samples:
        return None
    last = samples[-1]
    return LastSync(last.sync_s, last.dirty_bytes, last.remaining_bytes)


def _recorded(trace: Trace) -> Course:
    facts, end = trace.facts, trace.outcome
    downtime_s = 0.0 if end is None else end.downtime_s
    sent = sum(sample.sent_bytes for sample in trace.samples) if end is None else end.sent_bytes
    return Course(
        policy=facts.policy,
        clear=facts.clear,
        bandwidth_bytes_per_s=facts.max_bandwidth,
        limits=facts.limits,
        completed=None if end is None else end.completed,
        downtime_s=downtime_s if end is not None and end.completed else None,
        total_s=None if end is None else end.total_s,
        sent_bytes=sent,
        guest_time_lost_s=sum(made.throttled_share * made.interval_s for made in trace.samples) + downtime_s,
        reason="" if end is None else end.error,
        rounds=replay_rounds(trace.samples, facts.first_sync_s, trace.ram_bytes),
        last_sync=_last_sync(trace.samples),
    )


def _caution(trace: Trace, bandwidth: float | None) -> str:
    sent_s = sum(sample.send_s for sample in trace.samples)
    recorded = sum(sample.sent_bytes for sample in trace.samples) / sent_s if sent_s else 0.0
    if bandwidth is None or bandwidth < _FASTER * recorded:
        return ""
    return (
        f"the link is {bandwidth / recorded:.1f} times as fast as the recorded one: what the guest dirties in "
        f"rounds shorter than those recorded is reckoned, and may be more"
    )


_Side = tuple[str, Course]


def _known(value: float | None, side: _Side, show: Callable[[float], str]) -> str:
    """What a recording that broke off does not say is ``?``; what is infinite is ``-``."""
    if value is not None and side[1].completed is not None:
        return show(value)
    return "?" if side[1].completed is None else "-"


def _link(side: _Side) -> str:
    name, course = side
    if course.bandwidth_bytes_per_s is None:
        return "no limit" if name == "recorded" else "as recorded"
    return format_rate(course.bandwidth_bytes_per_s)


def _downtime(side: _Side) -> str:
    return downtime_of(bool(side[1].completed), side[1].downtime_s)


def _lost(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)


_SUMMARY: tuple[Shown[_Side], ...] = (
    Shown("", lambda side: side[0], numeric=False),
    Shown("policy", lambda side: side[1].policy, numeric=False),
    Shown("clear", lambda side: side[1].clear, numeric=False),
    Shown("link", _link),
    Shown("downtime limit", lambda side: format_duration(side[1].limits.downtime_limit_s)),
    Shown("rounds", lambda side: str(len(side[1].rounds))),
    Shown("completed", lambda side: "?" if side[1].completed is None else yes(side[1].completed), numeric=False),
    Shown("downtime", _downtime),
    Shown("total", lambda side: _known(side[1].total_s, side, format_duration)),
    Shown("bytes", lambda side: _known(side[1].sent_bytes, side, format_size)),
    Shown("guest lost", lambda side: _lost(side[1].guest_time_lost_s)),
)
_ROUNDS: tuple[Shown[ReplayRound], ...] = (
    Shown("sync time", lambda made: "-" if made.sync_s is None else format_duration(made.sync_s)),
    Shown("dirtied", lambda made: format_size(made.dirty_bytes)),
    Shown("transfer time", lambda made: format_duration(made.transfer_s)),
    Shown("sent", lambda made: format_size(made.sent_bytes)),
    Shown("throttle", lambda made: f"{made.throttled_share:.0%}"),
)


def _text(replay: Replay) -> list[TextPart]:
    """The recording, a line a side, and a line a round."""
    was, would = replay.recorded, replay.replayed
    where = f"{format_size(replay.ram_bytes)} in {replay.ram_blocks} RAM blocks, tracker {replay.tracker}"
    sides = (("recorded", was), ("replayed", would))
    return [
        f"{replay.guest} guest, {where}",
        tabulate("The recorded migration and the replayed one", _SUMMARY, sides),
        *([f"note: {replay.note}"] if replay.note else []),
        *([f"recorded: {was.reason}"] if was.reason else []),
        *([f"caution: {replay.caution}"] if replay.caution else []),
        NOT_THE_LAST,
        f"replayed: {', '.join(filter(None, (would.action, would.reason)))}",
        *([EXPECTED] if would.completed else []),
        _side_by_side(was, would),
    ]


def _side_by_side(was: Course, would: Course) -> Table:
    """A line a round: the recorded round beside the replayed one."""
    columns = [Column(f"{side}{column.name}") for side in ("was: ", "") for column in _ROUNDS]
    rows = [
        (str(number), *("" if made is None else column.cell(made) for made in pair for column in _ROUNDS))
        for number, pair in enumerate(zip_longest(was.rounds, would.rounds), 1)
    ]
    return Table("Each round as it was, and as it would have been", (Column("round"), *columns), tuple(rows))


KIND = Kind(Replay, _text)
