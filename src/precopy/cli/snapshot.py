"""``precopy snapshot``: operations on a directory of snapshots while, or after, a program writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precopy.cli.options import json_option
from precopy.cli.values import Whole

if TYPE_CHECKING:
    from precopy.snapshot_store import Verified

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
    from precopy.errors import VerificationFailed
    from precopy.snapshot_store import verify as verify_directory

    verified = verify_directory(directory, at)
    damaged = _damaged(directory, verified)
    if as_json:
        # Damage is a result: the document says it all, and the exit code says that there is some.
        _print_json("snapshot-verify", _verified_body(directory, verified))
        if damaged:
            click.echo(f"precopy: {damaged}", err=True)
        click.get_current_context().exit(VerificationFailed.exit_code if damaged else 0)
    for number, why in verified.damage.items():
        click.echo(f"snapshot {number}: {why}")
    for number, through in verified.lost.items():
        if number not in verified.damage:
            click.echo(f"snapshot {number}: it cannot be restored, because it shows pages of snapshot {through}")
    if damaged:
        raise VerificationFailed(damaged)
    from precopy.units import counted, format_duration, format_size

    are = "is as it was" if verified.snapshots == 1 else "are as they were"
    click.echo(
        f"{counted(verified.snapshots, 'snapshot')} {are} written: {format_size(verified.bytes)} read in "
        f"{format_duration(verified.seconds)}"
    )


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
    from precopy.snapshot_store import compact as compact_directory

    done = compact_directory(directory, keep)
    if as_json:
        _print_json("snapshot-compact", {"directory": str(directory), **_fields(done)})
        return
    from precopy.units import format_duration, format_size

    click.echo(
        f"snapshot {done.number} is full now, of {done.folded} files; {done.removed} removed: "
        f"{format_size(done.bytes_before)} have become {format_size(done.bytes_after)} in "
        f"{format_duration(done.seconds)}"
    )


@snapshot.command()
@directory_argument
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@at_option
@click.option("--npy", metavar="DTYPE", default=None, help="As a file of numpy's with elements of this type.")
@json_option
def export(directory: Path, file: Path, at: int | None, npy: str | None, as_json: bool) -> None:
    """Write the memory of a snapshot of DIR to FILE, byte for byte; zero pages are holes."""
    from precopy.snapshot_store import export as export_snapshot

    done = export_snapshot(directory, file, at, npy=npy)
    if as_json:
        _print_json("snapshot-export", {"directory": str(directory), **_fields(done)})
        return
    from precopy.units import format_size

    sizes = f"{format_size(done.size)}, of which {format_size(done.bytes)} on disk"
    click.echo(f"snapshot {done.number} is in {done.path}: {sizes}")


def _damaged(directory: Path, verified: Verified) -> str:
    """One sentence, empty where nothing is."""
    if not verified.damage:
        return ""
    numbers = ", ".join(map(str, verified.damage))
    said = f"{len(verified.damage)} of {verified.snapshots} snapshots in {directory} are damaged: {numbers}"
    others = [number for number in verified.lost if number not in verified.damage]
    if others:
        said += f"; through them {len(others)} more cannot be restored: {', '.join(map(str, others))}"
    return said


def _verified_body(directory: Path, verified: Verified) -> dict[str, Any]:
    return {
        "directory": str(directory),
        "snapshots": verified.snapshots,
        "bytes": verified.bytes,
        "seconds": verified.seconds,
        "verified": not verified.damage,
        "damage": [{"number": number, "why": why} for number, why in verified.damage.items()],
        "lost": [{"number": number, "through": through} for number, through in verified.lost.items()],
    }


def _fields(record: object) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = msgspec.to_builtins(record)
    return fields


def _print_json(kind: str, body: dict[str, Any]) -> None:
    from precopy.cli.facts import show_document

    show_document(kind, body)
