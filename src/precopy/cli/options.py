"""Options that several subcommands share; those of one subject reach the command as one typed argument."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import click

from precopy.cli.partners import only_with
from precopy.cli.values import CONTROL, DURATION, POSITIVE_DURATION, RATE, SIZE, WRITE_RATE, Share, Whole
from precopy.defaults import (
    CLEAR_CHUNK_SHIFT,
    DOWNTIME_LIMIT_S,
    HOT_SHARE,
    MAX_ROUNDS,
    MAX_THROTTLE,
    PAGES_PER_S,
    TIMEOUT_S,
    milliseconds,
)
from precopy.names import (
    CONVERGENCE_POLICIES,
    EVERYDAY_CLEAR_POLICIES,
    THROTTLE_MODES,
    TIMEOUT_POLICIES,
    WANTED_TRACKERS,
    ConvergencePolicyName,
    ThrottleMode,
    TimeoutPolicy,
)

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def as_one(name: str, made: type[Any], options: Sequence[Decorator] = ()) -> Callable[[F], F]:
    """These options, and others that stand above, as one argument called ``name``: an instance of the dataclass
    ``made``, whose fields are named as the options' parameters are."""
    names = [field.name for field in fields(made)]

    def apply(command: F) -> F:
        @functools.wraps(command)
        def with_one(*args: object, **given: object) -> object:
            record = made(**{field: given.pop(field) for field in names})
            return command(*args, **given, **{name: record})

        wrapped: Callable[..., Any] = with_one
        for option in reversed(options):
            wrapped = option(wrapped)
        return cast("F", wrapped)

    return apply


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


def _die_with_parent(_ctx: click.Context, _param: click.Parameter, parent: int | None) -> None:
    if parent is not None:
        from precopy.abi.system_calls import die_with_parent

        die_with_parent(parent)


control_option = click.option(
    "--control", type=CONTROL, default=None, help="Control socket.  [default: one of its own, printed]"
)

die_with_parent_option = click.option(
    "--die-with-parent", type=int, default=None, hidden=True, expose_value=False, callback=_die_with_parent
)

timeout_option = click.option(
    "--timeout",
    type=POSITIVE_DURATION,
    default=f"{TIMEOUT_S:g}s",
    show_default=True,
    help="How long the other side may be silent.",
)


@dataclass(frozen=True)
class MachineOptions:
    """``ram`` in bytes; ``guest``: the kind, or auto."""

    ram: int
    layout: str
    guest: str
    backing: str
    vcpus: int


def machine_options_with(*guests: str) -> Callable[[F], F]:
    """``machine``: what runs the guest and with which memory; ``guests`` are kinds that only this command has."""
    only_here = f"; {', '.join(guests)}: a Python program's memory instead" if guests else ""
    return as_one(
        "machine",
        MachineOptions,
        [
            click.option("--ram", type=SIZE, default="256M", show_default=True, help="Main memory of the guest."),
            click.option(
                "--layout",
                type=click.Choice(["q35", "flat"]),
                default="q35",
                show_default=True,
                help="q35: ten RAM blocks as of QEMU's q35 with OVMF flash; flat: one.",
            ),
            click.option(
                "--guest",
                type=click.Choice(["auto", "kvm", "emulated", *guests]),
                default="auto",
                show_default=True,
                help=f"What runs the guest; auto takes kvm where it works{only_here}.",
            ),
            click.option(
                "--backing",
                type=click.Choice(["anonymous", "memfd"]),
                default="anonymous",
                show_default=True,
                help="Host memory: private with huge pages, or a memfd that other processes can map.",
            ),
            click.option("--vcpus", type=Whole(1, 16), default=1, show_default=True, help="Virtual CPUs."),
        ],
    )


machine_options = machine_options_with()


@dataclass(frozen=True)
class WorkloadOptions:
    """``write_rate`` in pages a second (None: as fast as it goes); ``working_set`` in bytes (None: all memory)."""

    workload: str
    write_rate: int | None
    hot_share: float
    working_set: int | None
    fill: float


workload_options = as_one(
    "load",
    WorkloadOptions,
    [
        click.option(
            "--workload",
            type=click.Choice(["sequential", "random", "hotset", "idle"]),
            default="random",
            show_default=True,
            help="Where the guest writes.",
        ),
        click.option(
            "--write-rate",
            type=WRITE_RATE,
            default=f"{PAGES_PER_S // 1000}K",
            show_default=True,
            help="Pages that the guest writes a second, or max.",
        ),
        click.option(
            "--hot-share",
            type=Share(0, 1, min_open=True, max_open=True),
            default=HOT_SHARE,
            show_default="1/16",
            help="The hot set's share of memory (hotset).",
        ),
        click.option("--working-set", type=SIZE, default=None, help="Bytes that the guest writes.  [default: all]"),
        click.option(
            "--fill",
            type=Share(0, 1),
            default=0.5,
            show_default=True,
            help="Share of memory that holds random content at first; the rest is zero.",
        ),
        only_with("hot_share", "--workload hotset", lambda values: values["workload"] == "hotset"),
        only_with("write_rate", "a --workload that is not idle", lambda values: values["workload"] != "idle"),
        only_with("working_set", "a --workload that is not idle", lambda values: values["workload"] != "idle"),
    ],
)


@dataclass(frozen=True)
class TransferOptions:
    """``max_bandwidth`` in bytes a second (None: no limit), ``downtime_limit_s`` in seconds."""

    clear_chunk_shift: int
    max_bandwidth: int | None
    downtime_limit_s: float
    max_rounds: int


transfer_options = as_one(
    "transfer",
    TransferOptions,
    [
        click.option(
            "--clear-chunk",
            "clear_chunk_shift",
            type=Whole(6, 31),
            default=CLEAR_CHUNK_SHIFT,
            show_default=True,
            metavar="SHIFT",
            help="Chunks of 2^SHIFT pages for --clear deferred.",
        ),
        click.option(
            "--max-bandwidth",
            type=RATE,
            default=None,
            help="Most that is sent a second: 125MB/s or 1Gb/s.  [default: no limit]",
        ),
        click.option(
            "--downtime-limit",
            "downtime_limit_s",
            type=DURATION,
            default=milliseconds(DOWNTIME_LIMIT_S),
            show_default=True,
            help="Switch over when what is left fits this.",
        ),
        click.option(
            "--max-rounds",
            type=Whole(1),
            default=MAX_ROUNDS,
            show_default=True,
            help="Give up after this many rounds; the guest stays.",
        ),
        # demo's sets of policies have deferred, but for QEMU's.
        only_with(
            "clear_chunk_shift", "--clear deferred", lambda values: values["clear"] in ("deferred", "ours", "all")
        ),
    ],
)


@dataclass(frozen=True)
class ConvergenceOptions:
    """``max_total`` in seconds (None: no limit); ``max_throttle``: a share of the vCPUs' time."""

    policy: ConvergencePolicyName
    max_total: float | None
    on_timeout: TimeoutPolicy
    throttle_mode: ThrottleMode
    max_throttle: float


def _timeout_policy(_ctx: click.Context, _param: click.Parameter, name: str) -> TimeoutPolicy:
    return TimeoutPolicy(name)


convergence_options = as_one(
    "convergence",
    ConvergenceOptions,
    [
        click.option(
            "--policy",
            type=click.Choice(CONVERGENCE_POLICIES),
            default="precopy",
            show_default=True,
            help="Who decides when to switch over: precopy, or as one of the others would.",
        ),
        click.option(
            "--max-total",
            type=POSITIVE_DURATION,
            default=None,
            help="Time that the whole migration may take.  [default: no limit]",
        ),
        click.option(
            "--on-timeout",
            type=click.Choice(TIMEOUT_POLICIES),
            callback=_timeout_policy,
            default="cancel",
            show_default=True,
            help="When time, rounds or hope are used up: stay, switch over all the same, slow the guest down, go on.",
        ),
        click.option(
            "--throttle",
            "throttle_mode",
            type=click.Choice(THROTTLE_MODES),
            default="off",
            show_default=True,
            help="Slow the guest down where it would not converge: all vCPUs, or those that dirty too much.",
        ),
        click.option(
            "--max-throttle",
            type=Share(0, 1, min_open=True, max_open=True),
            default=MAX_THROTTLE,
            show_default=True,
            help="The largest share of its time that the guest may lose to --throttle.",
        ),
        only_with("max_throttle", "--throttle", lambda values: values["throttle_mode"] != "off"),
    ],
)

clear_option = click.option(
    "--clear",
    type=click.Choice(EVERYDAY_CLEAR_POLICIES),
    default="deferred",
    show_default=True,
    help="Clear policy: pages found dirty are protected again in the sync, or just before they are read.",
)

tracker_option = click.option(
    "--tracker",
    type=click.Choice(WANTED_TRACKERS),
    default=None,
    help="What tells of the guest's writes under KVM; auto decides from its dirty rate.  [default: what it has]",
)
