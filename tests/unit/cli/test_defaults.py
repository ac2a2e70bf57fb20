"""What is taken where nothing is said is the same for a command and for what it calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import click
import pytest

import precopy
from precopy import defaults
from precopy.bench.peers.qemu.migrate import measure_migration
from precopy.cli.bench.migrate import migrate as bench_migrate
from precopy.cli.demo import demo
from precopy.cli.migrate import migrate
from precopy.cli.plan import plan
from precopy.cli.plan_sweep import sweep
from precopy.cli.receive import receive
from precopy.cli.run import run
from precopy.machines.workload import Workload
from precopy.migration import MigrationOptions
from precopy.planning import Limits
from precopy.planning.plan.plan import PlanInput
from precopy.ports.vm import MAX_THROTTLE
from precopy.service import Request, migrate_guest

PLANNED = PlanInput(1 << 30, 1e9, 1e6, 1 << 30, 0.001)


def taken(command: click.Command, name: str) -> Any:
    """What the command takes where its option ``name`` is not given."""
    option = next(one for one in command.params if one.name == name)
    context = click.Context(command)
    return option.type_cast_value(context, option.get_default(context))


def default(called: Callable[..., object], name: str) -> Any:
    return inspect.signature(called).parameters[name].default


def test_of_a_migration() -> None:
    options, limits = MigrationOptions(), Limits()
    for command in (migrate, demo):
        for name in ("downtime_limit_s", "max_rounds", "clear_chunk_shift"):
            assert taken(command, name) == getattr(options, name)
    assert (limits.downtime_limit_s, limits.max_rounds) == (options.downtime_limit_s, options.max_rounds)
    assert options.downtime_limit_s == taken(bench_migrate, "downtime_limit_s") == defaults.DOWNTIME_LIMIT_S
    assert default(measure_migration, "downtime_limit_s") == defaults.DOWNTIME_LIMIT_S
    assert taken(migrate, "max_throttle") == options.max_throttle == MAX_THROTTLE


def test_of_a_plan() -> None:
    assert (PLANNED.downtime_limit_s,) == taken(sweep, "downtime_limit_s") == (defaults.DOWNTIME_LIMIT_S,)
    assert (PLANNED.max_rounds,) == taken(sweep, "max_rounds") == (defaults.MAX_ROUNDS,)
    assert (PLANNED.switchover_overhead_s,) == taken(sweep, "switchover_overhead_s")
    said = {one.name: one.help for one in plan.params if isinstance(one, click.Option)}
    assert f"[default: {1e3 * PLANNED.downtime_limit_s:g}ms, or" in str(said["downtime_limit_s"])
    assert f"[default: {PLANNED.max_rounds}, or" in str(said["max_rounds"])
    assert f"[default: {1e3 * PLANNED.switchover_overhead_s:g}ms]" in str(said["switchover_overhead_s"])
    assert f"[default: {PLANNED.uncertainty:g}]" in str(said["uncertainty"])


def test_of_a_peers_silence() -> None:
    silent = [taken(command, "timeout") for command in (migrate, receive)]
    silent += [default(one, "timeout") for one in (migrate_guest, precopy.replicate, precopy.receive_memory)]
    silent += [default(precopy.Standby, "timeout"), Request("status").timeout]
    assert set(silent) == {defaults.TIMEOUT_S}


@pytest.mark.parametrize("command", [run, demo], ids=lambda command: str(command.name))
def test_of_a_workload(command: click.Command) -> None:
    workload = Workload()
    assert taken(command, "workload") == workload.pattern
    assert taken(command, "write_rate") == workload.rate
    assert taken(command, "hot_share") == workload.hot_share
