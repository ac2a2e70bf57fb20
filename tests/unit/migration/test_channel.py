"""A frame's time-out on a machine that is busy: what was silent is called silent, what was slow is called slow."""

from __future__ import annotations

import time

import pytest

from precopy.errors import PeerLost
from precopy.migration.channel import Channel
from precopy.transport import Address
from precopy.wire.default import DEFAULT_FORMAT
from precopy.wire.events import Role
from support.streams import close_all, pair_at

TIMEOUT = 0.3


class _Late:
    """A clock of a process that gets the machine only now and then: each look finds some time gone."""

    def __init__(self, step_s: float) -> None:
        self._step_s, self._gone = step_s, 0.0

    def now(self) -> float:
        self._gone += self._step_s
        return time.monotonic() + self._gone

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.mark.parametrize("step_s", [0.0, 0.001, 0.05])
def test_a_peer_that_sends_nothing_is_silent(step_s: float) -> None:
    near, far = pair_at(Address(host="127.0.0.1"), TIMEOUT)
    channel = Channel(near, DEFAULT_FORMAT(Role.SOURCE), _Late(step_s))
    with pytest.raises(PeerLost, match=r"for 0\.3 s") as caught:
        channel.receive()
    assert caught.value.silent
    close_all(near, far)
