"""Every machine that there is, for the suites of tests/contract: how one is made, and which roles it has."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from precopy.machines.emulated import EmulatedGuest
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload
from precopy.machines.workload.image import RESERVED_END, words_at
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import flat
from precopy.ports import (
    DeviceStates,
    DirtyLimiting,
    Rehearsing,
    SelfChecking,
    StallMeasuring,
    SyncWayChoosing,
    Throttleable,
    TrackerChoosing,
)
from precopy.units import PAGE_SIZE, GuestPhysicalAddress
from support.patience import IN_TIME_S
from support.scripted import BareGuest, CopiedGuest, ScriptedGuest, World

RAM = 8 << 20
OPTIONAL = (
    SyncWayChoosing,
    TrackerChoosing,
    Throttleable,
    DirtyLimiting,
    DeviceStates,
    Rehearsing,
    SelfChecking,
    StallMeasuring,
)
"""The roles that a machine may have or lack."""


@dataclass(frozen=True)
class Kind:
    """A kind of machine. ``make`` gives a blank one, ``boot`` puts a program into it, ``live`` lets that run for
    seconds where the machine runs, and ``damage`` changes memory that the program has written."""

    name: str
    make: Callable[[], Any]
    boot: Callable[[Any], None]
    live: Callable[[Any, float], None]
    damage: Callable[[Any], None]
    roles: frozenset[type]
    needs: str | None = None

    @property
    def param(self) -> Any:
        return pytest.param(self, id=self.name, marks=[pytest.mark.needs(self.needs)] if self.needs else [])


class Booted:
    """A machine of one kind with a program in it, as a contract's suite uses it."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._made: list[Any] = []
        self.vm = self.blank()
        kind.boot(self.vm)

    def blank(self) -> Any:
        """Another one of the kind, without a program."""
        self._made.append(self.kind.make())
        return self._made[-1]

    def live(self, seconds: float) -> None:
        """Time passes."""
        self.kind.live(self.vm, seconds)

    def steps_after(self, more_than: int, vm: Any = None) -> int:
        """Runs the machine until its program has made more steps than that; returns how many, with it paused."""
        vm, end = vm or self.vm, time.monotonic() + IN_TIME_S
        while time.monotonic() < end:
            vm.resume()
            self.kind.live(vm, 0.01)
            vm.pause()
            if (steps := vm.self_check().steps) > more_than:
                return int(steps)
        raise AssertionError("the guest makes no steps")

    def close(self) -> None:
        for vm in self._made:
            if hasattr(vm, "close"):
                vm.close()


def _sleep(_vm: Any, seconds: float) -> None:
    time.sleep(seconds)


def _boot(vm: Any) -> None:
    vm.boot(Workload("sequential", rate=None))


def _damage(vm: Any) -> None:
    words_at(vm.memory, GuestPhysicalAddress(RESERVED_END + PAGE_SIZE), 8)[0] = 1 << 40


def _scripted() -> ScriptedGuest:
    return ScriptedGuest(World(), "guest")


def _damage_scripted(vm: ScriptedGuest) -> None:
    vm.memory.pages(vm.memory.layout.blocks[1])[36, 9] ^= np.uint64(1)


def _inner(vm: Any) -> ScriptedGuest:
    inner = vm._inner
    assert isinstance(inner, ScriptedGuest)
    return inner


ALL = frozenset(OPTIONAL)
SCRIPTED = Kind(
    "scripted",
    _scripted,
    ScriptedGuest.boot,
    ScriptedGuest.live,
    _damage_scripted,
    ALL - {DirtyLimiting, StallMeasuring, SyncWayChoosing},
)
KVM = Kind("kvm", lambda: KvmGuest(GuestMemory(flat(RAM))), _boot, _sleep, _damage, ALL, "kvm")
RING = Kind(
    "kvm, dirty ring", lambda: KvmGuest(GuestMemory(flat(RAM)), 1, "dirty-ring"), _boot, _sleep, _damage, ALL, "kvm"
)
EMULATED = Kind(
    "emulated",
    lambda: EmulatedGuest(GuestMemory(flat(RAM))),
    _boot,
    _sleep,
    _damage,
    ALL - {DirtyLimiting, Rehearsing, SyncWayChoosing},
    "unicorn",
)
BARE, COPIED = (
    Kind(
        name,
        lambda seen=seen: seen(_scripted()),  # type: ignore[misc] # mypy knows no type of a default
        lambda vm: _inner(vm).boot(),
        lambda vm, seconds: _inner(vm).live(seconds),
        lambda vm: _damage_scripted(_inner(vm)),
        frozenset(),
    )
    for name, seen in (("bare", BareGuest), ("read by copies", CopiedGuest))
)
KINDS = (SCRIPTED, BARE, COPIED, EMULATED, KVM, RING)
GUESTS = (EMULATED, KVM, RING)
"""Those that run a program on vCPUs."""


def with_role(*roles: type) -> list[Any]:
    """The kinds that have all of ``roles``, as parameters of a fixture."""
    return [kind.param for kind in KINDS if kind.roles.issuperset(roles)]
