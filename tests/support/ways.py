"""The ways in which words can be worked on: numpy, and what numba compiles (extra ``fast``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from precopy.bitmap import words
from precopy.bitmap.words import Native

WAYS = ("numpy", pytest.param("numba", marks=pytest.mark.needs("numba")))


def native_kernels() -> Native:
    """What numba compiled, without having it used."""
    from precopy.bitmap import native

    return native


def ways(scope: Literal["function", "module"]) -> Callable[..., Any]:
    """A fixture: the name of the way, which is in use meanwhile; numba's half is skipped where that is missing."""

    @pytest.fixture(scope=scope, params=WAYS)
    def way(request: pytest.FixtureRequest) -> Iterator[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(words, "native", native_kernels() if request.param == "numba" else None)
            yield request.param

    return way
