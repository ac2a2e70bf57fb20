"""How a command ends that measured several things, some of which failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from precopy.bench.failed import Failed


def ended(failed: Sequence[Failed], measured: int) -> int:
    """The exit code, after the results were printed: that of the first failure, which is said on stderr. A migration
    that did not converge is a result like others, unless all there is are such."""
    told = [failure for failure in failed if failure.converged is None or not measured]
    for failure in told:
        click.echo(f"precopy: {failure.name}: {failure.message}", err=True)
    return told[0].exit_code if told else 0
