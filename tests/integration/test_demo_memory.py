"""``precopy demo --guest memory``, whole: a simulation, a standby in another process, snapshots, and the comparison."""

from __future__ import annotations

import pytest

from support.commands import precopy

pytestmark = pytest.mark.needs("pagemap")


def test_the_copy_and_the_snapshot_are_exact() -> None:
    document = precopy("demo", "--guest", "memory", "--ram", "32M", "--json").document()
    assert document["schema"] == "precopy.demo-memory/1"
    assert document["size_bytes"] == 32 << 20
    assert document["copy_exact"] is True
    assert document["restored_exact"] is True
    assert document["steps"] > 10
    assert document["points"] >= 1
    assert [one["full"] for one in document["snapshots"]] == [True, False, False, False]
    assert all(0 < one["pages"] < 8192 for one in document["snapshots"][1:])


def test_it_says_so() -> None:
    done = precopy("demo", "--guest", "memory", "--ram", "8M")
    assert done.code == 0, done.err
    assert "the copy is exact" in done.out
    assert "what was saved last, byte for byte" in done.out
