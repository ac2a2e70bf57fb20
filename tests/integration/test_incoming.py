"""What a destination's control socket answers between the moment when its guest runs and the moment when the source has
been told: it waits a little for the record of the migration, and no longer than that."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from precopy.machines.workload import Workload
from precopy.migration import Received
from precopy.service import Command, GuestProcess, ask
from precopy.service import incoming as module
from precopy.transport import Address
from support.live_guests import MIB, Pair
from support.patience import IN_TIME_S

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.usefixtures("nothing_left")]

RECEIVED = Received("5e55", 3, 4096, 2, 1, 0, 0.5, 0.01, 0.01)


@pytest.fixture
def arriving(tmp_path: Path) -> Iterator[GuestProcess]:
    """A guest that runs, whose source does not read that it does."""
    with Pair(Workload("random", 100), ram=4 * MIB) as pair:
        process = GuestProcess(pair.source, "a test", Address(path=str(tmp_path / "control")), "receiving")
        with process:
            yield process
    gc.unfreeze()


def status(process: GuestProcess) -> dict[str, Any]:
    answer: dict[str, Any] = ask(process.server.address, Command("status"))
    return answer


def test_it_waits_for_the_record_of_the_arrival(arriving: GuestProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RECORD_S", IN_TIME_S)
    monkeypatch.setattr("precopy.service.socket.TIMEOUT_S", IN_TIME_S)
    answers: list[dict[str, Any]] = []
    clients = [threading.Thread(target=lambda: answers.append(status(arriving))) for _ in range(3)]
    for client in clients:
        client.start()
    time.sleep(0.2)  # most have asked by then; one that has not is answered as well
    assert answers == []
    arriving._arrived(RECEIVED)
    for client in clients:
        client.join(IN_TIME_S)
    assert [(answer["state"], answer["session"]) for answer in answers] == [("running", "5e55")] * 3


def test_it_does_not_wait_longer(arriving: GuestProcess) -> None:
    """And it waits once: whoever asks later is answered at once, or 20 of them would take 40 s."""
    began = time.monotonic()
    assert status(arriving)["state"] == "receiving"
    first_s = time.monotonic() - began
    assert first_s >= module._RECORD_S
    assert arriving.guest.running
    began = time.monotonic()
    for _ in range(20):
        assert status(arriving)["state"] == "receiving"
    assert time.monotonic() - began < 10 * first_s
