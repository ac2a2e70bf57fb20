"""A plan from numbers, from a layout and from a recording; its advice; many plans at once."""

from __future__ import annotations

import math
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from precopy.bitmap import Bitmap
from precopy.dirty import clear_policy
from precopy.errors import UsageError
from precopy.memory import CAPTURES, Capture, RamLayout
from precopy.names import ALL_CLEAR_POLICIES
from precopy.planning import Estimate, Limits
from precopy.planning.model.sync_cost import sync_cost
from precopy.planning.model.trace import RecordedFacts, Trace, TraceRound
from precopy.planning.plan.advice import advise
from precopy.planning.plan.measured_input import measured_input
from precopy.planning.plan.plan import PlanInput, carry_out, fits, largest_dirty_rate, plan, smallest_limit
from precopy.planning.plan.sweep import FIGURES, MOST_PLANS, Axis, Grid, frontier, parse_values, run, run_chunk
from precopy.report.plan_words import lever_sentence, verdict
from precopy.units import parse_count, parse_duration, parse_rate, parse_size

GIB = 1 << 30
SEED = PlanInput(
    ram_bytes=256 * GIB,
    bandwidth_bytes_per_s=15e9,
    dirty_rate_bytes_per_s=7.5e9,
    working_set_bytes=256 * GIB,
    sync_s=0.25,
    downtime_limit_s=0.3,
    switchover_overhead_s=0.0,
    uncertainty=0.0,
)
"""The patch series' first example."""


def test_ours_needs_what_the_letters_needs_where_nothing_saturates() -> None:
    made = plan(SEED)
    assert not made.forecast.converges
    assert made.qemu_model.smallest_downtime_limit_s == 0.5
    assert made.forecast.smallest_downtime_limit_s.value == pytest.approx(0.5, rel=2e-3)
    assert made.forecast.largest_dirty_rate_bytes_per_s.value == pytest.approx(2.5e9, rel=0.02)
    assert "will not converge: dirty rate is 0.5 of the bandwidth" in verdict(made)


def test_a_small_working_set_converges_where_the_letters_model_does_not() -> None:
    made = plan(replace(SEED, dirty_rate_bytes_per_s=30e9, working_set_bytes=256 << 20))
    assert made.qemu_model.smallest_downtime_limit_s == math.inf
    assert made.forecast.converges
    assert made.forecast.largest_dirty_rate_bytes_per_s.value == math.inf


def test_an_idle_guest_is_moved_in_one_round() -> None:
    made = plan(replace(SEED, dirty_rate_bytes_per_s=0.0, uncertainty=0.1))
    assert made.forecast.converges
    assert made.forecast.rounds == Estimate(1, 1, 1)
    assert made.forecast.downtime_s.value == 0.25


def test_rounds_that_are_too_few_are_named() -> None:
    asked = replace(SEED, downtime_limit_s=0.51, max_rounds=4)
    assert verdict(plan(asked)).startswith("will not converge in 4 rounds:")
    (rounds,) = (one for one in advise(asked).levers if one.what == "rounds")
    assert rounds.wanted is not None
    assert carry_out(replace(asked, max_rounds=int(rounds.wanted))).completed
    assert not carry_out(replace(asked, max_rounds=int(rounds.wanted) - 1)).completed


def test_what_depends_on_the_uncertainty_is_said() -> None:
    asked = replace(SEED, downtime_limit_s=0.55, uncertainty=0.1)
    made = plan(asked)
    assert made.forecast.converges
    assert not made.forecast.sure
    assert "but not if bandwidth, dirty rate and working set are 10 % worse" in verdict(made)
    assert "unless" in verdict(plan(replace(asked, downtime_limit_s=0.45)))


# What to change first.


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.4])
def test_each_lever_makes_it_converge_and_a_little_less_does_not(limit: float) -> None:
    asked = replace(SEED, downtime_limit_s=limit)
    levers = {one.what: one for one in advise(asked).levers}
    for what, field in (
        ("bandwidth", "bandwidth_bytes_per_s"),
        ("dirty rate", "dirty_rate_bytes_per_s"),
        ("sync time", "sync_s"),
        ("downtime limit", "downtime_limit_s"),
    ):
        wanted, factor = levers[what].wanted, levers[what].factor
        if wanted is None or factor is None:
            assert what in ("bandwidth", "dirty rate")  # x alone is too long
            assert limit < asked.sync_s
            continue
        better = {field: wanted}
        less = {field: wanted * (1.02 if wanted < getattr(asked, field) else 1 / 1.02)}
        assert carry_out(replace(asked, **better)).completed, what  # type: ignore[arg-type]
        assert not fits(replace(asked, **less)), what  # type: ignore[arg-type]


def test_the_lever_of_the_smallest_change_comes_first() -> None:
    advice = advise(replace(SEED, downtime_limit_s=0.4))
    factors = [one.factor or math.inf for one in advice.levers]
    assert factors == sorted(factors)
    assert advice.first is not None
    assert advice.first.what == "downtime limit"
    assert "converges" in lever_sentence(advice.first, converges=False)
    hopeless = next(one for one in advice.levers if one.wanted is None)
    assert "none would" in lever_sentence(hopeless, converges=False)


def test_where_it_converges_the_advice_is_what_gains_most() -> None:
    asked = replace(SEED, downtime_limit_s=1.0)
    before = carry_out(asked)
    advice = advise(asked)
    assert advice.converges
    gains = [(one.total_s or 0) * (one.downtime_s or 0) for one in advice.levers]
    assert gains == sorted(gains)
    assert gains[-1] < before.total_s * before.downtime_s
    assert {one.what for one in advice.levers} >= {"bandwidth", "dirty rate"}


# x from a layout.


class Counting:
    """A log that counts the kernel's calls: one for each slot that a clear reaches, of each listener."""

    def __init__(self, layout: RamLayout, listeners: int) -> None:
        self.calls = 0
        self._layout, self._listeners = layout, listeners

    def clear(self, start: int, count: int) -> None:
        for section in self._layout.sections:
            if section.first_page < start + count and start < section.first_page + section.pages:
                self.calls += self._listeners

    clear_always = clear


@pytest.mark.parametrize("listeners", [1, 2])
@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize("clear", ALL_CLEAR_POLICIES)
def test_clears_are_counted_as_the_policy_makes_them(name: str, clear: str, listeners: int) -> None:
    """With all that is mapped dirty."""
    layout = Capture.named(name).layout(256 << 20)
    dirty, log = Bitmap(layout.end_page), Counting(layout, listeners)
    for section in layout.sections:
        dirty.set_range(section.first_page, section.pages)
    cost = sync_cost(layout, clear, listeners=listeners)
    if cost.clears_per_dirty_page:  # one by one is enough of them
        dirty.clear_all()
        dirty.set_range(layout.sections[0].first_page, 100)
    clear_policy(clear, layout).harvested(dirty, log)
    assert log.calls == cost.clears + cost.clears_per_dirty_page * dirty.count()


def test_x_is_its_clears_and_the_rest() -> None:
    layout = Capture.named("q35-ovmf-512m-cirrus").layout()
    cost = sync_cost(layout, "before-patch", clear_s=10e-6, fixed_s=1e-3)
    assert cost.clears == 2 * 1088
    assert cost.sync_s == pytest.approx(1e-3 + 2176 * 10e-6)
    assert sync_cost(layout, "deferred").sync_s < 1e-3
    assert sync_cost(layout, "per-page", clear_s=4096e-6).sync_s_per_byte == pytest.approx(2e-6)
    with pytest.raises(UsageError, match="no clear policy is called 'none'"):
        sync_cost(layout, "none")


def test_policies_that_would_do_are_named() -> None:
    layout = Capture.named("q35-ovmf-512m-cirrus").layout()
    costs = {name: sync_cost(layout, name) for name in ALL_CLEAR_POLICIES}
    asked = replace(SEED, sync_s=costs["before-patch"].sync_s, downtime_limit_s=0.02)
    (lever,) = (one for one in advise(asked, costs).levers if one.what == "sync time")
    assert {"deferred", "merged", "upstream"} <= {name for name, _ in lever.clears}
    assert "before-patch" not in {name for name, _ in lever.clears}
    assert "--clear " in lever_sentence(lever, converges=False)


# From a recording.


def recorded(asked: PlanInput) -> Trace:
    """The rounds that the plan itself foresees, as if they had been recorded."""
    layout = RamLayout.of_blocks([("ram", asked.ram_bytes)])
    facts = RecordedFacts(
        machine="flat",
        guest="kvm",
        tracker="dirty-log",
        clear="deferred",
        clear_chunk_shift=15,
        policy="precopy",
        limits=Limits(asked.downtime_limit_s, asked.max_rounds),
        max_bandwidth=None,
        switchover_overhead_s=Estimate.exact(asked.switchover_overhead_s),
    )
    rounds = tuple(TraceRound(one, Bitmap(layout.end_page)) for one in carry_out(asked).rounds)
    return Trace(layout, facts, rounds, None)


def test_a_plan_of_a_recording_reads_no_more_than_there_is() -> None:
    """The first round may be slower than later ones; that is time, and no memory that the guest does not have."""
    asked = replace(SEED, ram_bytes=4 * GIB, working_set_bytes=1 * GIB, sync_s=0.01, dirty_rate_bytes_per_s=5e9)
    trace = recorded(asked)
    first, *later = trace.rounds
    late_s = 5 * first.sample.transfer_s
    slow = replace(first, sample=replace(first.sample, transfer_s=first.sample.transfer_s + late_s))
    found = measured_input(replace(trace, rounds=(slow, *later)))
    assert found.first_bytes is not None
    assert found.first_bytes <= found.ram_bytes
    outcome = carry_out(found)
    assert max(one.read_bytes for one in outcome.rounds) <= found.ram_bytes
    assert outcome.rounds[0].transfer_s == pytest.approx(slow.sample.transfer_s, rel=0.01)


def test_a_recordings_numbers_are_those_it_was_made_with() -> None:
    asked = replace(SEED, ram_bytes=4 * GIB, working_set_bytes=1 * GIB, sync_s=0.01, dirty_rate_bytes_per_s=5e9)
    found = measured_input(recorded(asked))
    assert (found.ram_bytes, found.downtime_limit_s, found.max_rounds) == (4 * GIB, 0.3, 30)
    assert found.bandwidth_bytes_per_s == pytest.approx(15e9, rel=0.01)
    assert found.sync_s == pytest.approx(0.01, rel=0.01)
    assert found.first_bytes == pytest.approx(4 * GIB, rel=0.01)
    assert carry_out(found).completed
    assert carry_out(found).total_s == pytest.approx(carry_out(asked).total_s, rel=0.1)


def test_a_recording_without_a_round_says_so() -> None:
    with pytest.raises(UsageError, match="before its first round"):
        measured_input(replace(recorded(SEED), rounds=()))


# Many plans.


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("5M", (5e6,)),
        ("1M,3M,2M", (1e6, 3e6, 2e6)),
        ("1M..3M:3", (1e6, 2e6, 3e6)),
        ("1M..100M:3:log", (1e6, 1e7, 1e8)),
        ("3M..1M:2", (3e6, 1e6)),
        ("0..1K:2", (0, 1000)),
    ],
)
def test_values_of_an_axis(text: str, values: tuple[float, ...]) -> None:
    assert parse_values(text, parse_rate) == pytest.approx(values)


def test_whole_numbers_stay_whole() -> None:
    assert parse_values("1..4:3", parse_count, whole=True) == (1, 2, 4)
    assert all(isinstance(one, int) for one in parse_values("1G..2G:7", parse_size, whole=True))


@pytest.mark.parametrize(
    "text",
    [
        "1M..2M",
        "1M..2M:",
        "1M..2M:1",
        "1M..2M:x",
        "1M..2M:3:lin",
        "..:3",
        "1K..2K:-3",
        "0..1K:3:log",
        "1K..2K:²",
        "",
        "1K,,2K",
    ],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_values(text, parse_rate)


def test_ranges_have_an_end() -> None:
    with pytest.raises(UsageError, match="at most 100000"):
        parse_values("1K..2K:99999999999", parse_rate)
    with pytest.raises(UsageError, match="at most 100000"):
        parse_values("1K..2K:" + "9" * 5000, parse_rate)
    with pytest.raises(UsageError, match=f"at most {MOST_PLANS}"):
        grid(sync_s=tuple(float(n) for n in range(2000)), dirty_rate_bytes_per_s=tuple(range(2000)))


def grid(**values: tuple[float, ...]) -> Grid:
    base: dict[str, tuple[float, ...]] = {
        "sync_s": (0.01,),
        "bandwidth_bytes_per_s": (15e9,),
        "downtime_limit_s": (0.3,),
        "ram_bytes": (256 * GIB,),
        "working_set_bytes": (),
        "max_rounds": (30,),
        "switchover_overhead_s": (0.0,),
        "dirty_rate_bytes_per_s": (7.5e9,),
    }
    return Grid(tuple(Axis(field, values.get(field, one)) for field, one in base.items()))


SMALL = grid(
    sync_s=parse_values("1ms..400ms:5", parse_duration),
    bandwidth_bytes_per_s=(5e9, 15e9),
    dirty_rate_bytes_per_s=parse_values("0..15G:6", parse_rate),
)


def test_a_sweeps_plans_are_those_of_plan() -> None:
    columns = run_chunk(SMALL, 0, SMALL.plans)
    for index, asked in enumerate(SMALL.inputs(0, SMALL.plans)):
        made = plan(asked)
        ours = (
            made.forecast.total_s.value,
            made.forecast.downtime_s.value,
            smallest_limit(asked),
            largest_dirty_rate(asked),
            made.qemu_model.smallest_downtime_limit_s,
            made.qemu_model.largest_dirty_rate_bytes_per_s,
            made.qemu_model.critical_transfer_s,
            made.qemu_model.estimated_bandwidth_bytes_per_s,
        )
        assert bool(columns["converges"][index]) is made.forecast.converges
        assert columns["rounds"][index] == made.forecast.rounds.value
        assert tuple(columns[name][index] for name in FIGURES) == ours


def test_columns_name_the_inputs_of_their_plans() -> None:
    inputs = list(SMALL.inputs(0, SMALL.plans))
    assert len(inputs) == SMALL.plans == 60
    for axis in SMALL.varying:
        assert SMALL.column(axis) == [getattr(one, axis.field) for one in inputs]
    assert SMALL.fixed["working_set_bytes"] is None
    assert {one.working_set_bytes for one in inputs} == {256 * GIB}


@pytest.mark.parametrize("chunk", [1, 7, 60, 1000])
def test_chunks_make_no_difference(chunk: int) -> None:
    told: list[int] = []
    with ThreadPoolExecutor(3) as executor:
        columns = run(SMALL, executor, chunk, told.append)
    assert columns == run_chunk(SMALL, 0, SMALL.plans)
    assert told == sorted(told)
    assert told[-1] == SMALL.plans


def test_the_frontier_is_where_plans_stop_to_converge() -> None:
    converges = run_chunk(SMALL, 0, SMALL.plans)["converges"]
    rows = list(zip(SMALL.inputs(0, SMALL.plans), converges, strict=True))
    for edge in frontier(SMALL, converges):
        here = [(asked, good) for asked, good in rows if asked.sync_s == edge.value]
        assert (edge.plans, edge.converging) == (len(here), sum(good for _, good in here))
        some = [asked.dirty_rate_bytes_per_s for asked, good in here if good]
        assert edge.some == max(some, default=None)
        bad = {asked.dirty_rate_bytes_per_s for asked, good in here if not good}
        assert edge.all == max((rate for rate in some if rate not in bad), default=None)


def test_the_frontier_of_what_should_be_large_is_its_smallest() -> None:
    line = grid(bandwidth_bytes_per_s=tuple(n * 1e9 for n in (20, 5, 10)))
    (edge,) = frontier(line, array("b", [1, 0, 1]))
    assert (edge.some, edge.all, edge.converging) == (10e9, 10e9, 2)
    assert frontier(grid(), array("b", [1])) == []
