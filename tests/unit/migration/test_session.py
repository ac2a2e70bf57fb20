"""What names a session, and what an end says of why it leaves: the same for a guest and for a program's memory."""

from __future__ import annotations

import pytest

from precopy.errors import HelloMismatch, PeerLost
from precopy.migration.session import check_session, new_session, reason_of
from precopy.wire.events import Hello


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
