"""The table of verbs, and the first page of the help, which is made of it without click: importing click takes longer
than all the rest of `precopy --help`."""

from __future__ import annotations

import os
import sys

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

TEXT = """\
Live memory migration: track which pages of a running guest are written, move its memory while it runs on,
and say with numbers whether that converges.

\b
Units, B being a byte and b a bit; only 0 goes without one:
  sizes      256M, 256MB or 256MiB are all 256 * 2^20 bytes
  rates      125M or 125MB/s is 125 * 10^6 bytes a second, 64MiB/s is
             64 * 2^20; 1Gb/s or 1Gbit/s is 10^9 bits a second
  durations  50us, 300ms, 2s
  counts     20000 or 20K, without a unit
Addresses are unix:/path or tcp:host:port.

Exit codes: 0 done, 1 internal error, 2 usage, 3 unsupported here, 4 did not
converge, 5 peer lost or refused, 6 outcome unknown, 7 verification failed,
130 interrupted.
"""
"""As click has it: paragraphs, of which those that begin with a line of ``\\b`` keep their lines."""

_WIDEST, _NARROWEST = 78, 50
_OPTIONS = {"--version": "Show the version and exit.", "-h, --help": "Show this message and exit."}


def page(columns: int | None = None) -> str:
    """The page, for a terminal of ``width`` columns (None: the present one)."""
    width = max(min((columns or _columns()) - 2, _WIDEST), _NARROWEST)
    lines = ["Usage: precopy [OPTIONS] COMMAND [ARGS]..."]
    for paragraph in TEXT.strip().split("\n\n"):
        first, *rest = paragraph.split("\n")
        kept = rest if first == "\b" else _wrapped(paragraph, width - 2)
        lines += ["", *(f"  {line}" for line in kept)]
    lines += ["", "Options:", *_listed(_OPTIONS, width)]
    lines += ["", "Commands:", *_listed({name: text for name, (_, text) in COMMANDS.items()}, width)]
    return "\n".join(lines)


def _columns() -> int:
    """As shutil.get_terminal_size, whose module takes longer to import than the rest of this takes."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno() if sys.__stdout__ else 1).columns or _WIDEST + 2
    except (OSError, ValueError):
        return _WIDEST + 2


def _listed(table: dict[str, str], width: int) -> list[str]:
    """Names, and beside them what each is."""
    indent = 4 + max(map(len, table))
    lines = []
    for name, text in table.items():
        first, *rest = _wrapped(text, width - indent)
        lines += [f"  {name}".ljust(indent) + first, *(" " * indent + line for line in rest)]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
