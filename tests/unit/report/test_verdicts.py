"""Verdicts in words, the line that shows them on a terminal, and the names that options have for policies."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.cli.migrate import migrate
from precopy.migration import Downtime, Migrated, MigrationOptions, Progress, Range, Verdict
from precopy.names import CONVERGENCE_POLICIES, EVERYDAY_CLEAR_POLICIES, THROTTLE_MODES, TIMEOUT_POLICIES
from precopy.planning import Action
from precopy.planning.policies import POLICIES
from precopy.ports import Throttled
from precopy.report.kinds.migrate import throttled_line
from precopy.report.kinds.shared import progress_line
from precopy.report.live import LiveProgress
from precopy.report.verdicts import after_round, durations, expected_line, sentence
from precopy.units import parse_duration

MB = 1e6


def exactly(value: float | None) -> Range:
    return Range(value, value, value)


FINE = Verdict(
    round=3,
    elapsed_s=1.5,
    action=Action.GO_ON.value,
    reason="48 ms of downtime now, 12 ms at best",
    downtime_limit_s=0.3,
    converges=True,
    more_rounds=exactly(3.0),
    downtime_s=Range(0.048, 0.041, 0.055),
    total_s=Range(3.6, 3.53, 3.64),
    smallest_downtime_limit_s=Range(0.012, 0.01, 0.014),
    largest_dirty_rate_bytes_per_s=90 * MB,
    dirty_rate_bytes_per_s=40 * MB,
    bandwidth_bytes_per_s=Range(100 * MB, 95 * MB, 105 * MB),
    remaining_bytes=4 << 20,
    throttle_to=0.0,
)
HOPELESS = replace(
    FINE,
    converges=False,
    action=Action.GIVE_UP.value,
    dirty_rate_bytes_per_s=90 * MB,
    largest_dirty_rate_bytes_per_s=60 * MB,
    smallest_downtime_limit_s=Range(1.5, 1.2, 1.9),
)
OPEN = replace(HOPELESS, action=Action.WAIT.value, converges=None, smallest_downtime_limit_s=Range(0.35, 0.25, 0.52))
ENDLESS = replace(HOPELESS, smallest_downtime_limit_s=exactly(None), dirty_rate_bytes_per_s=120 * MB)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (FINE, "converges in 3 more rounds, downtime 41 to 55 ms, done in 2.0 to 2.1 s"),
        (
            replace(FINE, more_rounds=exactly(1.0), total_s=exactly(3.6), downtime_s=exactly(0.048)),
            "converges in 1 more round, downtime 48 ms, done in 2.1 s",
        ),
        (
            replace(FINE, more_rounds=Range(2.0, 1.0, 4.0), downtime_s=Range(0.2, 0.0009, 1.2), total_s=exactly(1.2)),
            "converges in 1 to 4 more rounds, downtime 900 us to 1.2 s, done in 0 us",
        ),
        (
            replace(FINE, action=Action.THROTTLE.value, throttle_to=0.4, total_s=exactly(3.6)),
            "throttling by 40 %; converges in 3 more rounds, downtime 41 to 55 ms, done in 2.1 s",
        ),
        (
            replace(FINE, throttle_to=0.4, total_s=exactly(3.6)),
            "throttled by 40 %; converges in 3 more rounds, downtime 41 to 55 ms, done in 2.1 s",
        ),
        (replace(FINE, action=Action.SWITCH_OVER.value), "switching over: downtime 41 to 55 ms"),
        (
            replace(HOPELESS, action=Action.SWITCH_OVER.value, downtime_s=Range(1.6, 1.2, None)),
            "switching over above the downtime limit: downtime at least 1.2 s",
        ),
        (HOPELESS, "will not converge: dirty rate is 0.90 of the bandwidth; smallest downtime limit 1.9 s"),
        (
            replace(HOPELESS, action=Action.WAIT.value, throttle_to=0.25),
            (
                "waiting for a local minimum, throttled by 25 %; will not converge: "
                "dirty rate is 0.90 of the bandwidth; smallest downtime limit 1.9 s"
            ),
        ),
        (
            OPEN,
            (
                "waiting for a local minimum; may not converge: dirty rate is 0.86 to 0.95 of the bandwidth; "
                "smallest downtime limit 250 to 520 ms"
            ),
        ),
        (
            replace(OPEN, action=Action.GO_ON.value, smallest_downtime_limit_s=Range(None, 0.25, None)),
            (
                "may not converge: dirty rate is 0.86 to 0.95 of the bandwidth; "
                "smallest downtime limit at least 250 ms; "
                "to be sure, the dirty rate has to fall below 60 MB/s or the bandwidth to rise above about 150 MB/s"
            ),
        ),
        (
            replace(
                FINE,
                converges=None,
                more_rounds=Range(3.0, 2.0, 6.0),
                downtime_s=Range(0.048, 0.015, 0.09),
                total_s=Range(3.6, 3.5, 4.6),
            ),
            "probably converges in 2 to 6 more rounds, downtime 15 to 90 ms (limit 300 ms), done in 2.0 to 3.1 s",
        ),
        (
            ENDLESS,
            (
                "will not converge: dirty rate is 1.20 of the bandwidth; no downtime limit helps: "
                "the dirty rate has to fall below 60 MB/s or the bandwidth to rise above about 200 MB/s"
            ),
        ),
        (
            replace(ENDLESS, largest_dirty_rate_bytes_per_s=0.0),
            (
                "will not converge: dirty rate is 1.20 of the bandwidth; no downtime limit helps: "
                "the dirty rate has to fall or the bandwidth to rise, and a higher limit is needed besides"
            ),
        ),
        (
            replace(HOPELESS, smallest_downtime_limit_s=Range(0.2, 0.1, 0.25)),
            "will not converge in the rounds and the time that it has: dirty rate is 0.90 of the bandwidth",
        ),
        (
            replace(HOPELESS, dirty_rate_bytes_per_s=1900 * MB),
            "will not converge: dirty rate is 19 times the bandwidth; smallest downtime limit 1.9 s",
        ),
        (
            replace(HOPELESS, bandwidth_bytes_per_s=exactly(0.0)),
            "will not converge: dirty rate is 90 MB/s; smallest downtime limit 1.9 s",
        ),
    ],
)
def test_sentences(verdict: Verdict, said: str) -> None:
    assert sentence(verdict) == said
    assert after_round(verdict) == f"after round 3: {said}"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.0412, 0.0549, "41 to 55 ms"),
        (0.0411, 0.0414, "41 ms"),
        (0.00411, 0.00449, "4.1 to 4.5 ms"),
        (0.00996, 0.0104, "10 ms"),
        (0.9, 1.1, "900 ms to 1.1 s"),
        (0.0, 0.0, "0 us"),
        (12.34, 123.4, "12 to 123 s"),
        (0.2, None, "at least 200 ms"),
        (None, None, "without end"),
    ],
)
def test_ranges(low: float | None, high: float | None, said: str) -> None:
    assert durations(Range(low, low, high)) == said


@given(st.floats(1e-6, 1e4))
def test_limit_that_is_shown_is_enough_and_not_much_more(seconds: float) -> None:
    said = sentence(replace(HOPELESS, downtime_limit_s=0.0, smallest_downtime_limit_s=exactly(seconds)))
    shown = parse_duration(said.rpartition("limit ")[2])
    step = max(0.1 * seconds, 1e-6)
    assert seconds * (1 - 1e-5) <= shown <= seconds + step * 1.01


def migrated(**changed: Any) -> Migrated:
    done = Migrated(
        session="s",
        guest="kvm",
        tracker="dirty-log",
        tracker_why="what the guest has",
        tracker_pause_s=0.0,
        clear="deferred",
        clear_chunk_shift=15,
        policy="precopy",
        rounds=(),
        verdicts=(replace(FINE, round=1), replace(FINE, round=2, downtime_s=exactly(0.02))),
        downtime=Downtime(0.001, 0.004, 0.04, 0.002, 0.001),
        downtime_limit_s=0.3,
        total_s=2.7,
        verify_s=0.5,
        setup_s=0.0,
        sent_bytes=1,
        ram_bytes=1,
        compared_pages=0,
        throttled=Throttled((0.0,), 0.0),
    )
    return replace(done, **changed)


class TestExpected:
    def test_third_round_s_verdict_beside_what_came(self) -> None:
        verdicts = tuple(replace(FINE, round=number, downtime_s=exactly(0.01 * number)) for number in (1, 2, 3, 4))
        assert expected_line(migrated(verdicts=verdicts)) == (
            "after round 3: expected downtime 30 ms, total 3.5 to 3.6 s; measured 48 ms, 2.2 s"
        )

    def test_last_one_where_there_were_fewer(self) -> None:
        assert expected_line(migrated()).startswith("after round 2: expected downtime 20 ms, ")

    def test_nothing_where_there_was_none(self) -> None:
        assert expected_line(migrated(verdicts=())) == ""


def test_what_throttling_cost() -> None:
    assert throttled_line(Throttled((0.0, 0.0), 0.0)) == ""
    assert throttled_line(Throttled((0.6, 0.2), 2.0)) == (
        "throttled for 2.00 s: 20 % of the vCPUs' time was taken (600.0 ms, 200.0 ms)"
    )


PROGRESS = Progress("rounds", 4, 3 << 20, 5 << 20, 40 * MB, 100 * MB, 1.6, 0.048, 2.0)


def test_progress_in_one_line() -> None:
    assert progress_line(PROGRESS) == (
        "round 4 | 3.0 MiB sent | 5.0 MiB left | dirty rate 40 MB/s | bandwidth 100 MB/s | ends in 2.00 s"
    )
    first = replace(PROGRESS, phase="setup", dirty_rate_bytes_per_s=0.0, expected_downtime_s=None, eta_s=None)
    assert progress_line(first) == "setup | 3.0 MiB sent | 5.0 MiB left | bandwidth 100 MB/s"


_END = "that was all"


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, height: int) -> Iterator[Callable[[], str]]:
    """A pseudo-terminal as this process's stderr; returns what was written to it so far, without control sequences."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "200"), ("LINES", str(height))):
        monkeypatch.setenv(name, value)
    reader, writer = os.openpty()
    with os.fdopen(writer, "w") as stderr, os.fdopen(reader, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", stderr)

        def text() -> str:
            stderr.write(_END)
            stderr.flush()
            data = b""
            while not data.endswith(_END.encode()):  # a terminal's other end hears of it a little later
                data += screen.read(1 << 16)
            return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode().removesuffix(_END))

        yield text


class TestLive:
    SAID = "after round 3: converges in 3 more rounds, downtime 41 to 55 ms, done in 2.0 to 2.1 s"

    def lines(self, monkeypatch: pytest.MonkeyPatch, height: int) -> list[str]:
        with terminal(monkeypatch, height) as text:
            with LiveProgress() as live:
                for event in (PROGRESS, FINE, PROGRESS):
                    live.update(event)
            return [line.strip() for line in re.split(r"[\r\n]+", text())]

    def test_two_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = self.lines(monkeypatch, 24)
        assert self.SAID in lines
        assert any(line.endswith("bandwidth 100 MB/s | ends in 2.00 s") for line in lines)

    def test_verdict_first_where_there_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = self.lines(monkeypatch, 3)
        assert any(f"{self.SAID} | round 4 | 3.0 MiB sent | " in line for line in lines)

    def test_nothing_where_stderr_is_no_terminal(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with (tmp_path / "stderr").open("w") as stderr:
            monkeypatch.setattr(sys, "stderr", stderr)
            with LiveProgress() as live:
                live.update(PROGRESS)
                live.update(FINE)
        assert (tmp_path / "stderr").read_text() == ""


class TestNames:
    """What the options offer is what there is."""

    def choices(self, option: str) -> list[str]:
        (found,) = (one for one in migrate.params if one.name == option)
        assert isinstance(found.type, click.Choice)
        return list(found.type.choices)

    def test_policies(self) -> None:
        assert self.choices("policy") == list(CONVERGENCE_POLICIES) == list(POLICIES)

    def test_timeouts_and_throttles(self) -> None:
        assert self.choices("on_timeout") == list(TIMEOUT_POLICIES)
        assert self.choices("throttle_mode") == list(THROTTLE_MODES)

    def test_clear_policies_of_a_migration(self) -> None:
        assert self.choices("clear") == list(EVERYDAY_CLEAR_POLICIES) == ["merged", "deferred"]

    def test_defaults(self) -> None:
        defaults = {one.name: one.default for one in migrate.params}
        options = MigrationOptions()
        for name in ("policy", "max_total", "on_timeout", "throttle_mode", "max_throttle"):
            assert defaults[name] == getattr(options, name)
