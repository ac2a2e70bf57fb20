"""An address space: what a CPU or a device sees from a root region, and the listeners that are told when that
changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from precopy.errors import LayoutError
from precopy.memory.topology.flat_view import FlatRange, FlatView, render
from precopy.memory.topology.log_mask import DirtyClient
from precopy.memory.topology.region import MemoryRegion
from precopy.memory.topology.transaction import transaction
from precopy.units import GuestPhysicalAddress


class MemoryListener(Protocol):
    """It is told which ranges an address space has: for example to give the kernel its memory slots.

    Each change of the view comes between one `begin` and one `commit`. A listener may change regions: that is an
    update of its own, after this one; it does not add or remove listeners. What it raises comes out of whatever changed
    the region, and listeners after it are then not told.
    """

    name: str

    def region_add(self, added: FlatRange) -> None:
        """There is a range; what it is logged for stands in its ``log_mask``."""

    def region_del(self, removed: FlatRange) -> None:
        """A range that was added is gone; it is as it was added, or as the last `log_start` or `log_stop` gave it."""

    def log_start(self, logged: FlatRange, old_mask: DirtyClient, new_mask: DirtyClient) -> None:
        """A range that stays is logged for more clients; ``logged`` has the new mask."""

    def log_stop(self, logged: FlatRange, old_mask: DirtyClient, new_mask: DirtyClient) -> None:
        """A range that stays is logged for fewer clients; ``logged`` has the new mask."""

    def begin(self) -> None:
        """A change of the view begins."""

    def commit(self) -> None:
        """The change is complete: the listener has been told of every range."""


class AddressSpace:
    """The view from ``root``, kept current. ``name`` is for people.

    Within a `transaction` the view is still the one before it.
    """

    def __init__(self, name: str, root: MemoryRegion) -> None:
        self.name, self.root = name, root
        self._view = render(root)
        self._listeners: list[MemoryListener] = []
        root.attach(self)

    def __repr__(self) -> str:
        return f"<AddressSpace {self.name!r}, {len(self._view)} ranges>"

    @property
    def view(self) -> FlatView:
        return self._view

    def add_listener(self, listener: MemoryListener) -> None:
        """Tells ``listener`` of every range there is, and from now on of changes. Raises `LayoutError` if it is one."""
        if listener in self._listeners:
            raise LayoutError(f"the listener {listener.name!r} listens to address space {self.name!r} already")
        self._listeners.append(listener)
        with transaction():
            listener.begin()
            for flat in self._view:
                listener.region_add(flat)
            listener.commit()

    def remove_listener(self, listener: MemoryListener) -> None:
        """Tells ``listener`` that every range is gone, and nothing after that. Raises `LayoutError` if it is none."""
        if listener not in self._listeners:
            raise LayoutError(f"the listener {listener.name!r} does not listen to address space {self.name!r}")
        self._listeners.remove(listener)
        with transaction():
            listener.begin()
            for flat in self._view:
                listener.region_del(flat)
            listener.commit()

    def close(self) -> None:
        """Removes all listeners, the last one first, and follows the root no longer."""
        for listener in reversed(tuple(self._listeners)):
            self.remove_listener(listener)
        self.root.detach(self)

    def update(self) -> None:
        """Looks at the regions again; called by the transaction that changed them.

        In two passes, so that no two ranges that a listener knows ever overlap: first what is gone, then what is new,
        each in ascending order (QEMU: ``address_space_update_topology_pass``). Listeners are told of what is new in
        the order in which they were added, and of what is gone in the opposite one, as there.
        """
        old, new = self._view, render(self.root)
        if old == new:
            return
        self._view = new
        before = {flat.address: flat for flat in old}
        after = {flat.address: flat for flat in new}
        listeners = tuple(self._listeners)
        for listener in listeners:
            listener.begin()
        for flat in old:
            if not _stays(flat, after):
                for listener in reversed(listeners):
                    listener.region_del(flat)
        for flat in new:
            if _stays(flat, before):
                _tell_logged(listeners, flat, before[flat.address].log_mask)
            else:
                for listener in listeners:
                    listener.region_add(flat)
        for listener in listeners:
            listener.commit()


def _tell_logged(listeners: Sequence[MemoryListener], logged: FlatRange, old: DirtyClient) -> None:
    """Nothing where the mask is the same; both calls where clients came and others went."""
    new = logged.log_mask
    if new & ~old:
        for listener in listeners:
            listener.log_start(logged, old, new)
    if old & ~new:
        for listener in reversed(listeners):
            listener.log_stop(logged, old, new)


def _stays(flat: FlatRange, others: Mapping[GuestPhysicalAddress, FlatRange]) -> bool:
    """Whether the same range, but for its log mask, is one of ``others``, which are found by their addresses."""
    return flat.address in others and flat.same_place(others[flat.address])
