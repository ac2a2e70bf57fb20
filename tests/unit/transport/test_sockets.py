"""Streams over real Unix and TCP sockets: whole, in order, and never stuck."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Runs
from precopy.errors import PeerLost
from precopy.memory import GuestMemory, RamLayout
from precopy.ports import Buffer, IoVec
from precopy.transport import Address, Listener, SocketStream, connect
from precopy.units import PAGE_SIZE
from support.patience import IN_TIME_S
from support.streams import SOON, Background, close_all, pair_at, receive

MIB = 1 << 20


@pytest.fixture
def pair(address: Address) -> Iterator[tuple[SocketStream, SocketStream]]:
    near, far = pair_at(address, SOON)
    yield near, far
    close_all(near, far)


@pytest.fixture
def hasty(address: Address) -> Iterator[tuple[SocketStream, SocketStream]]:
    """A pair that waits for a fifth of a second only."""
    near, far = pair_at(address, 0.2)
    yield near, far
    close_all(near, far)


def random_buffers(count: int, largest: int, seed: int = 1) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(source.randrange(largest)) for _ in range(count)]


class Grudging(socket.socket):
    """A socket that takes and gives only a few bytes at a time, as a full or an empty one may."""

    quotas: Sequence[int] = ()
    calls = 0

    def _quota(self) -> int:
        self.calls += 1
        return self.quotas[self.calls % len(self.quotas)]

    def sendmsg(self, buffers: Sequence[Buffer]) -> int:  # type: ignore[override]
        return super().send(b"".join(buffers)[: self._quota()])

    def recvmsg_into(self, buffers: Sequence[Buffer], _: int, flags: int) -> Any:  # type: ignore[override]
        left, some = self._quota(), []
        for buffer in buffers:
            some.append(memoryview(buffer)[:left])
            left -= len(some[-1])
        return super().recvmsg_into(some, 0, flags)


def runs_of_pages(memory: GuestMemory, runs: Runs) -> tuple[list[memoryview], IoVec]:
    return memory.buffers(runs), memory.addresses(runs)


def send_often(stream: SocketStream, pages: tuple[list[memoryview], IoVec]) -> None:
    """More than any buffer holds."""
    for _ in range(100):
        stream.send_pages(b"head", *pages)


class TestPages:
    """Guest memory, which over a Unix socket the kernel takes without copying it."""

    PAGES = 1000

    @pytest.fixture
    def memory(self) -> Iterator[GuestMemory]:
        with GuestMemory(RamLayout.of_blocks([("a", self.PAGES * PAGE_SIZE), ("b", 3 * PAGE_SIZE)])) as memory:
            memory.hosts[0].words[:] = np.arange(memory.hosts[0].words.size)
            memory.hosts[1].words[:] = 7
            yield memory

    @pytest.mark.parametrize(
        "runs",
        [
            Runs.of((5, 1)),
            Runs.of((0, 1000)),
            Runs.of((1024, 3)),
            Runs.of((900, 100), (0, 2), (1026, 1), (1, 1)),
            Runs.of(*((page, 1) for page in range(0, 1000, 2)), (1024, 1)),
        ],
        ids=lambda runs: f"{runs.pages} pages in {len(runs)} runs",
    )
    def test_arrive_after_their_head(
        self, pair: tuple[SocketStream, SocketStream], memory: GuestMemory, runs: Runs
    ) -> None:
        near, far = pair
        views, addresses = runs_of_pages(memory, runs)
        expected = b"".join(views)

        def send() -> None:
            for number in range(3):
                near.send_pages(b"head%d" % number, views, addresses)
            near.send([b"tail"])

        sending = Background(send)
        for number in range(3):
            assert receive(far, 5) == b"head%d" % number
            assert receive(far, len(expected)) == expected
        assert receive(far, 4) == b"tail"
        sending.result()

    def test_no_pages_are_a_head_alone(self, pair: tuple[SocketStream, SocketStream], memory: GuestMemory) -> None:
        pair[0].send_pages(b"head", *runs_of_pages(memory, Runs.of()))
        assert receive(pair[1], 4) == b"head"

    @pytest.mark.parametrize("copy_free", [True, False])
    def test_reach_a_slow_reader_whole(self, memory: GuestMemory, copy_free: bool) -> None:
        ours, theirs = socket.socketpair()
        near, far = SocketStream(ours, "peer", SOON, copy_free=copy_free), SocketStream(theirs, "peer", SOON)
        views, addresses = runs_of_pages(memory, Runs.of(*((page, 1) for page in range(0, 1000, 2))))

        def send() -> None:
            for _ in range(8):
                near.send_pages(b"", views, addresses)

        sending = Background(send)
        received = bytearray()
        while len(received) < 8 * 500 * PAGE_SIZE:
            if len(received) < MIB:
                time.sleep(0.005)
            received += receive(far, min(77_777, 8 * 500 * PAGE_SIZE - len(received)))
        sending.result()
        assert received == b"".join(views) * 8
        close_all(near, far)

    def test_to_a_peer_that_takes_nothing(self, hasty: tuple[SocketStream, SocketStream], memory: GuestMemory) -> None:
        everything = runs_of_pages(memory, memory.layout.runs)
        with pytest.raises(PeerLost, match=r"takes nothing for 0.2 s") as caught:
            send_often(hasty[0], everything)
        assert caught.value.silent

    @pytest.mark.parametrize("copy_free", [True, False])
    def test_who_takes_a_little_now_and_then_does_not_hold_a_sender(
        self, memory: GuestMemory, copy_free: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("precopy.transport.sockets.SLOWEST_BYTES_PER_S", 1 << 30)
        ours, theirs = socket.socketpair()
        near = SocketStream(ours, "peer", 0.5, copy_free=copy_free)
        stop = threading.Event()

        def sip() -> None:
            while not stop.wait(0.1):
                theirs.recv(100_000)

        sipping = Background(sip)
        with pytest.raises(PeerLost, match=r"did not take \d+ bytes within") as caught:
            Background(lambda: send_often(near, runs_of_pages(memory, memory.layout.runs))).result(SOON * 2)
        assert caught.value.silent
        stop.set()
        sipping.result()
        theirs.close()
        near.close()

    def test_to_a_peer_that_is_gone(self, pair: tuple[SocketStream, SocketStream], memory: GuestMemory) -> None:
        everything = runs_of_pages(memory, memory.layout.runs)
        pair[1].abort()
        pair[1].close()
        with pytest.raises(PeerLost) as caught:
            send_often(pair[0], everything)
        assert not caught.value.silent

    def test_abort_wakes_who_sends_them(self, pair: tuple[SocketStream, SocketStream], memory: GuestMemory) -> None:
        everything = runs_of_pages(memory, memory.layout.runs)
        sending = Background(lambda: send_often(pair[0], everything))
        time.sleep(0.1)
        assert sending.is_alive()
        start = time.monotonic()
        pair[0].abort()
        with pytest.raises(PeerLost):
            sending.result()
        assert time.monotonic() - start < SOON / 2


class TestTransfer:
    def test_over_ipv6(self) -> None:
        near, far = pair_at(Address(host="::1"), SOON)
        near.send([b"hello"])
        assert receive(far, 5) == b"hello"
        assert str(near.peer).startswith("tcp:[::1]:")
        close_all(near, far)

    def test_both_ways(self, pair: tuple[SocketStream, SocketStream]) -> None:
        near, far = pair
        near.send([b"to ", bytearray(b"the "), memoryview(b"other side")])
        assert receive(far, 17) == b"to the other side"
        far.send([b"and back"])
        assert receive(near, 8) == b"and back"

    def test_nothing_is_sent_and_received_without_waiting(self, pair: tuple[SocketStream, SocketStream]) -> None:
        near, far = pair
        near.send([])
        near.send([b"", b""])
        far.receive_into([])
        far.receive_into([bytearray()])
        near.send([b"", b"x", b""])
        assert receive(far, 1) == b"x"

    def test_hundreds_of_buffers_reach_a_slow_reader_whole(self, pair: tuple[SocketStream, SocketStream]) -> None:
        near, far = pair
        buffers = random_buffers(1000, 32 << 10)
        whole = b"".join(buffers)
        assert len(whole) > 8 * MIB
        sending = Background(lambda: near.send(buffers))
        received = bytearray()
        while len(received) < len(whole):
            if len(received) < 2 * MIB:
                time.sleep(0.01)
            received += receive(far, min(100_003, len(whole) - len(received)))
        sending.result()
        assert received == whole

    def test_received_bytes_are_scattered_over_the_buffers(self, pair: tuple[SocketStream, SocketStream]) -> None:
        near, far = pair
        source = random.Random(2)
        sizes = [source.choice([0, 1, 4096, source.randrange(20_000)]) for _ in range(1000)]
        sent = source.randbytes(sum(sizes))
        memory = bytearray(sum(sizes) + len(sizes))
        views, at = [], 0
        for size in sizes:  # one byte between each two stays untouched
            views.append(memoryview(memory)[at : at + size])
            at += size + 1
        parts = [memoryview(sent)[lo : lo + 70_001] for lo in range(0, len(sent), 70_001)]

        def trickle() -> None:
            for part in parts:
                near.send([part])

        sending = Background(trickle)
        far.receive_into(views)
        sending.result()
        assert b"".join(views) == sent
        at = 0
        for size in sizes:
            assert memory[at + size] == 0
            at += size + 1

    def test_a_send_that_was_interrupted_by_its_time_out_goes_on(self, address: Address) -> None:
        near, far = pair_at(address, 2.0)
        buffers = random_buffers(1000, 40 << 10, seed=3)
        whole = b"".join(buffers)
        sending = Background(lambda: near.send(buffers))
        time.sleep(0.3)  # by now the kernel has given the sender a partial send back
        received = bytearray(len(whole))
        far.receive_into([received])
        sending.result()
        assert received == whole
        close_all(near, far)

    @given(st.data())
    def test_partial_sends_and_receives_of_any_size(self, data: st.DataObject) -> None:
        buffers = data.draw(st.lists(st.binary(max_size=40), max_size=12))
        sizes = data.draw(st.lists(st.integers(0, 40), max_size=12))
        whole = b"".join(buffers)
        sizes.append(max(len(whole) - sum(sizes), 0))
        quotas = data.draw(st.lists(st.integers(1, 50), min_size=1))
        ours, theirs = socket.socketpair()
        with Grudging(fileno=ours.detach()) as one, Grudging(fileno=theirs.detach()) as other:
            one.quotas, other.quotas = quotas, quotas[::-1]
            SocketStream(one, "peer", SOON).send(buffers)
            one.shutdown(socket.SHUT_WR)
            into = [bytearray(size) for size in sizes]
            receiver = SocketStream(other, "peer", SOON)
            if sum(sizes) > len(whole):
                with pytest.raises(PeerLost, match="closed"):
                    receiver.receive_into(into)
            else:
                receiver.receive_into(into)
            assert b"".join(into)[: len(whole)] == whole


class TestLoss:
    def test_a_silent_peer_is_lost_after_the_time_out(self, hasty: tuple[SocketStream, SocketStream]) -> None:
        start = time.monotonic()
        with pytest.raises(PeerLost, match=r"is silent for 0.2 s") as caught:
            receive(hasty[0], 1)
        assert 0.15 < time.monotonic() - start < SOON / 2
        assert caught.value.silent

    def test_a_peer_that_stops_in_the_middle_is_lost_too(self, hasty: tuple[SocketStream, SocketStream]) -> None:
        near, far = hasty
        far.send([b"half"])
        with pytest.raises(PeerLost) as caught:
            receive(near, 8)
        assert caught.value.silent

    def test_a_peer_that_is_slow_but_not_silent_is_not_lost(self, pair: tuple[SocketStream, SocketStream]) -> None:
        near, far = pair

        def drip() -> None:
            for letter in b"slowly":
                time.sleep(0.05)
                far.send([bytes([letter])])

        dripping = Background(drip)
        assert receive(near, 6) == b"slowly"
        dripping.result()

    def test_a_byte_now_and_then_does_not_hold_a_receiver(self, address: Address) -> None:
        near, far = pair_at(address, 0.5)
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(PeerLost):
                while not stop.wait(0.1):
                    far.send([b"x"])

        dripping = Background(drip)
        with pytest.raises(PeerLost, match="did not send 1000 bytes within") as caught:
            Background(lambda: receive(near, 1000)).result()
        assert caught.value.silent
        stop.set()
        dripping.result()
        close_all(near, far)

    @pytest.mark.parametrize("way", ["send", "receive"])
    def test_a_limit_holds_over_several_calls(self, way: str, pair: tuple[SocketStream, SocketStream]) -> None:
        near, far = pair
        calls = 0
        near.limit(0.4)

        def go_on() -> None:
            nonlocal calls
            while True:
                if way == "receive":
                    far.send([b"x" * 10])
                    receive(near, 10)
                    calls += 1
                else:
                    near.send([bytes(64 << 10)])  # until the buffers are full
                time.sleep(0.02)

        with pytest.raises(PeerLost, match=r"the exchange with .* took longer than 0.4 s$") as caught:
            Background(go_on).result()
        assert caught.value.silent
        assert way == "send" or calls > 1
        if way == "receive":
            near.limit(None)
            assert receive(near, 10) == b"x" * 10

    def test_a_peer_that_takes_nothing_is_lost_after_the_time_out(
        self, hasty: tuple[SocketStream, SocketStream]
    ) -> None:
        start = time.monotonic()
        with pytest.raises(PeerLost, match=r"takes nothing for 0.2 s") as caught:
            hasty[0].send([bytes(64 * MIB)])
        assert caught.value.silent
        assert time.monotonic() - start < SOON / 2

    def test_a_peer_that_closed_is_lost_and_not_silent(self, pair: tuple[SocketStream, SocketStream]) -> None:
        near, far = pair
        closing = Background(far.close)
        with pytest.raises(PeerLost, match="closed the connection") as caught:
            receive(near, 1)
        assert not caught.value.silent
        near.close()
        closing.result()

    def test_what_a_peer_sent_before_it_closed_is_received(self, pair: tuple[SocketStream, SocketStream]) -> None:
        near, far = pair
        far.send([b"last"])
        closing = Background(far.close)
        assert receive(near, 4) == b"last"
        with pytest.raises(PeerLost):
            receive(near, 1)
        near.close()
        closing.result()

    def test_sending_to_a_peer_that_is_gone(self, pair: tuple[SocketStream, SocketStream]) -> None:
        near, far = pair
        far.abort()
        far.close()
        with pytest.raises(PeerLost) as caught:
            near.send([bytes(64 * MIB)])
        assert not caught.value.silent

    @pytest.mark.parametrize("side", [0, 1], ids=["by this side", "by the other side"])
    def test_abort_wakes_a_blocked_reader(self, pair: tuple[SocketStream, SocketStream], side: int) -> None:
        reading = Background(lambda: receive(pair[0], 1))
        time.sleep(0.05)
        assert reading.is_alive()
        start = time.monotonic()
        pair[side].abort()
        with pytest.raises(PeerLost) as caught:
            reading.result()
        assert time.monotonic() - start < SOON / 2
        assert not caught.value.silent

    def test_abort_wakes_a_blocked_sender(self, pair: tuple[SocketStream, SocketStream]) -> None:
        sending = Background(lambda: pair[0].send([bytes(64 * MIB)]))
        time.sleep(0.1)
        assert sending.is_alive()
        start = time.monotonic()
        pair[0].abort()
        with pytest.raises(PeerLost) as caught:
            sending.result()
        assert time.monotonic() - start < SOON / 2
        assert not caught.value.silent

    def test_after_abort_every_call_fails(self, pair: tuple[SocketStream, SocketStream]) -> None:
        near, _ = pair
        near.abort()
        near.abort()
        with pytest.raises(PeerLost):
            near.send([b"x"])
        with pytest.raises(PeerLost):
            receive(near, 1)


class TestClose:
    def test_last_words_are_readable_though_our_input_was_never_read(
        self, pair: tuple[SocketStream, SocketStream]
    ) -> None:
        near, far = pair
        near.send([bytes(100_000)])
        far.send([b"no, and this is why"])
        closing = Background(far.close)
        time.sleep(0.05)
        near.send([bytes(100_000)])
        assert receive(near, 19) == b"no, and this is why"
        near.close()
        closing.result()

    def test_twice_is_harmless(self, pair: tuple[SocketStream, SocketStream]) -> None:
        near, far = pair
        far.abort()
        near.close()
        near.close()
        assert near.fileno() == -1

    def test_lingers_only_shortly_for_a_peer_that_does_not_close(
        self, address: Address, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("precopy.transport.sockets._LINGER_S", 0.1)
        near, far = pair_at(address, SOON)
        start = time.monotonic()
        near.close()
        waited = time.monotonic() - start
        far.close()
        assert waited < SOON / 2

    def test_lingers_only_shortly_for_a_peer_that_may_be_silent_for_ever(
        self, address: Address, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("precopy.transport.sockets._LINGER_S", 0.1)
        near, far = pair_at(address, SOON)
        near.wait_forever()
        closing = Background(near.close)
        closing.join(SOON / 2)
        in_time = not closing.is_alive()
        far.close()
        closing.result()
        assert in_time

    def test_lingers_only_shortly_for_a_peer_that_never_stops_sending(
        self, address: Address, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("precopy.transport.sockets._LINGER_S", 0.1)
        near, far = pair_at(address, SOON)

        def chatter() -> None:
            while True:
                far.send([bytes(1000)])
                time.sleep(0.001)

        chattering = Background(chatter)
        start = time.monotonic()
        near.close()
        assert time.monotonic() - start < SOON / 2
        with pytest.raises(PeerLost):
            chattering.result()
        far.close()


class TestConnect:
    def test_nobody_listens_at_a_path(self, tmp_path: Path) -> None:
        address = Address(path=str(tmp_path / "socket"))
        with pytest.raises(PeerLost, match=rf"cannot connect to {address}: No such file"):
            connect(address, 1.0)

    def test_nobody_listens_any_more(self, address: Address) -> None:
        listener = Listener(address)
        listener.close()
        with pytest.raises(PeerLost, match="cannot connect"):
            connect(listener.address, 1.0)

    @pytest.mark.parametrize(
        "host",
        [
            "no-such-host.invalid",
            "a..b",
            "x" * 300,
        ],
    )
    def test_a_host_that_does_not_exist(self, host: str) -> None:
        with pytest.raises(PeerLost, match="cannot connect to tcp:"):
            connect(Address(host=host, port=1), 1.0)


class Counting(socket.socket):
    """A real socket that counts how often its options are set."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.options = 0

    def setsockopt(self, *arguments: Any) -> None:
        self.options += 1
        super().setsockopt(*arguments)


class TestCost:
    FRAMES = 1000

    def test_deadlines_of_frames_take_hardly_a_system_call(self) -> None:
        """Each frame's deadline is another one, by what its head was waited for."""
        ours, theirs = socket.socketpair()
        counting = Counting(theirs)
        sender, receiver = SocketStream(ours, "us", IN_TIME_S), SocketStream(counting, "them", IN_TIME_S)
        before = counting.options
        waits = random.Random(7)
        for number in range(self.FRAMES):
            sender.send([bytes([number % 256]) * 24])
            buffer = bytearray(24)
            receiver.receive_into([buffer], IN_TIME_S - waits.random() * 1e-3 * IN_TIME_S)
            assert buffer == bytes([number % 256]) * 24
        assert counting.options - before <= self.FRAMES // 50
        close_all(sender, receiver)

    @pytest.mark.parametrize("short", [0.05, 0.2, 0.93])
    def test_a_time_out_that_is_near_enough_ends_no_call_early(self, short: float) -> None:
        """After a deadline that was a little shorter, silence is still noticed after the whole time-out."""
        ours, theirs = socket.socketpair()
        sender, receiver = SocketStream(ours, "us", 0.5), SocketStream(theirs, "them", 0.5)
        sender.send([b"x"])
        receiver.receive_into([bytearray(1)], short * 0.5)
        for call in (lambda: receiver.receive_into([bytearray(1)]), lambda: receiver.receive_some(1)):
            began = time.monotonic()
            with pytest.raises(PeerLost, match=r"is silent for 0\.5 s"):
                call()
            assert time.monotonic() - began >= 0.45
        close_all(sender, receiver)
