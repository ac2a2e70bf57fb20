"""What a primary can make a standby take of its machine's memory: tests/cases/hostile-6 as it is, and its limits."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

import precopy
from precopy import Standby
from precopy.errors import HelloMismatch, PeerRefused, UsageError
from precopy.memory.system_memory import available_memory
from precopy.replication.room import Room
from support.live_guests import until
from support.patience import IN_TIME_S
from support.replicas import MIB, WORDS, filled, same, words

pytestmark = [pytest.mark.needs("pagemap"), pytest.mark.usefixtures("nothing_left")]

CASE = Path(__file__).parents[1] / "cases" / "hostile-6" / "standby.py"


@pytest.mark.parametrize("pages", ["MAX // 4096", "MAX // 8192", "MAX // 4096 // 16"])
def test_a_standby_takes_no_more_than_it_was_told_to(pages: str) -> None:
    text = CASE.read_text()
    assert "PAGES = MAX // 4096\n" in text
    text = text.replace("PAGES = MAX // 4096\n", f"PAGES = {pages}\n")
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=IN_TIME_S)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.startswith("max_size 256 MiB: ")


@pytest.mark.parametrize(
    ("limits", "pages"),
    [
        ({"max_size": 4 * MIB, "max_staging": 64 * 4096}, 64),
        ({"max_staging": 64 * 4096}, 64),
        ({"max_size": 4 * MIB}, 256),  # a quarter of it
        ({"max_size": 4 * MIB + 400 * 4096, "max_staging": None}, 400),  # what is left, which is more than that
        ({"max_size": 6 * MIB}, 512),  # what is left
    ],
    ids=str,
)
def test_a_point_up_to_the_limit_is_taken_and_a_larger_one_is_not(limits: dict[str, int | None], pages: int) -> None:
    memory = filled(4 * MIB)
    with (
        Standby("tcp:127.0.0.1:0", **limits) as standby,
        precopy.replicate(memory, standby.address, interval=math.inf) as handle,
    ):
        handle.checkpoint(wait=True)
        for count in (pages, pages):
            words(memory)[: count * WORDS : WORDS] += 1  # type: ignore[arg-type]
            handle.checkpoint(wait=True)
        before = words(memory).copy()
        words(memory)[: (pages + 1) * WORDS] = 5
        with pytest.raises(PeerRefused, match=r"max_staging"):
            handle.checkpoint(wait=True)
        until(lambda: standby.error is not None)
        assert isinstance(standby.error, HelloMismatch)
        assert standby.point == 3
        assert (words(standby.promote()) == before).all()


def test_a_first_copy_is_not_staged() -> None:
    memory = filled(4 * MIB)
    with (
        Standby("tcp:127.0.0.1:0", max_size=4 * MIB, max_staging=0) as standby,
        precopy.replicate(memory, standby.address) as handle,
    ):
        handle.wait(IN_TIME_S)
        with handle.cutover():
            pass
        assert same(memory, standby.promote())


def test_what_the_system_does_not_have_is_not_taken() -> None:
    available = available_memory()
    assert available is not None
    room = Room(None, None)
    room.check_memory(available // 2)
    room.check_system(64 * MIB)
    with pytest.raises(HelloMismatch, match="runs out of memory"):
        room.check_system(64 * MIB, later=2 * available)
    with pytest.raises(HelloMismatch, match="are available here"):
        room.check_memory(2 * available)


@pytest.mark.parametrize("limits", [{"max_size": 0}, {"max_size": -1}, {"max_staging": -1}], ids=str)
def test_limits_that_cannot_be(limits: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is at least"):
        Standby("tcp:127.0.0.1:0", **limits)  # type: ignore[arg-type]
