"""The ``precopy`` command: its first page of help at once, everything else by way of `precopy.cli.command`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command and ends the process with its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments in (["--help"], ["-h"]):
        from precopy.cli.front import page

        try:
            print(page(), flush=True)  # noqa: T201 - click, which would print it, is what this does without
        except OSError:  # the reader of our output left
            import os

            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        sys.exit(0)
    from precopy.cli.command import run

    run(arguments)
