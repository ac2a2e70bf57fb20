"""What the commands that replay recordings share: the options for other limits, and the limits made from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import click

from precopy.cli.options import as_one
from precopy.cli.values import DURATION, Share, Whole
from precopy.names import CONVERGENCE_POLICIES, TIMEOUT_POLICIES, TimeoutPolicy

if TYPE_CHECKING:
    from precopy.planning import Limits

T = TypeVar("T")

_LIMITS = (
    click.option("--downtime-limit", "downtime_limit_s", type=DURATION, default=None, help="Another downtime limit."),
    click.option("--max-rounds", type=Whole(1, 500), default=None, help="Give up after this many rounds."),
    click.option("--max-total", type=DURATION, default=None, help="Time that the whole migration may take."),
    click.option(
        "--on-timeout",
        type=click.Choice(TIMEOUT_POLICIES),
        default=None,
        help="What to do when time or rounds are used up, or nothing else helps.",
    ),
    click.option(
        "--max-throttle",
        type=Share(0, 1, max_open=True),
        default=None,
        metavar="SHARE",
        help="The largest share of its time that the guest may lose; 0: it is not slowed down.",
    ),
)


@dataclass(frozen=True)
class OtherLimits:
    """Limits that replace those of a recorded migration; None keeps one. Durations in seconds."""

    downtime_limit_s: float | None
    max_rounds: int | None
    max_total: float | None
    on_timeout: str | None
    max_throttle: float | None


limit_options = as_one("other", OtherLimits, _LIMITS)


def changed(limits: Limits, other: OtherLimits) -> Limits:
    """``limits`` with what ``other`` has. Raises `UsageError`."""
    from precopy.errors import UsageError

    made = replace(
        limits,
        downtime_limit_s=either(other.downtime_limit_s, limits.downtime_limit_s),
        max_rounds=either(other.max_rounds, limits.max_rounds),
        timeout_s=either(other.max_total, limits.timeout_s),
        on_timeout=TimeoutPolicy(either(other.on_timeout, limits.on_timeout)),
        max_throttle=either(other.max_throttle, limits.max_throttle),
    )
    if made.on_timeout is TimeoutPolicy.THROTTLE and not made.max_throttle:
        raise UsageError("--on-timeout throttle needs a --max-throttle above 0: the recorded guest was not slowed down")
    if made.timeout_s is not None and made.timeout_s <= 0:
        raise UsageError("--max-total has to be above 0")
    return made


def either(given: T | None, known: T) -> T:
    """``given``, or ``known`` where nothing was given."""
    return known if given is None else given


def policy_names(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[str, ...]:
    """Names between commas, each once; ``all`` are all."""
    given = [name.strip() for name in text.split(",")]
    names = CONVERGENCE_POLICIES if "all" in given else tuple(dict.fromkeys(given))
    for name in names:
        if name not in CONVERGENCE_POLICIES:
            from precopy.cli.suggestions import closest

            said = f"no policy is called {name!r}; there are {', '.join(CONVERGENCE_POLICIES)}, and all"
            meant = closest(name, (*CONVERGENCE_POLICIES, "all"))
            raise click.BadParameter(f"{said}. Did you mean {meant!r}?" if meant else said)
    return names
