"""The ``precopy`` command itself: finds the subcommand, and turns errors into one sentence and an exit code.

Nothing heavy is imported here: each subcommand's module is loaded when it is called.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from precopy import __version__
from precopy.cli.lazy import LazyGroup
from precopy.errors import PrecopyError, UsageError

COMMANDS = {
    "run": ("precopy.cli.run", "Run a guest in the foreground, with a control socket."),
    "receive": ("precopy.cli.receive", "Wait at ADDRESS for a guest, then run it."),
    "migrate": ("precopy.cli.migrate", "Move the guest behind CONTROL to who waits at ADDRESS."),
    "status": ("precopy.cli.control_commands", "Say what the guest behind CONTROL does."),
    "check": ("precopy.cli.control_commands", "Pause the guest, check its own invariant, let it go on."),
    "pause": ("precopy.cli.control_commands", "Pause the guest behind CONTROL."),
    "resume": ("precopy.cli.control_commands", "Let a paused guest go on."),
    "cancel": ("precopy.cli.control_commands", "Stop the migration under way; the guest stays."),
    "quit": ("precopy.cli.control_commands", "End the guest behind CONTROL."),
    "demo": ("precopy.cli.demo", "Migrate a running guest between two processes, once for each clear policy."),
    "layout": ("precopy.cli.layout", "Show the RAM blocks and sections of a machine, as QEMU's monitor has them."),
    "snapshot": ("precopy.cli.snapshot", "List, verify, compact and export the snapshots of a directory."),
    "plan": ("precopy.cli.plan", "Say from a few numbers whether a migration would converge, and what to change."),
    "replay": ("precopy.cli.replay", "Say what would have become of a recorded migration under other terms."),
    "compare": ("precopy.cli.compare", "Score convergence policies on recorded migrations."),
    "report": ("precopy.cli.report", "Write a result as one HTML file, with pictures and in plain words."),
    "bench": ("precopy.cli.bench", "Measure syncs, bitmaps, displays and migrations beside their peers."),
}
"""Subcommand: the module that holds it (as a function of its name), and its line of help."""


@click.command(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="precopy")
def cli() -> None:
    """Live memory migration: track which pages of a running guest are written, move its memory while it runs on,
    and say with numbers whether that converges.

    \b
    Units, B being a byte and b a bit; only 0 goes without one:
      sizes      256M, 256MB or 256MiB are all 256 * 2^20 bytes
      rates      125M or 125MB/s is 125 * 10^6 bytes a second, 64MiB/s is
                 64 * 2^20; 1Gb/s or 1Gbit/s is 10^9 bits a second
      durations  50us, 300ms, 2s
      counts     20000 or 20K, without a unit
    Addresses are unix:/path or tcp:host:port.

    \b
    Exit codes: 0 done, 1 internal error, 2 usage, 3 unsupported here, 4 did not
    converge, 5 peer lost or refused, 6 outcome unknown, 7 verification failed,
    130 interrupted.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command and ends the process with its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _check(arguments)
        result = cli.main(arguments, prog_name="precopy", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
        _document(arguments, type(error).__name__, error.format_message(), code)
    except PrecopyError as error:
        # An error that crossed the control socket has the name that it had on the other side.
        _tell(arguments, getattr(error, "kind", type(error).__name__), str(error), error.exit_code)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _tell(arguments, "Interrupted", "interrupted", 130)
        code = 130
    except BrokenPipeError:
        # Whoever read our output left; point stdout elsewhere so that Python's own flush does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if os.environ.get("PRECOPY_DEBUG"):
            raise
        what = f"internal error: {type(error).__name__}: {error}; set PRECOPY_DEBUG=1 for where it happened"
        _tell(arguments, type(error).__name__, what, 1)
        code = 1
    sys.exit(code)


def _check(arguments: list[str]) -> None:
    """Raises `UsageError` for what no path, address or name can hold; a shell cannot pass it, a program can."""
    for argument in arguments:
        if "\0" in argument:
            raise UsageError(f"{argument[:200]!r} holds a NUL character, which no argument can; leave it out")


def _tell(arguments: list[str], kind: str, message: str, code: int) -> None:
    """One sentence to stderr, and the document that ``--json`` and ``--json-lines`` promise to stdout."""
    click.echo(f"precopy: {message}", err=True)
    _document(arguments, kind, message, code)


def _document(arguments: list[str], kind: str, message: str, code: int) -> None:
    if "--json" in arguments or "--json-lines" in arguments:
        import json

        document: dict[str, Any] = {
            "schema": "precopy.error/1",
            "error": {"kind": kind, "message": message, "exit_code": code},
        }
        click.echo(json.dumps(document))
