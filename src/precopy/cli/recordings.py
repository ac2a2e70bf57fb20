"""What the commands that replay recordings share: the options for other limits, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from precopy.cli.options import all_of
from precopy.cli.values import DURATION, Share, Whole
from precopy.names import CONVERGENCE_POLICIES, TIMEOUT_POLICIES, TimeoutPolicy

if TYPE_CHECKING:
    from precopy.planning import Limits

F = TypeVar("F", bound=Callable[..., Any])

_LIMITS = (
    click.option("--downtime-limit", type=DURATION, default=None, help="Another downtime limit."),
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


def limit_options(command: F) -> F:
    """Options for what a recorded migration was allowed, where it is to be something else: see `changed`."""
    return all_of(_LIMITS)(command)


def changed(limits: Limits, options: dict[str, Any]) -> Limits:
    """``limits`` with what was given of `limit_options`. Raises `UsageError`."""
    from precopy.errors import UsageError

    names = {"downtime_limit": "downtime_s", "max_total": "timeout_s"}
    given = {names.get(name, name): value for name, value in options.items() if value is not None}
    if "on_timeout" in given:
        given["on_timeout"] = TimeoutPolicy(given["on_timeout"])
    made = replace(limits, **given)
    if made.on_timeout is TimeoutPolicy.THROTTLE and not made.max_throttle:
        raise UsageError("--on-timeout throttle needs a --max-throttle above 0: the recorded guest was not slowed down")
    if made.timeout_s is not None and made.timeout_s <= 0:
        raise UsageError("--max-total has to be above 0")
    return made


def policy_names(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[str, ...]:
    """Names between commas, each once; ``all`` are all."""
    given = [name.strip() for name in text.split(",")]
    names = CONVERGENCE_POLICIES if "all" in given else tuple(dict.fromkeys(given))
    for name in names:
        if name not in CONVERGENCE_POLICIES:
            raise click.BadParameter(
                f"no policy is called {name!r}; there are {', '.join(CONVERGENCE_POLICIES)}, and all"
            )
    return names
