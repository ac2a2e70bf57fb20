"""Old names of modules: scripts that were written for them go on running."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import precopy
from precopy import moved
from support.patience import IN_TIME_S


@pytest.mark.parametrize(("old", "new"), moved.PACKAGES.items())
def test_every_old_package_has_what_the_new_one_has(old: str, new: str) -> None:
    here = importlib.import_module(new)
    with pytest.warns(DeprecationWarning, match=f"{old} is {new} now"):
        there = importlib.import_module(old)
    try:
        assert {name: getattr(there, name) for name in here.__all__} == {
            name: getattr(here, name) for name in here.__all__
        }
    finally:
        del sys.modules[old]


def test_a_module_of_one_and_one_that_is_gone() -> None:
    program = "from precopy import store; from precopy.store.format import Header; print(store.verify, Header)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=IN_TIME_S, check=True
    )
    assert "function verify" in done.stdout
    with (
        pytest.warns(DeprecationWarning, match="precopy.kvm is precopy.machines.kvm now"),
        pytest.raises(ModuleNotFoundError, match=r"No module named 'precopy\.kvm\.gone'"),
    ):
        importlib.import_module("precopy.kvm.gone")
    sys.modules.pop("precopy.kvm", None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("precopy.nothing")


def test_it_is_not_a_name_of_the_public_api() -> None:
    assert "moved" not in dir(precopy)
