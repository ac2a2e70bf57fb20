"""A small VMM on /dev/kvm: a VM, its memory slots, vCPUs in threads, and their state."""

from precopy.machines.kvm.guest import KvmGuest
from precopy.machines.kvm.system import KvmSystem, unavailable

__all__ = ["KvmGuest", "KvmSystem", "unavailable"]
