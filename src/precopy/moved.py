"""Modules under the names that they had before the packages were made by subject (docs/adr/0024-rooms-by-subject.md).

Scripts that were written for them, such as those of reported faults, go on running, with a `DeprecationWarning`. A name
is looked up here only where no module of that name is found.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader

PACKAGES = {
    "precopy.control": "precopy.service",
    "precopy.emulated": "precopy.machines.emulated",
    "precopy.guests": "precopy.machines.workload",
    "precopy.kvm": "precopy.machines.kvm",
    "precopy.process": "precopy.machines.process",
    "precopy.store": "precopy.snapshot_store",
}


class Moved:
    """Finds an old package, and the modules of it that kept their names, at their new place."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if new_name(fullname) is None:
            return None
        return ModuleSpec(fullname, cast("Loader", self), is_package=fullname in PACKAGES)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = new_name(spec.name) or spec.name
        try:
            moved = importlib.import_module(new)
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name) from None
        warnings.warn(f"{spec.name} is {new} now", DeprecationWarning, stacklevel=2)
        return _alias(spec.name, moved)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do: the module is that of the new name."""


def new_name(fullname: str) -> str | None:
    """Where a module of an old package is now; None for any other."""
    old = ".".join(fullname.split(".")[:2])
    return PACKAGES[old] + fullname.removeprefix(old) if old in PACKAGES else None


def _alias(name: str, moved: ModuleType) -> ModuleType:
    """A module of its own with the same content: the import system changes a module's ``__spec__``."""
    alias = ModuleType(name, moved.__doc__)
    alias.__dict__.update({key: value for key, value in vars(moved).items() if not key.startswith("__")})
    alias.__dict__.update({name: getattr(moved, name) for name in getattr(moved, "__all__", ())})  # loaded when used
    alias.__path__ = []
    return alias


def install() -> None:
    """Old names can be imported from now on. May be called again."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())
