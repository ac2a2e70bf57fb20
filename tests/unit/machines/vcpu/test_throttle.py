"""Brakes, and the rules that say how much time is taken, with simulated vCPUs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.errors import GuestError, KernelCallError, UsageError
from precopy.machines.vcpu.gate import Times, VcpuGate
from precopy.machines.vcpu.throttle import DirtyQuota, DutyCycle, Rule, VcpuThrottle
from precopy.machines.workload import params
from precopy.machines.workload.pacing import Pacer
from precopy.ports import Throttled
from precopy.ports.vm import MAX_THROTTLE
from precopy.units import PAGE_SIZE
from support.patience import IN_TIME_S

HOUR = 3600.0


def nothing() -> None:
    """Stops no vCPU."""


@pytest.fixture
def gate() -> VcpuGate:
    """Of a vCPU that runs."""
    gate = VcpuGate()
    gate.clear()
    return gate


def in_thread(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def ends(thread: threading.Thread) -> bool:
    thread.join(IN_TIME_S)
    return not thread.is_alive()


class TestBrake:
    def test_is_set_at_first_and_takes_nothing_while_it_is(self) -> None:
        gate = VcpuGate()
        assert gate.is_set()
        gate.sleep_for(HOUR, nothing)
        gate.throttle_sleep()
        gate.wait()
        assert gate.times == Times(0, 0)
        assert not gate.sleeping

    def test_time_runs_while_it_is_not_set(self, gate: VcpuGate) -> None:
        gate.clear()
        time.sleep(0.01)
        gate.set()
        times = gate.times
        assert times.ran_s >= 0.01
        assert times.throttled_s == 0
        gate.set()
        assert gate.times == times

    def test_a_rest_lasts_as_long_as_was_said_and_is_what_was_taken(self, gate: VcpuGate) -> None:
        began = time.monotonic()
        gate.sleep_for(0.03, nothing)
        assert gate.sleeping
        gate.throttle_sleep()
        assert time.monotonic() - began >= 0.03
        assert not gate.sleeping
        times = gate.times
        assert 0.03 <= times.throttled_s <= times.ran_s
        gate.throttle_sleep()
        assert gate.times.throttled_s == times.throttled_s

    def test_a_rest_begins_once_the_vcpu_was_stopped(self, gate: VcpuGate) -> None:
        taken: list[float] = []

        def interrupt() -> None:
            assert gate.sleeping
            time.sleep(0.03)
            taken.append(gate.times.throttled_s)

        gate.sleep_for(HOUR, interrupt)
        assert taken == [0]
        gate.release()

    def test_a_vcpu_that_rests_is_not_told_to_rest_again(self, gate: VcpuGate) -> None:
        gate.sleep_for(0.001, nothing)
        gate.sleep_for(HOUR, pytest.fail)
        gate.throttle_sleep()
        assert not gate.sleeping

    def test_an_interrupt_that_fails_leaves_no_rest_without_end(self, gate: VcpuGate) -> None:
        def fail() -> None:
            raise GuestError("it does not stop")

        with pytest.raises(GuestError):
            gate.sleep_for(0.001, fail)
        assert ends(in_thread(gate.throttle_sleep))

    def test_a_pause_that_comes_while_the_vcpu_is_interrupted_ends_its_rest(self, gate: VcpuGate) -> None:
        def pause_and_resume() -> None:
            gate.set()
            gate.clear()

        gate.sleep_for(HOUR, pause_and_resume)
        assert not gate.sleeping
        assert ends(in_thread(gate.throttle_sleep))

    @pytest.mark.parametrize("end", [VcpuGate.set, VcpuGate.release])
    @pytest.mark.parametrize("stand_still", [VcpuGate.throttle_sleep, VcpuGate.wait, lambda gate: gate.wait(0.02)])
    def test_a_rest_is_ended_by(
        self, gate: VcpuGate, end: Callable[[VcpuGate], None], stand_still: Callable[[VcpuGate], None]
    ) -> None:
        gate.sleep_for(HOUR, nothing)
        thread = in_thread(lambda: stand_still(gate))
        time.sleep(0.05)
        assert thread.is_alive()
        end(gate)
        assert not gate.sleeping
        assert gate.times.throttled_s >= 0.05
        gate.set()  # what waits on waits for this
        assert ends(thread)

    def test_its_own_clock_stands_still_while_the_vcpu_rests(self, gate: VcpuGate) -> None:
        gate.sleep_for(0.05, nothing)
        own = gate.now()
        gate.throttle_sleep()
        before, now, after = time.monotonic(), gate.now(), time.monotonic()
        assert now - own < after - own
        assert before <= now + gate.times.throttled_s <= after

    def test_a_wait_lasts_longer_by_what_is_taken_in_it(self, gate: VcpuGate) -> None:
        began = time.monotonic()
        thread = in_thread(lambda: gate.wait(1.0))
        for _ in range(3):
            time.sleep(0.005)
            gate.sleep_for(0.02, nothing)
            while gate.sleeping:
                time.sleep(0.001)
        assert ends(thread)
        assert time.monotonic() - began >= 1.06
        assert gate.times.throttled_s == pytest.approx(0.06, abs=1e-6)

    def test_a_pacer_does_not_catch_up_with_what_was_taken(self, gate: VcpuGate) -> None:
        page = np.zeros(PAGE_SIZE // 8, np.uint64)
        page[params.INTERVAL_NS // 8] = 10_000_000
        pacer = Pacer(page, gate)
        pacer.restart()
        gate.sleep_for(0.1, nothing)
        began = time.monotonic()
        for _ in range(3):
            pacer.wait()
        assert time.monotonic() - began >= 0.1 + 0.03 - 0.001


class Simulated:
    """A vCPU under a rule, which comes late to whatever it is told, and dirties ``pages_per_s`` while it runs."""

    def __init__(self, pages_per_s: float = 0.0) -> None:
        self.ran_s = self.throttled_s = self.pages = 0.0
        self._rate = pages_per_s

    @property
    def times(self) -> Times:
        return Times(self.ran_s, self.throttled_s)

    @property
    def worked_s(self) -> float:
        return self.ran_s - self.throttled_s

    def dirtied(self) -> int:
        return int(self.pages)

    def rest(self, seconds: float) -> None:
        self.ran_s += seconds
        self.throttled_s += seconds

    def work(self, seconds: float) -> None:
        self.ran_s += seconds
        self.pages += self._rate * seconds

    def under(self, rule: Rule, lateness: Iterator[float], looks: int) -> None:
        self.work(0.001)
        for _ in range(looks):
            sleep_s, run_s = rule.look(self.times)
            assert sleep_s >= 0
            assert run_s >= 0.00099
            if sleep_s:
                self.rest(sleep_s + next(lateness))
            self.work(run_s + next(lateness))


LATENESS = st.lists(st.floats(0, 0.001), min_size=7, max_size=7)


def over_and_over(lateness: list[float]) -> Iterator[float]:
    while True:
        yield from lateness


class TestDutyCycle:
    @given(share=st.floats(0.01, MAX_THROTTLE), lateness=LATENESS)
    def test_takes_its_share_also_where_it_is_never_on_time(self, share: float, lateness: list[float]) -> None:
        vcpu = Simulated()
        vcpu.under(DutyCycle(share, vcpu.times), over_and_over(lateness), looks=300)
        # A share so small that the lateness of a rest alone is more cannot be had.
        assert vcpu.throttled_s / vcpu.ran_s == pytest.approx(share, abs=0.02)

    @pytest.mark.parametrize(("share", "slice_s"), [(0.2, 0.01), (0.5, 0.01), (0.9, 0.01), (0.95, 0.02), (0.99, 0.1)])
    def test_slices(self, share: float, slice_s: float) -> None:
        vcpu = Simulated()
        rule = DutyCycle(share, vcpu.times)
        vcpu.work((1 - share) * slice_s)
        sleep_s, run_s = rule.look(vcpu.times)
        assert sleep_s == pytest.approx(share * slice_s)
        assert run_s == pytest.approx((1 - share) * slice_s)

    def test_a_host_that_stood_still_is_made_up_for_by_one_slice(self) -> None:
        vcpu = Simulated()
        rule = DutyCycle(0.5, vcpu.times)
        vcpu.work(60)
        sleep_s, run_s = rule.look(vcpu.times)
        assert sleep_s == pytest.approx(0.01)
        vcpu.rest(sleep_s)
        vcpu.work(run_s)
        assert rule.look(vcpu.times)[0] == pytest.approx(0.005)

    def test_a_pause_is_not_made_up_for(self) -> None:
        vcpu = Simulated()
        rule = DutyCycle(0.5, vcpu.times)
        vcpu.work(0.005)
        vcpu.rest(rule.look(vcpu.times)[0])
        assert rule.look(vcpu.times)[0] == pytest.approx(0)


class TestDirtyQuota:
    QUOTA = 1000.0

    def quota(self, vcpu: Simulated) -> DirtyQuota:
        return DirtyQuota(self.QUOTA, vcpu.dirtied, vcpu.times)

    @given(excess=st.floats(1.1, 30), lateness=LATENESS)
    def test_a_vcpu_that_dirties_more_dirties_what_it_may(self, excess: float, lateness: list[float]) -> None:
        rate = excess * self.QUOTA
        vcpu = Simulated(rate)
        vcpu.under(self.quota(vcpu), over_and_over(lateness), looks=300)
        one_run = rate * 0.011
        assert vcpu.pages <= self.QUOTA * vcpu.ran_s + one_run + 1
        late = 300 * 0.001  # what a late end of a rest costs is not asked for
        assert vcpu.pages >= self.QUOTA * (vcpu.ran_s - 2 * late) - one_run

    @given(part=st.floats(0, 1), lateness=LATENESS)
    def test_from_a_vcpu_that_dirties_less_nothing_is_taken(self, part: float, lateness: list[float]) -> None:
        vcpu = Simulated(part * self.QUOTA)
        vcpu.under(self.quota(vcpu), over_and_over(lateness), looks=300)
        assert vcpu.throttled_s <= 0.002  # half a page of rounding, once

    def test_what_was_dirtied_before_does_not_count(self) -> None:
        vcpu = Simulated(1e6)
        vcpu.work(10)
        rule = self.quota(vcpu)
        assert rule.look(vcpu.times)[0] == 0

    def test_a_vcpu_that_dirtied_nothing_for_long_may_dirty_a_little_at_once(self) -> None:
        vcpu = Simulated()
        rule = self.quota(vcpu)
        for _ in range(1000):
            vcpu.work(0.01)
            assert rule.look(vcpu.times)[0] == 0
        vcpu.work(0.01)
        vcpu.pages += 109
        assert rule.look(vcpu.times)[0] == 0
        vcpu.work(0.01)
        vcpu.pages += 111
        assert rule.look(vcpu.times)[0] == pytest.approx(0.1)

    @given(worked_s=st.floats(0.001, 10), pages=st.integers(0, 1 << 40))
    def test_no_rest_is_too_long(self, worked_s: float, pages: int) -> None:
        vcpu = Simulated()
        rule = self.quota(vcpu)
        vcpu.work(worked_s)
        vcpu.pages += pages
        sleep_s, _ = rule.look(vcpu.times)
        assert sleep_s <= min(1.0, worked_s * 99 * (1 + 1e-9))
        vcpu.rest(sleep_s)
        assert rule.look(vcpu.times)[0] == pytest.approx(0, abs=1e-9), "what could not be taken is forgiven"


@pytest.fixture
def throttle(gate: VcpuGate) -> Iterator[VcpuThrottle]:
    throttle = VcpuThrottle([gate], lambda _: None)
    yield throttle
    throttle.close()


class TestThrottle:
    @pytest.mark.parametrize("bytes_per_s", [0, -1, float("nan"), float("inf")])
    def test_a_limit_that_is_none_is_refused(self, throttle: VcpuThrottle, bytes_per_s: float) -> None:
        with pytest.raises(UsageError, match="a dirty limit has to be above 0"):
            throttle.limit(bytes_per_s, lambda _: 0)
        assert not throttle.limits

    def test_one_rule_is_in_force_at_a_time(self, throttle: VcpuThrottle) -> None:
        throttle.limit(1, lambda _: 0)
        assert throttle.limits
        throttle.throttle_to(0.5)
        assert not throttle.limits
        throttle.limit(1, lambda _: 0)
        throttle.unlimit()
        assert not throttle.limits
        assert throttle._thread is None

    def test_what_fails_is_told_to_whoever_throttles_next(self, throttle: VcpuThrottle) -> None:
        looks = 0

        def dirtied(_: int) -> int:
            nonlocal looks
            looks += 1
            if looks > 1:
                raise KernelCallError("KVM_RESET_DIRTY_RINGS", "the VM", 5)
            return 0

        throttle.limit(1, dirtied)
        assert throttle._thread is not None
        assert ends(throttle._thread)
        with pytest.raises(KernelCallError):
            throttle.throttle_to(0.5)
        throttle.throttle_to(0.5)

    def test_or_forgotten_where_nothing_is_to_be_taken(self, throttle: VcpuThrottle) -> None:
        def dirtied(_: int) -> int:
            raise KernelCallError("KVM_RESET_DIRTY_RINGS", "the VM", 5)

        with contextlib.suppress(KernelCallError):  # the first count is taken at once
            throttle.limit(1, dirtied)
        throttle.throttle_to(0)
        throttle.throttle_to(0.5)

    def test_a_limit_takes_from_who_exceeds_it_alone(self) -> None:
        gates = [VcpuGate(), VcpuGate()]
        throttle = VcpuThrottle(gates, lambda _: None)
        for gate in gates:
            gate.clear()
        pages = iter(range(0, 1 << 40, 100))
        throttle.limit(PAGE_SIZE, lambda number: 0 if number == 0 else next(pages))
        end = time.monotonic() + IN_TIME_S
        while not throttle.throttled().throttled_s[1]:
            assert time.monotonic() < end
            time.sleep(0.001)
        throttle.close()
        assert throttle.throttled().throttled_s[0] == 0


def test_the_share_that_was_taken() -> None:
    assert Throttled((1.0, 2.0), 3.0).share == 0.5
    assert Throttled((), 0.0).share == 0
    assert Throttled((1.0, 2.0), 3.0) - Throttled((0.5, 0.5), 1.0) == Throttled((0.5, 1.5), 2.0)
