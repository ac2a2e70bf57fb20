"""``precopy plan``: whether a migration would converge, from a few numbers, a layout or a recording."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from precopy.cli.lazy import LazyGroup
from precopy.cli.options import as_one, json_option
from precopy.cli.recordings import either
from precopy.cli.values import DURATION, RATE, SIZE, Share, Whole
from precopy.defaults import DOWNTIME_LIMIT_S, MAX_ROUNDS, UNCERTAINTY, milliseconds
from precopy.names import ALL_CLEAR_POLICIES, EVERYDAY_CLEAR_POLICIES, AnyClearPolicyName

if TYPE_CHECKING:
    from precopy.planning.model.sync_cost import SyncCost
    from precopy.planning.plan.plan import PlanInput

_SUBCOMMANDS = {"sweep": ("precopy.cli.plan_sweep", "Plan every combination of ranges of these numbers.")}


@dataclass(frozen=True)
class _Asked:
    """The plan's numbers; their source, in words; a sync's cost under the clear policy asked for and under those that
    `precopy migrate` offers; and what the layout's text left open."""

    input: PlanInput
    source: str
    sync_cost: SyncCost | None
    clears: dict[str, SyncCost]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Given:
    """The options; None: not given. Sizes in bytes, rates in bytes a second, durations in seconds."""

    ram: int | None = None
    dirty_rate: float | None = None
    working_set: int | None = None
    bandwidth: float | None = None
    sync_time: float | None = None
    downtime_limit_s: float | None = None
    max_rounds: int | None = None
    switchover_overhead_s: float | None = None
    uncertainty: float | None = None
    layout: str | None = None
    clear: AnyClearPolicyName | None = None
    clear_cost: float | None = None
    listeners: int | None = None
    recording: Path | None = None


class _Plan(LazyGroup):
    """A command of its own that has a subcommand besides."""

    table = _SUBCOMMANDS


@click.group(
    cls=_Plan,
    invoke_without_command=True,
    subcommand_metavar="[sweep [ARGS]...]",
)
@click.option("--ram", type=SIZE, default=None, help="Memory to be moved.  [default: the layout's, the recording's]")
@click.option("--dirty-rate", type=RATE, default=None, help="Distinct pages written a second, as 200M or 200MB/s.")
@click.option("--working-set", type=SIZE, default=None, help="All that the guest writes.  [default: all of RAM]")
@click.option("--bandwidth", type=RATE, default=None, help="While sending: 125M or 125MB/s (bytes), 1Gb/s (bits).")
@click.option(
    "--sync-time", type=DURATION, default=None, help="Time of a sync; with --layout, what it has besides its clears."
)
@click.option(
    "--downtime-limit",
    "downtime_limit_s",
    type=DURATION,
    default=None,
    help=f"Downtime limit.  [default: {milliseconds(DOWNTIME_LIMIT_S)}, or the recording's]",
)
@click.option(
    "--max-rounds",
    type=Whole(1, 500),
    default=None,
    help=f"Rounds at most.  [default: {MAX_ROUNDS}, or the recording's]",
)
@click.option(
    "--switchover-overhead",
    "--handover",
    "switchover_overhead_s",
    type=DURATION,
    default=None,
    help="What a downtime has besides its last sync and its last round: pause, device state, commit.  [default: 5ms]",
)
@click.option(
    "--uncertainty",
    type=Share(0, 1, max_open=True),
    default=None,
    help="How far bandwidth, dirty rate and working set may be off, as a share; ranges come from it.  "
    f"[default: {UNCERTAINTY:g}]",
)
@click.option("--layout", metavar="NAME|DIRECTORY", default=None, help="Take RAM and clears from this layout.")
@click.option(
    "--clear",
    type=click.Choice(ALL_CLEAR_POLICIES),
    default=None,
    help="With --layout: clear policy.  [default: deferred]",
)
@click.option(
    "--clear-cost",
    type=DURATION,
    default=None,
    help="With --layout: time of a clear ioctl.  [default: 10us, of 6 to 15 with a vCPU running; 4us with none]",
)
@click.option(
    "--listeners",
    type=Whole(1, 2),
    default=None,
    help="With --layout: memory listeners; 2 with system management mode.  [default: 2]",
)
@click.option(
    "--recording",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Estimate from a recorded migration what is not given here.",
)
@json_option
@as_one("given", _Given)
@click.pass_context
def plan(ctx: click.Context, /, given: _Given, as_json: bool) -> None:
    """Say whether a migration would converge, in how many rounds, with which total time and downtime, which downtime
    limit and dirty rate would do, and what to change first. Nothing is migrated. Beside this stand the answers of
    the patch series' model of QEMU (docs/patch-series.md).

    In sizes (--ram, --working-set) G is 2^30 bytes, however written: 8G, 8GB, 8GiB. In rates (--dirty-rate,
    --bandwidth) G and GB/s are 10^9 bytes a second, GiB/s 2^30, and Gb/s or Gbit/s 10^9 bits a second. Durations take
    us, ms or s. A number without a unit is refused; what was understood is printed.

    "Will not converge" is an answer and no failure: the exit code is 0.
    """
    if ctx.invoked_subcommand is not None:
        if given != _Given() or as_json:
            raise click.UsageError(f"options of {ctx.invoked_subcommand} stand after its name")
        return
    from precopy.cli.facts import show_result
    from precopy.planning.plan.advice import advise
    from precopy.planning.plan.plan import plan as make_plan
    from precopy.report.kinds.plan import PlannedMigration

    asked = _asked(given)
    made = make_plan(asked.input)
    advice = advise(asked.input, asked.clears)
    done = PlannedMigration.of(made, advice, source=asked.source, notes=asked.notes, sync_cost=asked.sync_cost)
    show_result("plan", done, as_json=as_json)


def _asked(given: _Given) -> _Asked:
    """Raises `UsageError` for what is missing or contradicts."""
    from precopy.errors import UsageError
    from precopy.report.kinds.plan import NUMBERS

    for option, value in (
        ("--clear", given.clear),
        ("--clear-cost", given.clear_cost),
        ("--listeners", given.listeners),
    ):
        if value is not None and given.layout is None:
            raise UsageError(f"{option} says what a layout's sync costs; name a --layout")
    if given.layout is not None and given.recording is not None:
        raise UsageError("--layout and --recording both say what a sync costs; give one of them")
    if given.recording is not None:
        asked = _from_recording(given, given.recording)
    elif given.layout is not None:
        asked = _from_layout(given, given.layout)
    else:
        asked = _Asked(_from_numbers(given), NUMBERS, None, {})
    _check(asked.input)
    return asked


def _from_numbers(given: _Given) -> PlanInput:
    from precopy.errors import UsageError
    from precopy.planning.plan.plan import PlanInput

    ram, dirty_rate, bandwidth, sync_time = given.ram, given.dirty_rate, given.bandwidth, given.sync_time
    if ram is None or dirty_rate is None or bandwidth is None or sync_time is None:
        needed = {"--ram": ram, "--dirty-rate": dirty_rate, "--bandwidth": bandwidth, "--sync-time": sync_time}
        missing = [option for option, value in needed.items() if value is None]
        it = "it" if len(missing) == 1 else "them"
        raise UsageError(f"{', '.join(missing)} not given; a plan needs {it}, or a --recording")
    base = PlanInput(
        ram_bytes=ram,
        bandwidth_bytes_per_s=bandwidth,
        dirty_rate_bytes_per_s=dirty_rate,
        working_set_bytes=either(given.working_set, ram),
        sync_s=sync_time,
    )
    return _with_limits(base, given)


def _with_limits(base: PlanInput, given: _Given) -> PlanInput:
    return replace(
        base,
        downtime_limit_s=either(given.downtime_limit_s, base.downtime_limit_s),
        max_rounds=either(given.max_rounds, base.max_rounds),
        switchover_overhead_s=either(given.switchover_overhead_s, base.switchover_overhead_s),
        uncertainty=either(given.uncertainty, base.uncertainty),
    )


def _from_layout(given: _Given, name: str) -> _Asked:
    from precopy.memory import Capture
    from precopy.planning.model.sync_cost import CLEAR_S, LISTENERS, sync_cost

    capture = Capture.find(name)
    layout = capture.layout(given.ram)

    def cost_of(clear: AnyClearPolicyName) -> SyncCost:
        return sync_cost(
            layout,
            clear,
            listeners=either(given.listeners, LISTENERS),
            clear_s=either(given.clear_cost, CLEAR_S),
            fixed_s=given.sync_time,
        )

    cost = cost_of(given.clear or "deferred")
    base = _from_numbers(replace(given, ram=layout.bytes, sync_time=cost.sync_s))
    asked = replace(base, sync_s_per_byte=cost.sync_s_per_byte)
    clears: dict[str, SyncCost] = {name: cost_of(name) for name in EVERYDAY_CLEAR_POLICIES}
    return _Asked(asked, f"layout {capture.name}", cost, clears, capture.notes)


def _from_recording(given: _Given, path: Path) -> _Asked:
    from precopy.planning.plan.measured_input import measured_input
    from precopy.recording.files import read_recording

    base = _with_limits(measured_input(read_recording(path)), given)
    if given.bandwidth is not None:
        base = replace(base, bandwidth_bytes_per_s=given.bandwidth)
    if given.sync_time is not None:
        base = replace(base, sync_s=given.sync_time, sync_s_per_byte=0.0)
    if given.ram is not None:
        base = replace(base, ram_bytes=given.ram, first_bytes=None, first_s=0.0)
    if given.dirty_rate is not None or given.working_set is not None:
        base = replace(
            base,
            dirty_rate_bytes_per_s=either(given.dirty_rate, base.dirty_rate_bytes_per_s),
            working_set_bytes=either(given.working_set, base.working_set_bytes),
            curve=None,
        )
    return _Asked(base, f"recording {path}", None, {})


def _check(asked: PlanInput) -> None:
    from precopy.errors import UsageError
    from precopy.units import format_size

    for option, value in (
        ("--ram", asked.ram_bytes),
        ("--bandwidth", asked.bandwidth_bytes_per_s),
        ("--downtime-limit", asked.downtime_limit_s),
    ):
        if value <= 0:
            raise UsageError(f"{option} is 0; it has to be above 0")
    if asked.working_set_bytes > asked.ram_bytes:
        raise UsageError(
            f"--working-set is {format_size(asked.working_set_bytes)}, more than the {format_size(asked.ram_bytes)} "
            f"of memory; a guest writes no more than it has"
        )
