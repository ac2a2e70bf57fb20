"""What is said of a device that is not there, or is not KVM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from precopy.errors import Unsupported
from precopy.machines.kvm import KvmGuest, KvmSystem, unavailable
from precopy.machines.kvm.vcpu import ExitHandler, Vcpu
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import machine_layout

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("/nowhere/kvm", "/nowhere/kvm does not exist; load the kvm module, or use --guest emulated"),
        ("/dev", "/dev cannot be opened: Is a directory; see whether the CPU's virtualisation is enabled"),
        ("/dev/null", "/dev/null is not KVM: KVM_GET_API_VERSION on /dev/null failed: Inappropriate ioctl for device"),
    ],
)
def test_device_that_will_not_do(device: str, said: str) -> None:
    with pytest.raises(Unsupported) as caught:
        KvmSystem(device)
    assert str(caught.value).startswith(said)
    assert caught.value.exit_code == 3


def test_plain_file_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    with pytest.raises(Unsupported, match="is not KVM"):
        KvmSystem(str(tmp_path / "kvm"))


@pytest.mark.needs("kvm")
def test_device_that_works() -> None:
    assert unavailable() is None


@pytest.mark.needs("kvm")
def test_guest_that_cannot_be_made_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here for the want of a third vCPU: the VM, its vCPUs and their threads are gone when the error is seen."""

    def two_at_most(system: KvmSystem, vm: int, number: int, on_io: ExitHandler, **ring: Any) -> Vcpu:
        if number == 2:
            raise Unsupported("no more vCPUs", "use fewer")
        return Vcpu(system, vm, number, on_io, **ring)

    monkeypatch.setattr("precopy.machines.kvm.machine.Vcpu", two_at_most)
    with GuestMemory(machine_layout("flat", 4 << 20)) as memory, pytest.raises(Unsupported, match="no more vCPUs"):
        KvmGuest(memory, 3)
