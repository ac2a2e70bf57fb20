"""Which roles of `precopy.ports.vm` each kind of machine has: the suites beside this one hold it to each of them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import precopy.machines
from precopy.ports import Pausable
from support.machines import KINDS as ALL_KINDS
from support.machines import OPTIONAL, Booted

KINDS = [kind.param for kind in ALL_KINDS]


def test_has_the_roles_that_it_is_held_to_and_no_other(booted: Booted) -> None:
    assert {role for role in OPTIONAL if isinstance(booted.vm, role)} == booted.kind.roles


@pytest.mark.needs("kvm")
@pytest.mark.needs("unicorn")
def test_every_machine_of_the_package_is_among_the_kinds() -> None:
    """A machine is what can be paused; found by the names of the role's methods, because no class says so itself."""
    names = [name for name in vars(Pausable) if not name.startswith("_") and callable(getattr(Pausable, name))]
    assert names == ["pause", "resume"]
    there = set()
    for module in pkgutil.walk_packages(precopy.machines.__path__, "precopy.machines."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__.startswith("precopy.machines") and all(hasattr(cls, name) for name in names):
                there.add(cls.__name__)
    made = set()
    for kind in ALL_KINDS:
        booted = Booted(kind)
        made.add(type(booted.vm).__name__)
        booted.close()
    assert there
    assert there <= made
