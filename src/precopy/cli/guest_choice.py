"""Making the guest that the options ask for, and saying why it is the one that it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precopy.errors import Unsupported, UsageError

if TYPE_CHECKING:
    from precopy.cli.options import MachineOptions
    from precopy.machines.emulated import EmulatedGuest
    from precopy.machines.kvm import KvmGuest


@dataclass(frozen=True)
class Choice:
    """``kind`` of guest (kvm or emulated), and ``why`` that one."""

    kind: str
    why: str


def choose(asked: str) -> Choice:
    """The kind of guest to run. Raises `Unsupported` where what was asked for, or every kind, is missing."""
    from precopy.machines.emulated import unavailable as emulated_unavailable
    from precopy.machines.kvm import unavailable as kvm_unavailable

    if asked == "emulated":
        without = emulated_unavailable()
        if without:
            raise without
        return Choice("emulated", "asked for")
    missing = kvm_unavailable()
    if not missing:
        return Choice("kvm", "asked for" if asked == "kvm" else "/dev/kvm works here")
    if asked == "kvm":
        what, _, remedy = missing.partition("; ")
        raise Unsupported(what, remedy)
    without = emulated_unavailable()
    if without:
        raise Unsupported(f"no guest can run here: {missing}", f"or {without.remedy}")
    return Choice("emulated", f"no KVM: {missing}")


def make(choice: Choice, machine: MachineOptions) -> KvmGuest | EmulatedGuest:
    """A blank guest. Raises `UsageError`, `LayoutError`, `OutOfMemory`, `Unsupported`."""
    from precopy.memory import Backing, GuestMemory
    from precopy.memory.captures.machines import machine_layout

    if choice.kind == "emulated" and machine.vcpus > 1:
        raise UsageError("an emulated guest has one vCPU; use --vcpus 1 or --guest kvm")
    memory = GuestMemory(machine_layout(machine.layout, machine.ram), Backing(machine.backing))
    try:
        if choice.kind == "kvm":
            from precopy.machines.kvm import KvmGuest

            return KvmGuest(memory, machine.vcpus)
        from precopy.machines.emulated import EmulatedGuest

        return EmulatedGuest(memory)
    except BaseException:
        memory.close()
        raise
