"""The switchover: the guest is paused, the rest of it is sent, and it is given away.

Law 5: **The peer is not trusted** with the guest's time. While the guest is paused all that the destination does has to
be done within `patience`; then the guest runs on at the source, which `migration/source.py` sees to. The answer to
`Commit` has to come within the stream's time-out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from precopy.dirty import SyncStats
from precopy.migration.options import MigrationOptions
from precopy.migration.reporter import Reporter
from precopy.migration.results import Committing, Verdict
from precopy.migration.rounds import Rounds
from precopy.migration.session import Handover
from precopy.migration.verification import check_compared, send_for_comparison
from precopy.planning.model.downtime import Downtime
from precopy.ports import DeviceStates, SourceVm
from precopy.ports.clock import cpu_time
from precopy.ports.stream import SLOWEST_BYTES_PER_S
from precopy.progress import CpuTime
from precopy.wire.events import DeviceState, Prepare, Ready, Running

_SLACK = 4.0
"""A switchover is given up after the stream's time-out plus this many times its expected time. The factor allows for a
link that has become slower and for a busy machine; the bound is against a peer that delays."""


def patience(timeout_s: float, verdict: Verdict, options: MigrationOptions, ram_bytes: int) -> float:
    """Seconds that the guest may stand still before it is certain whether it is given away. ``timeout_s`` is the
    stream's, ``verdict`` the last one."""
    expected_s = max(options.downtime_limit_s, verdict.downtime_s.value or 0.0, verdict.downtime_s.high or 0.0)
    if options.verify:
        bandwidth = verdict.bandwidth_bytes_per_s.low or SLOWEST_BYTES_PER_S
        expected_s += ram_bytes / max(bandwidth, SLOWEST_BYTES_PER_S)
    return timeout_s + _SLACK * expected_s


@dataclass(frozen=True)
class SwitchedOver:
    """``verify_s``, ``verify_cpu`` and ``compared_pages`` are 0 where nothing was verified. ``running`` is what the
    destination says of itself."""

    downtime: Downtime
    verify_s: float
    verify_cpu: CpuTime
    compared_pages: int
    running: Running


class Switchover:
    """Gives ``vm`` away by ``handover``, after what ``rounds`` still has to send. ``check_cancelled`` raises where the
    user has asked for that."""

    def __init__(
        self,
        vm: SourceVm,
        rounds: Rounds,
        handover: Handover,
        reporter: Reporter,
        *,
        session: str,
        verify: bool,
        check_cancelled: Callable[[], None],
    ) -> None:
        self._vm, self._rounds, self._handover, self._reporter = vm, rounds, handover, reporter
        self._session, self._verify, self._check_cancelled = session, verify, check_cancelled
        self._channel, self._clock = rounds.page_source.channel, rounds.page_source.clock

    def run(self, sync: SyncStats, patience_s: float) -> SwitchedOver:
        """``sync`` is the one before. Raises `PeerLost` where it takes longer than ``patience_s``, and what else can go
        wrong; where the guest is then, the handover knows."""
        clock, channel = self._clock, self._channel
        self._reporter.phase = "switchover"
        self._check_cancelled()
        self._reporter.tick(force=True)
        began = clock.now()
        self._vm.pause()
        channel.stream.limit(patience_s)
        self._rounds.paused()
        paused = clock.now()
        final = self._rounds.sync()
        synced = clock.now()
        last = self._rounds.send(sync, final=final)
        sent = clock.now()
        channel.send(DeviceState(self._vm.save_state() if isinstance(self._vm, DeviceStates) else b""))
        saved = self._reporter.saved_at = clock.now()
        used = cpu_time()
        compared = self._compare() if self._verify else 0
        channel.send(Prepare(compared))
        ready = channel.expect(Ready)
        check_compared(ready, compared)
        verify_cpu = cpu_time() - used if self._verify else CpuTime()
        # Verification is everything from the saved state to the answer but what the destination says it took to load
        # that state, which the guest would have waited for in any case.
        spent = clock.now() - saved
        verify_s = spent - min(max(ready.load_s, 0.0), spent) if self._verify else 0.0
        committing = clock.now()
        running = self._commit()
        done = clock.now()
        with contextlib.suppress(Exception):  # the guest is gone: a listener that fails cannot change that
            self._reporter.round(last)
        downtime = Downtime(
            pause_s=paused - began,
            final_sync_s=synced - paused,
            final_send_s=sent - synced,
            state_s=committing - sent - verify_s,
            commit_s=done - committing,
        )
        return SwitchedOver(downtime, verify_s, verify_cpu, compared, running)

    def _compare(self) -> int:
        self._reporter.phase = "verify"
        return send_for_comparison(self._rounds.page_source)

    def _commit(self) -> Running:
        # Told first, so that no observer takes a commit that was sent for unsent.
        self._reporter.tell(Committing(self._session))
        running = self._handover.commit(self._begin_commit)
        self._reporter.phase = "done"
        return running

    def _begin_commit(self) -> None:
        self._check_cancelled()
        self._reporter.phase = "commit"
