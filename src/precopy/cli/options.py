"""Options that several subcommands share, and their types."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from precopy.errors import UsageError
from precopy.units import parse_count, parse_duration, parse_rate, parse_size

F = TypeVar("F", bound=Callable[..., Any])


class _Parsed(click.ParamType[Any]):
    """A parameter read by one of units' functions, whose `UsageError` becomes click's."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


def _count_or_max(text: str) -> int | None:
    return None if text == "max" else parse_count(text)


def _address(text: str) -> Any:
    from precopy.transport.address import parse_address

    return parse_address(text)


def _host_port(text: str) -> Any:
    try:
        return _address(f"tcp:{text}")
    except UsageError:
        raise UsageError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9100") from None


_DECIMAL = re.compile(r"-?[0-9]*\.?[0-9]+(?:e-?[0-9]+)?")
_WHOLE = re.compile(r"-?[0-9]+")


class Share(click.FloatRange):
    """As click's range, of ASCII numbers: no ``nan``, ``1_0`` or digits of other scripts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and _DECIMAL.fullmatch(value) is None:
            self.fail(f"{value!r}: it is no number; write it like 0.25", param, ctx)
        return super().convert(value, param, ctx)


class Whole(click.IntRange):
    """The same for whole numbers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and _WHOLE.fullmatch(value[:_MOST_DIGITS]) is None:
            self.fail(f"{value!r} is no whole number; write it like 20", param, ctx)
        if isinstance(value, str) and len(value) > _MOST_DIGITS:
            self.fail("it is too large", param, ctx)
        return super().convert(value, param, ctx)


_MOST_DIGITS = 30
"""Of a whole number; Python refuses to read one of more than 4300 with an error of its own."""


SIZE = _Parsed("size", parse_size)
RATE = _Parsed("rate", parse_rate)
DURATION = _Parsed("duration", parse_duration)
WRITE_RATE = _Parsed("count", _count_or_max)
ADDRESS = _Parsed("address", _address)
HOST_PORT = _Parsed("host:port", _host_port)


def all_of(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """All these options at once, in this order."""

    def apply(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


def _positive_duration(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise UsageError("it has to be above 0")
    return seconds


def _control(text: str) -> Any:
    """A control socket decides what becomes of the guest, so it is one of this machine, with its owner's rights."""
    address = _address(text)
    if address.path is None:
        raise UsageError(f"{text!r} is no control socket; those are unix:/path")
    return address


def _die_with_parent(_ctx: click.Context, _param: click.Parameter, parent: int | None) -> None:
    if parent is not None:
        from precopy.abi.process import die_with_parent

        die_with_parent(parent)


CONTROL = _Parsed("control", _control)

control_option = click.option(
    "--control", type=CONTROL, default=None, help="Control socket.  [default: one of its own, printed]"
)

die_with_parent_option = click.option(
    "--die-with-parent", type=int, default=None, hidden=True, expose_value=False, callback=_die_with_parent
)

timeout_option = click.option(
    "--timeout",
    type=_Parsed("duration", _positive_duration),
    default="10s",
    show_default=True,
    help="How long the other side may be silent.",
)


def machine_options_with(*guests: str) -> Callable[[F], F]:
    """Options for what runs the guest and with which memory; ``guests`` are kinds that only this command has."""
    only_here = f"; {', '.join(guests)}: a Python program's memory instead" if guests else ""
    return all_of(
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
        ]
    )


machine_options = machine_options_with()

workload_options = all_of(
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
            default="20K",
            show_default=True,
            help="Pages that the guest writes a second, or max.",
        ),
        click.option(
            "--hot-share",
            type=Share(0, 1, min_open=True, max_open=True),
            default=1 / 16,
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
    ]
)

policy_options = all_of(
    [
        click.option(
            "--clear-chunk",
            "clear_chunk_shift",
            type=Whole(6, 31),
            default=15,
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
            type=DURATION,
            default="300ms",
            show_default=True,
            help="Switch over when what is left fits this.",
        ),
        click.option(
            "--max-rounds",
            type=Whole(1),
            default=30,
            show_default=True,
            help="Give up after so many rounds; the guest stays.",
        ),
    ]
)

POLICY_NAMES = (
    "precopy",
    "qemu",
    "qemu-auto-converge",
    "kubevirt-stall",
    "kubevirt-ramp",
    "nova",
    "proxmox",
    "cloud-hypervisor",
)
"""`precopy.planning.policies.POLICIES`, without importing it; a test holds them equal."""

ON_TIMEOUT = ("cancel", "switch", "throttle", "ignore")
"""`precopy.planning.TimeoutPolicy`, without importing it; a test holds them equal."""

steering_options = all_of(
    [
        click.option(
            "--policy",
            type=click.Choice(POLICY_NAMES),
            default="precopy",
            show_default=True,
            help="Who decides when to switch over: precopy, or as one of the others would.",
        ),
        click.option(
            "--max-total",
            type=_Parsed("duration", _positive_duration),
            default=None,
            help="Time that the whole migration may take.  [default: no limit]",
        ),
        click.option(
            "--on-timeout",
            type=click.Choice(ON_TIMEOUT),
            default="cancel",
            show_default=True,
            help="When time, rounds or hope are used up: stay, switch over all the same, slow the guest down, go on.",
        ),
        click.option(
            "--throttle",
            type=click.Choice(["off", "auto-converge", "dirty-limit"]),
            default="off",
            show_default=True,
            help="Slow the guest down where it would not converge: all vCPUs, or those that dirty too much.",
        ),
        click.option(
            "--max-throttle",
            type=Share(0, 1, min_open=True, max_open=True),
            default=0.99,
            show_default=True,
            help="The largest share of its time that the guest may lose to --throttle.",
        ),
    ]
)

CLEAR_NAMES = ("per-page", "merged", "deferred", "before-patch", "rfc-v1", "upstream", "clear-bmap")
"""`precopy.dirty.ALL_POLICIES`, without importing it; a test holds them equal."""

clear_option = click.option(
    "--clear",
    type=click.Choice(CLEAR_NAMES),
    default="deferred",
    show_default=True,
    help="Clear policy: when and how pages found dirty are protected again; the last four are the seed's thread's.",
)

tracker_option = click.option(
    "--tracker",
    type=click.Choice(["dirty-log", "dirty-ring", "auto"]),
    default=None,
    help="What tells of the guest's writes under KVM; auto decides from its dirty rate.  [default: what it has]",
)


def _values(parse: Callable[[str], Any], *, whole: bool = False) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        from precopy.planning.sweep import parse_values

        return parse_values(text, parse, whole=whole)

    return read


SIZES = _Parsed("sizes", _values(parse_size, whole=True))
RATES = _Parsed("rates", _values(parse_rate))
DURATIONS = _Parsed("durations", _values(parse_duration))
COUNTS = _Parsed("counts", _values(parse_count, whole=True))
"""One value, several between commas, or a range: `precopy.planning.sweep.parse_values`."""
