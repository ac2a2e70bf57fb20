"""``precopy replay``: what would have become of a recorded migration under another policy, link or clear policy."""

from __future__ import annotations

from pathlib import Path

import click

from precopy.cli.options import json_option
from precopy.cli.recordings import OtherLimits, changed, limit_options
from precopy.cli.values import RATE
from precopy.names import ALL_CLEAR_POLICIES, CONVERGENCE_POLICIES


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--policy", type=click.Choice(CONVERGENCE_POLICIES), default=None, help="Another convergence policy.")
@click.option("--bandwidth", type=RATE, default=None, help="Another link: 125M or 125MB/s (bytes), 1Gb/s (bits).")
@click.option("--clear", type=click.Choice(ALL_CLEAR_POLICIES), default=None, help="Another clear policy.")
@limit_options
@json_option
def replay(
    file: Path, policy: str | None, bandwidth: int | None, *, clear: str | None, other: OtherLimits, as_json: bool
) -> None:
    """Say what would have become of the migration recorded in FILE, beside what did.

    What is not given is as it was recorded. The guest writes what it wrote then; docs/recordings.md says what that
    leaves open.
    """
    from precopy.cli.facts import show_result
    from precopy.planning.policies import POLICIES
    from precopy.planning.replay.replay import Replayer
    from precopy.recording.files import read_recording
    from precopy.report.kinds.replay import Replay

    trace = read_recording(file)
    allowed = changed(trace.facts.limits, other)
    name = policy or _known_policy(file, trace.facts.policy)
    outcome = Replayer(trace).run(POLICIES[name], bandwidth=bandwidth, clear=clear, limits=allowed)
    done = Replay.of(
        str(file), trace, outcome, policy=name, clear=clear or trace.facts.clear, bandwidth=bandwidth, limits=allowed
    )
    show_result("replay", done, as_json=as_json)


def _known_policy(file: Path, name: str) -> str:
    """Raises `UsageError` where the recording's own policy is none that there is here."""
    from precopy.errors import UsageError

    if name not in CONVERGENCE_POLICIES:
        raise UsageError(f"{file} was recorded under the policy {name!r}, which there is not here; give --policy")
    return name
