"""The machine that a contract's suite is run against: each file says by ``KINDS`` which kinds there are of it, and a
test that is for fewer says which by its own parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.machines import Booted


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    if "booted" in metafunc.fixturenames and not any(mark.args[0] == "booted" for mark in marks):
        metafunc.parametrize("booted", metafunc.module.KINDS, indirect=True)


@pytest.fixture
def booted(request: pytest.FixtureRequest) -> Iterator[Booted]:
    booted = Booted(request.param)
    yield booted
    booted.close()


@pytest.fixture
def vm(booted: Booted) -> Any:
    return booted.vm
