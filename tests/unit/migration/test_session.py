"""What names a session, and what an end says of why it leaves: the same for a guest and for a program's memory."""

from __future__ import annotations

import pytest

from precopy.errors import Cancelled, HelloMismatch, LocalProtocolError, OutcomeUnknown, PeerLost
from precopy.migration.channel import Channel
from precopy.migration.session import GuestIs, Handover, check_session, new_session, reason_of
from precopy.wire.default import DEFAULT_FORMAT
from precopy.wire.events import Hello, Role
from support.scripted import ScriptedStream


def test_a_new_session_is_named_as_sessions_are() -> None:
    names = {new_session() for _ in range(100)}
    assert len(names) == 100
    for name in names:
        check_session(Hello(name, "a machine", 4096, ()))


@pytest.mark.parametrize(
    "name", ["", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 32 + "\n", "../" + "a" * 29, "\u0660" * 32]
)
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(HelloMismatch, match="not named as sessions are"):
        check_session(Hello(name, "a machine", 4096, ()))


@pytest.mark.parametrize("side", ["destination", "primary", "standby"])
def test_each_side_gives_its_reason_in_the_same_words(side: str) -> None:
    assert reason_of(PeerLost("gone"), side) == "gone"
    assert reason_of(KeyboardInterrupt(), side) == f"the {side} was interrupted by its user"
    assert reason_of(ZeroDivisionError("secret"), side) == f"internal error at the {side}: ZeroDivisionError"


def test_at_home_no_side_is_named() -> None:
    assert reason_of(PeerLost("gone")) == "gone"
    assert reason_of(KeyboardInterrupt()) == "interrupted by the user"
    assert reason_of(ZeroDivisionError("secret")) == "internal error: ZeroDivisionError"


def handover() -> tuple[Handover, ScriptedStream]:
    """Of a session that has not been opened, so that a commit of it cannot be sent."""
    stream, _ = ScriptedStream.pair()
    return Handover(Channel(stream, DEFAULT_FORMAT(Role.SOURCE)), "a" * 32, "ask there"), stream


def test_nothing_is_given_away_where_the_check_refuses() -> None:
    given, stream = handover()

    def refuse() -> None:
        raise Cancelled("not now")

    with pytest.raises(Cancelled) as raised:
        given.commit(refuse)
    assert given.guest_is is GuestIs.HERE
    assert given.outcome(raised.value) is raised.value
    assert stream.sent == 0
    done: list[int] = []
    given.while_here(lambda: done.append(1))
    assert done == [1]


def test_after_any_failure_of_a_commit_the_outcome_is_unknown() -> None:
    given, _ = handover()
    with pytest.raises(LocalProtocolError) as raised:
        given.commit()
    assert given.guest_is is GuestIs.UNKNOWN
    outcome = given.outcome(raised.value)
    assert isinstance(outcome, OutcomeUnknown)
    assert outcome.session == "a" * 32
    assert str(outcome).endswith("ask there")
    done: list[int] = []
    given.while_here(lambda: done.append(1))
    assert done == []
