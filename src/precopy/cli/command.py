"""Finds the subcommand, and turns errors into one sentence and an exit code.

Nothing heavy is imported here: each subcommand's module is loaded when it is called.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NoReturn

import click

from precopy import __version__
from precopy.cli import front
from precopy.cli.lazy import LazyGroup
from precopy.cli.say import complain, show_usage
from precopy.errors import ADVICE, PrecopyError, UsageError


class _Front(LazyGroup):
    """Its help is `precopy.cli.front`'s, which does without click."""

    table = front.COMMANDS

    def get_help(self, ctx: click.Context) -> str:  # noqa: ARG002 - click's signature
        return front.page()


@click.command(cls=_Front, help=front.TEXT, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="precopy")
def cli() -> None:
    pass


def run(arguments: list[str]) -> NoReturn:
    """Runs the command and ends the process with its exit code."""
    try:
        code = _code(arguments)
    except (OSError, ImportError) as error:
        # At a place that has no words of its own for it, such as an import, which may be one of the error's report.
        code = _refused(arguments, error)
    sys.exit(code)


def _code(arguments: list[str]) -> int:
    """Runs the command; returns its exit code. Raises `OSError` and `ImportError` where the system refuses what the
    process itself needs."""
    try:
        _check(arguments)
        result = cli.main(arguments, prog_name="precopy", standalone_mode=False)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except click.ClickException as error:
        from precopy.cli.suggestions import with_suggestion

        told = with_suggestion(error)
        show_usage(told)
        code = error.exit_code
        _document(arguments, type(error).__name__, told.format_message(), code)
    except PrecopyError as error:
        # An error that crossed the control socket has the name that it had on the other side.
        _tell(arguments, getattr(error, "kind", type(error).__name__), str(error), error.exit_code, error.attempt)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _tell(arguments, "Interrupted", "interrupted", 130)
        code = 130
    except BrokenPipeError:
        # The reader of our output left; point stdout elsewhere so that Python's own flush does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if os.environ.get("PRECOPY_DEBUG") or _advice(error):
            raise
        what = f"internal error: {type(error).__name__}: {error}; set PRECOPY_DEBUG=1 for where it happened"
        _tell(arguments, type(error).__name__, what, 1)
        code = 1
    return code


def _advice(error: Exception) -> str:
    """What to do where the system refused something; empty where ``error`` is none of that kind. What loads a shared
    library says so in words alone."""
    if isinstance(error, ImportError):
        return next((advice for number, advice in ADVICE.items() if str(error).endswith(os.strerror(number))), "")
    return ADVICE.get(error.errno or 0, "") if isinstance(error, OSError) else ""


def _refused(arguments: list[str], error: OSError | ImportError) -> int:
    """Tells of it without any further import; returns the exit code."""
    advice = _advice(error)
    if os.environ.get("PRECOPY_DEBUG") or not advice:
        raise error
    what = f"the system refuses what this process needs: {error}; {advice}"
    sys.stderr.write(f"precopy: {what}\n")
    with contextlib.suppress(OSError, ImportError):
        _document(arguments, type(error).__name__, what, 1)
    return 1


def _check(arguments: list[str]) -> None:
    """Raises `UsageError` for what no path, address or name can hold; a shell cannot pass it, a program can."""
    for argument in arguments:
        if "\0" in argument:
            raise UsageError(f"{argument[:200]!r} holds a NUL character, which no argument can; leave it out")


def _tell(arguments: list[str], kind: str, message: str, code: int, attempt: object = None) -> None:
    """One sentence to stderr, and the document that ``--json`` and ``--json-lines`` promise to stdout; ``attempt`` is
    the migration that ended so, where it was one."""
    complain(f"precopy: {message}")
    _document(arguments, kind, message, code, attempt)


def _document(arguments: list[str], kind: str, message: str, code: int, attempt: object = None) -> None:
    if "--json" in arguments or "--json-lines" in arguments:
        import json

        from precopy.report.kinds import schema

        # Its record, which has a migration in it, takes a while to import; most errors have none.
        body: dict[str, Any] = {"error": {"kind": kind, "message": message, "exit_code": code}}
        if attempt is not None:
            from precopy.migration import Attempt
            from precopy.report.kinds import body_of
            from precopy.report.kinds.error import ErrorFields, Failure

            if isinstance(attempt, Attempt):
                from precopy.cli.facts import host_facts

                failure = Failure(ErrorFields(kind, message, code), attempt)
                body = {"machine": host_facts(), **body_of("error", failure)}
        click.echo(json.dumps({"schema": schema("error"), **body}))
