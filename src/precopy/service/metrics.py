"""A Prometheus endpoint that tells of a migration while it runs; docs/metrics.md lists what.

A metric is there once its figure is known, so that no zero stands for what was never measured.
"""

from __future__ import annotations

import contextlib
import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import ThreadingHTTPServer
from typing import Any

from precopy.errors import UsageError, missing_extra, raise_without_descriptor
from precopy.migration import Event, Progress, Range, Round, Verdict
from precopy.transport import Address, listening_advice

try:
    from prometheus_client import CollectorRegistry, MetricsHandler
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, StateSetMetricFamily
    from prometheus_client.registry import Collector
except ImportError:
    raise missing_extra("--metrics needs", "prometheus-client", "metrics") from None

PREFIX = "precopy_migration_"
PHASES = ("setup", "rounds", "switchover", "verify", "commit", "done")
_POLL_S = 0.05
"""Seconds that ending the server may take: how often it looks whether it is to end."""
_CLIENT_S = 5.0
"""Seconds for a client's whole request and answer; Prometheus gives up after 10 s by default."""
_MAX_CLIENTS = 16
"""Connections at once; of more, the oldest is closed."""

_PROGRESS: dict[str, tuple[str, Callable[[Progress], float]]] = {
    "elapsed_seconds": ("Time since the migration began.", lambda event: event.elapsed_s),
    "remaining_bytes": ("Memory still to be sent.", lambda event: event.remaining_bytes),
    "bandwidth_bytes_per_second": ("The bandwidth while sending.", lambda event: event.bandwidth_bytes_per_s),
}
_ROUND: dict[str, tuple[str, Callable[[Round], float]]] = {
    "sync_seconds": ("The sync time of the last round.", lambda event: event.sync_s),
    "transfer_seconds": ("The transfer time of the last round.", lambda event: event.transfer_s),
}
_VERDICT: dict[str, tuple[str, Callable[[Verdict], float]]] = {
    "dirty_rate_bytes_per_second": ("The guest's dirty rate.", lambda event: event.dirty_rate_bytes_per_s),
    "largest_dirty_rate_bytes_per_second": (
        "Dirty rate with which the migration would converge within its limit.",
        lambda event: _number(event.largest_dirty_rate_bytes_per_s),
    ),
    "converges": (
        "Whether it converges within its limit: 1 or 0, NaN where that is uncertain.",
        lambda event: math.nan if event.converges is None else float(event.converges),
    ),
    "downtime_limit_seconds": ("The downtime limit that is applied.", lambda event: event.downtime_limit_s),
    "throttle_ratio": ("The share of the vCPUs' time that is taken.", lambda event: event.throttle_to),
}
_RANGES: dict[str, tuple[str, Callable[[Verdict], Range]]] = {
    "expected_downtime_seconds": ("The downtime to be expected.", lambda event: event.downtime_s),
    "expected_total_seconds": ("The migration's time to be expected.", lambda event: event.total_s),
    "expected_more_rounds": ("Rounds to be expected before the switchover.", lambda event: event.more_rounds),
    "smallest_downtime_limit_seconds": (
        "With its upper bound as the limit the migration converges.",
        lambda event: event.smallest_downtime_limit_s,
    ),
}


class MigrationMetrics(Collector):
    """What the events of one migration say, for a registry. Events may come in another thread than scrapes."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._round: Round | None = None
        self._verdict: Verdict | None = None
        self._rounds = 0

    def update(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._progress = event
        elif isinstance(event, Verdict):
            self._verdict = event
        elif isinstance(event, Round):
            self._round = event
            self._rounds += 1

    def collect(self) -> Iterator[Metric]:
        progress = self._progress
        phase = progress.phase if progress else PHASES[0]
        states = {name: name == phase for name in PHASES}
        yield StateSetMetricFamily(f"{PREFIX}phase", "What the migration does now.", states)
        yield _counter("rounds", "Rounds made.", self._rounds)
        yield _counter("sent_bytes", "Bytes sent to move the guest.", progress.sent_bytes if progress else 0)
        yield _counter("verify_bytes", "Bytes sent for verification.", progress.verify_bytes if progress else 0)
        yield from _gauges(_PROGRESS, progress)
        yield from _gauges(_ROUND, self._round)
        verdict = self._verdict
        yield from _gauges(_VERDICT, verdict)
        if verdict is not None:
            for name, (what, of) in _RANGES.items():
                yield _range(name, what, of(verdict))


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}{name}", what, value)


def _gauges(table: dict[str, tuple[str, Callable[[Any], float]]], event: Event | None) -> Iterable[Metric]:
    """A gauge for each entry; none before there was such an event."""
    if event is None:
        return []
    return [GaugeMetricFamily(f"{PREFIX}{name}", what, of(event)) for name, (what, of) in table.items()]


def _range(name: str, what: str, value: Range) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}{name}", what, labels=["bound"])
    for bound in ("low", "value", "high"):
        family.add_metric([bound], _number(getattr(value, bound)))
    return family


def _number(value: float | None) -> float:
    """An event's None, which stands for infinity, as Prometheus has it."""
    return math.inf if value is None else value


class MetricsServer:
    """Serves ``metrics`` over HTTP at ``address``, and at nothing else; port 0 lets the system choose, and ``address``
    says what it chose. Raises `UsageError` where it cannot listen there."""

    def __init__(self, address: Address, metrics: MigrationMetrics) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(metrics)
        try:
            self._server = _Server(address, _Handler.factory(registry))
        except OSError as error:
            raise_without_descriptor("socket", str(address), error)
            where = str(address).removeprefix("tcp:")
            said = f"{error.strerror or error}{listening_advice(address, error)}"
            raise UsageError(f"metrics cannot be served at {where}: {said}") from error
        self.address = Address(host=address.host, port=self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{str(self.address).removeprefix('tcp:')}/metrics"

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(MetricsHandler):
    timeout = _CLIENT_S


class _Server(ThreadingHTTPServer):
    request_queue_size = (
        128  # connections that may wait; beyond the default, 5, a client would try again after a second
    )

    def __init__(self, address: Address, handler: type) -> None:
        family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        self._lock = threading.Lock()
        self._until: dict[socket.socket, float] = {}  # the first to come first
        super().__init__(where, handler)  # type: ignore[arg-type]  # as the system names it, which bind takes

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's would look up the host's name, which may take long

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._until) >= _MAX_CLIENTS:
                _send_away(next(iter(self._until)))
            self._until[request] = time.monotonic() + _CLIENT_S
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called regularly: a client has one time limit for its whole request, however much it sends meanwhile."""
        with self._lock:
            for request, until in self._until.items():
                if until <= time.monotonic():
                    _send_away(request)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._until.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that disconnects during an answer is no error here."""


def _send_away(client: socket.socket) -> None:
    """Has the thread that serves it find that it is gone."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
