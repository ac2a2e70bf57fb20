"""``precopy compare``: all convergence policies on the same recorded migrations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from precopy.cli.options import json_option
from precopy.cli.recordings import OtherLimits, changed, limit_options, policy_names

if TYPE_CHECKING:
    from precopy.bench.failed import Failed
    from precopy.planning.replay.compare import Scores


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--policies",
    callback=policy_names,
    default="all",
    show_default=True,
    help="Names of convergence policies, with commas between them.",
)
@limit_options
@json_option
def compare(files: tuple[Path, ...], policies: tuple[str, ...], other: OtherLimits, as_json: bool) -> int:
    """Score convergence policies on the migrations recorded in FILEs: each replays each.

    Limits that are not given are those of each recording. A policy is on the front of a migration where no other
    completed it with less downtime and no more time in all, or in less time with no more downtime. A FILE that cannot
    be read or replayed is said at the end, and the others are compared.
    """
    from precopy.cli.facts import show_result
    from precopy.cli.failures import ended
    from precopy.report.kinds.compare import PolicyComparison

    scored, failed = _scored(files, policies, other)
    if not scored:
        raise failed[0].error()
    show_result("compare", PolicyComparison.of(scored, failed), as_json=as_json)
    return ended(failed, len(scored))


def _scored(
    files: tuple[Path, ...], policies: tuple[str, ...], other: OtherLimits
) -> tuple[list[Scores], list[Failed]]:
    from precopy.bench.failed import Failed, attempt
    from precopy.planning.policies import POLICIES
    from precopy.planning.replay.compare import compare as compare_policies
    from precopy.recording.files import read_recording

    chosen = [POLICIES[name] for name in policies]
    scored: list[Scores] = []
    failed: list[Failed] = []
    for name in dict.fromkeys(map(str, files)):

        def score(name: str = name) -> tuple[Scores, ...]:
            return compare_policies({name: read_recording(name)}, chosen, lambda known: changed(known, other)).traces

        outcome = attempt(name, score)
        if isinstance(outcome, Failed):
            failed.append(outcome)
        else:
            scored += outcome
    return scored, failed
