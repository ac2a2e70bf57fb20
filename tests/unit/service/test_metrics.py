"""The Prometheus endpoint, asked over HTTP; what it tells is what docs/metrics.md says."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from precopy.errors import UsageError
from precopy.migration import Progress, Range, Round, Verdict
from precopy.service.metrics import PHASES, MetricsServer, MigrationMetrics
from precopy.transport import Address
from support.commands import called, wait_for
from support.patience import IN_TIME_S

LOCAL = Address(host="127.0.0.1", port=0)
PROGRESS = Progress("rounds", 2, 3 << 20, 5 << 20, 4e7, 1e8, 1.6, 0.048, 2.0)
ROUND = Round(
    **{**dict.fromkeys((one.name for one in fields(Round)), 0), "number": 1, "sync_s": 0.002, "transfer_s": 0.7}
)
VERDICT = Verdict(
    round=1,
    elapsed_s=1.5,
    action="go on",
    reason="",
    downtime_limit_s=0.3,
    converges=True,
    more_rounds=Range(3.0, 2.0, 4.0),
    downtime_s=Range(0.048, 0.041, 0.055),
    total_s=Range(3.6, 3.5, 3.7),
    smallest_downtime_limit_s=Range(0.02, 0.01, None),
    largest_dirty_rate_bytes_per_s=None,
    dirty_rate_bytes_per_s=4e7,
    bandwidth_bytes_per_s=Range(1e8, 9e7, 1.1e8),
    remaining_bytes=4 << 20,
    throttle_to=0.4,
)


@pytest.fixture
def figures() -> MigrationMetrics:
    return MigrationMetrics()


@pytest.fixture
def server(figures: MigrationMetrics) -> Iterator[MetricsServer]:
    with MetricsServer(LOCAL, figures) as server:
        yield server


def scrape(server: MetricsServer) -> dict[str, float]:
    """Each sample by its name and labels, such as ``rounds_total`` or ``expected_downtime_seconds low``."""
    with urllib.request.urlopen(server.url, timeout=IN_TIME_S) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = answer.read().decode()
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    assert all(one.name.startswith("precopy_migration_") for one in samples)
    return {" ".join((one.name[len("precopy_migration_") :], *one.labels.values())): one.value for one in samples}


class TestScrapes:
    def test_nothing_is_told_that_is_not_known(self, server: MetricsServer) -> None:
        told = scrape(server)
        assert told.pop("rounds_total") == told.pop("sent_bytes_total") == told.pop("verify_bytes_total") == 0
        assert told == {f"phase {phase}": float(phase == "setup") for phase in PHASES}

    def test_events_are_told_as_they_come(self, figures: MigrationMetrics, server: MetricsServer) -> None:
        figures.update(PROGRESS)
        told = scrape(server)
        assert (told["phase setup"], told["phase rounds"]) == (0, 1)
        assert told["sent_bytes_total"] == 3 << 20
        assert told["remaining_bytes"] == 5 << 20
        assert told["bandwidth_bytes_per_second"] == 1e8
        assert told["elapsed_seconds"] == 1.6
        assert "converges" not in told

        figures.update(VERDICT)
        figures.update(ROUND)
        figures.update(replace(ROUND, number=2, sync_s=0.001))
        told = scrape(server)
        assert told["rounds_total"] == 2
        assert (told["sync_seconds"], told["transfer_seconds"]) == (0.001, 0.7)
        assert (told["converges"], told["throttle_ratio"], told["downtime_limit_seconds"]) == (1, 0.4, 0.3)
        assert told["dirty_rate_bytes_per_second"] == 4e7
        assert [told[f"expected_downtime_seconds {bound}"] for bound in ("low", "value", "high")] == [
            0.041,
            0.048,
            0.055,
        ]
        assert told["expected_more_rounds high"] == 4
        assert told["expected_total_seconds value"] == 3.6

    def test_what_has_no_end_is_infinite(self, figures: MigrationMetrics, server: MetricsServer) -> None:
        figures.update(VERDICT)
        told = scrape(server)
        assert told["smallest_downtime_limit_seconds low"] == 0.01
        assert told["smallest_downtime_limit_seconds high"] == math.inf
        assert told["largest_dirty_rate_bytes_per_second"] == math.inf

    @pytest.mark.parametrize(("converges", "value"), [(True, 1.0), (False, 0.0), (None, math.nan)])
    def test_converges(
        self, figures: MigrationMetrics, server: MetricsServer, converges: bool | None, value: float
    ) -> None:
        figures.update(replace(VERDICT, converges=converges))
        assert scrape(server)["converges"] == pytest.approx(value, nan_ok=True)


def test_metrics_are_those_of_the_documentation(figures: MigrationMetrics) -> None:
    for event in (PROGRESS, VERDICT, ROUND):
        figures.update(event)
    registry = CollectorRegistry()
    registry.register(figures)
    samples = {one.name for family in registry.collect() for one in family.samples}
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(precopy_migration_\w+)`", page, re.MULTILINE)) == samples


class TestServer:
    def test_it_is_gone_when_it_is_left(self, figures: MigrationMetrics) -> None:
        with MetricsServer(LOCAL, figures) as server:
            port = server.address.port
            assert server.url == f"http://127.0.0.1:{port}/metrics"
            # A client that says nothing is in nobody's way.
            with socket.create_connection(("127.0.0.1", port), timeout=IN_TIME_S):
                assert scrape(server)["rounds_total"] == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=IN_TIME_S)

    def test_only_at_the_host_that_was_given(self, figures: MigrationMetrics) -> None:
        with MetricsServer(Address(host="127.0.0.2", port=0), figures) as server:
            assert scrape(server)["rounds_total"] == 0
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.address.port), timeout=IN_TIME_S)

    def test_clients_that_leave_are_not_complained_of(
        self, server: MetricsServer, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.address.port), timeout=IN_TIME_S) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert scrape(server)["rounds_total"] == 0
        assert capfd.readouterr() == ("", "")

    def test_clients_that_say_too_little_keep_nobody_out(
        self, figures: MigrationMetrics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("precopy.service.metrics._CLIENT_S", 60.0)
        with MetricsServer(LOCAL, figures) as server, contextlib.ExitStack() as closing:
            for _ in range(60):
                idle = closing.enter_context(
                    socket.create_connection((server.address.host, server.address.port), IN_TIME_S)
                )
                idle.sendall(b"GET /met")
            assert b"precopy_migration_rounds_total" in urllib.request.urlopen(server.url, timeout=IN_TIME_S).read()
            wait_for(lambda: sum("process_request_thread" in one.name for one in threading.enumerate()) <= 17)

    def test_a_client_has_a_time_for_all_of_it(
        self, figures: MigrationMetrics, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("precopy.service.metrics._CLIENT_S", 0.5)
        with (
            MetricsServer(LOCAL, figures) as server,
            socket.create_connection((server.address.host, server.address.port), IN_TIME_S) as client,
        ):

            def sent_away() -> bool:
                try:
                    client.sendall(b"X")  # more often than a time-out for silence would notice
                except OSError:  # a pipe that broke or a connection that was reset
                    return True
                return False

            wait_for(sent_away)

    def test_address_in_use(self, server: MetricsServer, figures: MigrationMetrics) -> None:
        port = server.address.port
        with pytest.raises(
            UsageError, match=rf"^metrics cannot be served at 127\.0\.0\.1:{port}: Address already in use; another"
        ):
            MetricsServer(server.address, figures)

    def test_host_that_is_not_here(self, figures: MigrationMetrics) -> None:
        with pytest.raises(
            UsageError,
            match=r"^metrics cannot be served at 192\.0\.2\.1:9100: Cannot assign requested address; this machine",
        ):
            MetricsServer(Address(host="192.0.2.1", port=9100), figures)


class TestCommand:
    """`precopy migrate --metrics`, before there is anything to migrate."""

    def migrate(self, *arguments: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
        code = f"import sys; {before}; from precopy.cli.main import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", code, "migrate", "unix:/nowhere/a", "unix:/nowhere/b", "--json", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=IN_TIME_S, check=False)

    @pytest.mark.parametrize("text", ["9100", "localhost", ":9100", "a b:1", "127.0.0.1:70000"])
    def test_what_is_no_address(self, text: str) -> None:
        done = called("migrate", "unix:/nowhere/a", "unix:/nowhere/b", "--json", "--metrics", text)
        assert done.code == 2
        assert f"'{text}' is not HOST:PORT, such as 127.0.0.1:9100" in done.document()["error"]["message"]

    def test_without_the_package(self) -> None:
        done = self.migrate("--metrics", "127.0.0.1:0", before="sys.modules['prometheus_client'] = None")
        assert done.returncode == 3
        assert json.loads(done.stdout)["error"]["message"] == (
            '--metrics needs the package prometheus-client, which is not installed; pip install "precopy[metrics]"'
        )
