"""``precopy snapshot``: operations on a directory of snapshots while, or after, a program writes it."""

from __future__ import annotations

from pathlib import Path

import click

from precopy.cli.options import json_option
from precopy.cli.values import Whole

directory_argument = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
at_option = click.option("--at", type=Whole(1), default=None, help="Another snapshot's number.  [default: the newest]")


@click.group()
def snapshot() -> None:
    """List, verify, compact and export the snapshots that precopy.snapshot has saved in a directory."""


@snapshot.command("list")
@directory_argument
@json_option
def list_snapshots(directory: Path, as_json: bool) -> None:
    """Show the snapshots of DIR: what each holds, what it takes, and whether all that it needs is there.

    Only headers are read; verify reads everything.
    """
    from precopy.cli.facts import show_result
    from precopy.report.kinds.snapshot_list import SnapshotList
    from precopy.snapshot_store import snapshots

    found = tuple(snapshots(directory))
    if not found and not as_json:
        click.echo(f"no snapshots in {directory}")
        return
    show_result("snapshot-list", SnapshotList(str(directory), found), as_json=as_json)


@snapshot.command()
@directory_argument
@click.option("--at", type=Whole(1), default=None, help="Only what this snapshot is made of.  [default: all of DIR]")
@json_option
def verify(directory: Path, at: int | None, as_json: bool) -> None:
    """Read every byte of the snapshots of DIR and hold it against its checksum; ends with 7 where anything differs."""
    from precopy.cli.facts import show_result
    from precopy.errors import VerificationFailed
    from precopy.report.kinds.snapshot_verify import Damage, Loss, VerifiedDirectory
    from precopy.snapshot_store import verify as verify_directory

    found = verify_directory(directory, at)
    done = VerifiedDirectory(
        directory=str(directory),
        snapshots=found.snapshots,
        bytes=found.bytes,
        seconds=found.seconds,
        verified=not found.damage,
        damage=tuple(Damage(number, why) for number, why in found.damage.items()),
        lost=tuple(Loss(number, through) for number, through in found.lost.items()),
    )
    show_result("snapshot-verify", done, as_json=as_json)
    if not done.summary:
        return
    if not as_json:
        raise VerificationFailed(done.summary)
    # Damage is a result: the document says it all, and the exit code says that there is some.
    click.echo(f"precopy: {done.summary}", err=True)
    click.get_current_context().exit(VerificationFailed.exit_code)


@snapshot.command()
@directory_argument
@click.option(
    "--keep",
    type=Whole(1),
    default=1,
    show_default=True,
    help="How many of the newest snapshots can be restored afterwards.",
)
@json_option
def compact(directory: Path, keep: int, as_json: bool) -> None:
    """Fold increments into a full snapshot and remove what is no longer needed.

    The program that writes DIR may run on: its next snapshot goes on with an increment. What is folded is verified.
    """
    from precopy.cli.facts import show_result
    from precopy.report.kinds.snapshot_compact import CompactedDirectory
    from precopy.snapshot_store import compact as compact_directory

    done = CompactedDirectory.of(str(directory), compact_directory(directory, keep))
    show_result("snapshot-compact", done, as_json=as_json)


@snapshot.command()
@directory_argument
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@at_option
@click.option("--npy", metavar="DTYPE", default=None, help="As a file of numpy's with elements of this type.")
@json_option
def export(directory: Path, file: Path, at: int | None, npy: str | None, as_json: bool) -> None:
    """Write the memory of a snapshot of DIR to FILE, byte for byte; zero pages are holes."""
    from precopy.cli.facts import show_result
    from precopy.report.kinds.snapshot_export import ExportedFile
    from precopy.snapshot_store import export as export_snapshot

    done = ExportedFile.of(str(directory), export_snapshot(directory, file, at, npy=npy))
    show_result("snapshot-export", done, as_json=as_json)
