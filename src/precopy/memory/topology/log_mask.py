"""Clients that need to know which pages of a memory region are written (QEMU: ``DIRTY_MEMORY_*``)."""

from __future__ import annotations

import enum


class DirtyClient(enum.Flag):
    """One member is a client; several together are a log mask, the clients for which a region is logged.

    The bits are QEMU's: ``1 << DIRTY_MEMORY_VGA``, ``1 << DIRTY_MEMORY_CODE`` and ``1 << DIRTY_MEMORY_MIGRATION``.
    """

    VGA = 1
    """A display, which redraws what was written."""
    CODE = 2
    """A translator of guest code, which drops what it made of pages that were written."""
    MIGRATION = 4
    """A migration, which sends pages that were written once more."""


NO_CLIENTS = DirtyClient(0)
ALL_CLIENTS = DirtyClient.VGA | DirtyClient.CODE | DirtyClient.MIGRATION
