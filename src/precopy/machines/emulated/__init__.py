"""A guest on an emulated CPU (Unicorn, QEMU's TCG as a library), for machines without /dev/kvm."""

from precopy.machines.emulated.guest import EmulatedGuest, unavailable

__all__ = ["EmulatedGuest", "unavailable"]
