"""Pairs of real streams, and threads that use them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from precopy.errors import PeerLost
from precopy.transport import Address, Listener, SocketStream, connect
from support.patience import IN_TIME_S

SOON = IN_TIME_S


class Background(threading.Thread):
    """Runs ``work`` in a thread; `result` waits for it and gives what it returned or raises what it raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._returned: object = None
        self._raised: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._returned = self._work()
        except BaseException as error:
            self._raised = error

    def result(self, timeout: float = SOON) -> object:
        self.join(timeout)
        assert not self.is_alive(), "it is stuck"
        if self._raised is not None:
            raise self._raised
        return self._returned


def pair_at(address: Address, timeout: float) -> tuple[SocketStream, SocketStream]:
    with Listener(address) as listener:
        accepted = Background(lambda: listener.accept(timeout))
        near = connect(listener.address, timeout)
        far = accepted.result()
    assert isinstance(far, SocketStream)
    return near, far


def close_all(*streams: SocketStream) -> None:
    closing = [Background(stream.close) for stream in streams]
    for one in closing:
        one.result()


def receive(stream: SocketStream, size: int) -> bytes:
    data = bytearray(size)
    stream.receive_into([data])
    return bytes(data)


def serve_one(listener: Listener) -> None:
    """Answers the first peer that stays; one that only looked whether somebody listens is none."""
    while True:
        stream = listener.accept(SOON)
        try:
            stream.send([b"ok"])
            with pytest.raises(PeerLost):
                receive(stream, 1)
        except PeerLost:
            continue
        finally:
            stream.close()
        return
