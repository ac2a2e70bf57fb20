"""How values on a command line are read: sizes, rates, durations, counts, shares, addresses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from precopy.errors import UsageError
from precopy.units import parse_count, parse_duration, parse_rate, parse_size


class Parsed(click.ParamType[Any]):
    """A parameter read by one of units' functions, whose `UsageError` becomes click's."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


def _count_or_max(text: str) -> int | None:
    return None if text == "max" else parse_count(text)


def _address(text: str) -> Any:
    from precopy.transport.address import parse_address

    return parse_address(text)


def _host_port(text: str) -> Any:
    try:
        return _address(f"tcp:{text}")
    except UsageError:
        raise UsageError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9100") from None


def _control(text: str) -> Any:
    """An address of a control socket. It controls the guest, so it has to be a local socket with its owner's rights."""
    address = _address(text)
    if address.path is None:
        raise UsageError(f"{text!r} is no control socket; those are unix:/path")
    return address


def _positive_duration(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise UsageError("it has to be above 0")
    return seconds


_DECIMAL = re.compile(r"-?[0-9]*\.?[0-9]+(?:e-?[0-9]+)?")
_WHOLE = re.compile(r"-?[0-9]+")


class Share(click.FloatRange):
    """A range of ASCII decimal numbers. click.FloatRange accepts ``nan``, ``1_0`` and digits of other scripts; this
    refuses them."""

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and _DECIMAL.fullmatch(value) is None:
            self.fail(f"{value!r}: it is no number; write it like 0.25", param, ctx)
        return super().convert(float(value), param, ctx)


class Whole(click.IntRange):
    """The same for whole numbers."""

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and _WHOLE.fullmatch(value[:_MOST_DIGITS]) is None:
            self.fail(f"{value!r} is no whole number; write it like 20", param, ctx)
        if isinstance(value, str) and len(value) > _MOST_DIGITS:
            self.fail("it is too large", param, ctx)
        return super().convert(int(value), param, ctx)


_MOST_DIGITS = 30
"""Of a whole number; Python refuses to read one of more than 4300 with an error of its own."""


SIZE = Parsed("size", parse_size)
RATE = Parsed("rate", parse_rate)
DURATION = Parsed("duration", parse_duration)
POSITIVE_DURATION = Parsed("duration", _positive_duration)
WRITE_RATE = Parsed("count", _count_or_max)
ADDRESS = Parsed("address", _address)
HOST_PORT = Parsed("host:port", _host_port)
CONTROL = Parsed("control", _control)


def _values(parse: Callable[[str], Any], *, whole: bool = False) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        from precopy.planning.plan.sweep import parse_values

        return parse_values(text, parse, whole=whole)

    return read


SIZES = Parsed("sizes", _values(parse_size, whole=True))
RATES = Parsed("rates", _values(parse_rate))
DURATIONS = Parsed("durations", _values(parse_duration))
COUNTS = Parsed("counts", _values(parse_count, whole=True))
"""One value, several between commas, or a range: `precopy.planning.plan.sweep.parse_values`."""
