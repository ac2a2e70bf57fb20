"""``precopy compare``: all convergence policies on the same recorded migrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precopy.cli.options import json_option
from precopy.cli.recordings import changed, limit_options, policy_names


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
def compare(files: tuple[Path, ...], policies: tuple[str, ...], as_json: bool, **limits: Any) -> None:
    """Score convergence policies on the migrations recorded in FILEs: each replays each.

    Limits that are not given are those of each recording. A policy is on the front of a migration where no other
    completed it with less downtime and no more time in all, or in less time with no more downtime.
    """
    from precopy.planning.compare import compare as compare_policies
    from precopy.planning.policies import POLICIES
    from precopy.report.documents import document, to_json
    from precopy.report.replay_documents import compare_body
    from precopy.store.recording import read_recording

    traces = {str(file): read_recording(file) for file in files}
    done = compare_policies(traces, [POLICIES[name] for name in policies], lambda recorded: changed(recorded, limits))
    if as_json:
        click.echo(to_json(document("compare", 1, compare_body(done))))
        return
    from precopy.report.compare_tables import scores_table, summary_table
    from precopy.report.tables import show

    for one in done.traces:
        show(one.name, scores_table(one))
    if len(done.traces) > 1:
        show(f"all {len(done.traces)} recordings", summary_table(done))
