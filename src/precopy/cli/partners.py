"""Options that have an effect only beside others: given without them, they are refused instead of ignored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from precopy.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def only_with(parameter: str, where: str, met: Callable[[Mapping[str, Any]], bool]) -> Callable[[F], F]:
    """Refuses the option of ``parameter`` where it was given and the values of all options do not have it ``met``;
    ``where`` says with which others it has an effect. What is left at its default is never refused."""

    def apply(command: F) -> F:
        @functools.wraps(command)
        def checked(*args: object, **values: object) -> object:
            ctx = click.get_current_context()
            if parameter in given(ctx) and not met(ctx.params):
                raise UsageError(
                    f"{option_of(ctx, parameter)} has an effect only with {where}; give that, or leave "
                    f"{option_of(ctx, parameter)} out"
                )
            return command(*args, **values)

        return cast("F", checked)

    return apply


def given(ctx: click.Context) -> list[str]:
    """Parameters of this command that stand on its command line."""
    return [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]


def option_of(ctx: click.Context, parameter: str) -> str:
    """As users write it."""
    return next(option.opts[0] for option in ctx.command.params if option.name == parameter)
