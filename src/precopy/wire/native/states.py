"""Which side may send which frame in which state: laws and the whole table.

Laws:

- **At most one side runs** (law 4). The source may run the guest in every state before COMMITTING; the destination
  only in DONE. In COMMITTING neither does. A source that sent `Commit` and hears nothing does not know the outcome.
- Every frame that is not in the table is a protocol error, at once: `LocalProtocolError` where this side was about to
  send it, `PeerProtocolError` where the other side did.
- `Abort` may come from either side in every state but DONE and CLOSED; in COMMITTING only from the destination.
- **Only a whole point is given away.** The memory of a program has no `DeviceState`: its rounds end in a `Point`, and
  `Commit` may follow only where no page has come since the last one (POINT, and not INCREMENT).

Both sides walk through the same states, because each frame moves sender and receiver alike.
"""

from __future__ import annotations

import enum

from precopy.wire.events import (
    Abort,
    Alive,
    Commit,
    Compare,
    DeviceState,
    Hello,
    Pages,
    Point,
    PointAck,
    Prepare,
    Ready,
    Role,
    RoundAck,
    RoundEnd,
    Running,
    Welcome,
)
from precopy.wire.native.frames import Frame


class State(enum.Enum):
    """Where a migration stands, for both ends."""

    OPENING = "opening"
    GREETED = "greeted"
    ROUND = "round"
    ROUND_ENDED = "round ended"
    POINT_ENDED = "point ended"
    POINT = "point"
    INCREMENT = "increment"
    SWITCHOVER = "switchover"
    PREPARING = "preparing"
    READY = "ready"
    COMMITTING = "committing"
    DONE = "done"
    CLOSED = "closed"


_S, _D = Role.SOURCE, Role.DESTINATION

TRANSITIONS: dict[State, dict[tuple[Role, type[Frame]], State]] = {
    State.OPENING: {(_S, Hello): State.GREETED},
    State.GREETED: {(_D, Welcome): State.ROUND},
    State.ROUND: {
        (_S, Alive): State.ROUND,
        (_S, Pages): State.ROUND,
        (_S, RoundEnd): State.ROUND_ENDED,
        (_S, DeviceState): State.SWITCHOVER,
        (_S, Point): State.POINT_ENDED,
    },
    State.ROUND_ENDED: {(_D, RoundAck): State.ROUND},
    State.POINT_ENDED: {(_D, PointAck): State.POINT},
    State.POINT: {
        (_S, Alive): State.POINT,
        (_S, Pages): State.INCREMENT,
        (_S, Point): State.POINT_ENDED,
        (_S, Commit): State.COMMITTING,
    },
    State.INCREMENT: {
        (_S, Alive): State.INCREMENT,
        (_S, Pages): State.INCREMENT,
        (_S, Point): State.POINT_ENDED,
    },
    State.SWITCHOVER: {(_S, Compare): State.SWITCHOVER, (_S, Prepare): State.PREPARING},
    State.PREPARING: {(_D, Ready): State.READY},
    State.READY: {(_S, Commit): State.COMMITTING},
    State.COMMITTING: {(_D, Running): State.DONE},
    State.DONE: {},
    State.CLOSED: {},
}

for _state, _moves in TRANSITIONS.items():
    if _state not in (State.DONE, State.CLOSED):
        _moves[_D, Abort] = State.CLOSED
        if _state is not State.COMMITTING:  # what was given away cannot be taken back
            _moves[_S, Abort] = State.CLOSED


def next_state(state: State, sender: Role, frame: type[Frame]) -> State | None:
    """The state after ``sender`` sent ``frame`` in ``state``, or None where that is not allowed."""
    return TRANSITIONS[state].get((sender, frame))


def allowed(state: State, sender: Role) -> tuple[str, ...]:
    """Names of the frames that ``sender`` may send in ``state``, for messages."""
    return tuple(frame.__name__ for role, frame in TRANSITIONS[state] if role is sender)
