"""What a migration says while it runs: events as lines, metrics over HTTP, and verdicts in the text."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.commands import Bench, Command, called, wait_for
from support.patience import IN_TIME_S

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.usefixtures("nothing_left")]

CALM = ("--ram", "8M", "--write-rate", "100")
BUSY = ("--ram", "4M", "--layout", "flat", "--write-rate", "20K")
"""80 MB a second, all over its memory: 20 times what NARROWER takes, and several times on a busy machine."""
NARROW = ("--max-bandwidth", "8M")
NARROWER = ("--max-bandwidth", "4M")
"""Takes most of a second for the 3.5 MB that BUSY writes anew in each round, and so misses a limit of 300 ms."""


class Pair:
    """A guest with ``options`` and who waits for it."""

    def __init__(self, bench: Bench, options: Sequence[str]) -> None:
        self.bench, ram = bench, options[: options.index("--write-rate")]
        self.destination = bench.start("receive", bench.path("wire"), *ram, "--control", bench.path("to"))
        self.source = bench.start("run", *options, "--control", bench.path("from"))
        bench.until_state("to", "waiting")
        bench.until_state("from", "running")

    def migrate(self, *options: str) -> Command:
        return self.bench.start("migrate", self.bench.path("from"), self.bench.path("wire"), *options)

    def guest_has_moved(self) -> None:
        assert self.source.finish().code == 0
        assert self.bench.ask("to", "check")["ok"]
        self.bench.ask("to", "quit")
        assert self.destination.finish().code == 0

    def guest_has_stayed(self) -> None:
        self.destination.finish().sentence(5)
        assert self.bench.ask("from", "check")["ok"]
        self.bench.ask("from", "quit")
        assert self.source.finish().code == 0


def events_and_document(out: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *events, document = map(json.loads, out.splitlines())
    assert {one["schema"] for one in events} == {"precopy.migrate-event/2"}
    return events, document


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The fields of the events of a kind."""
    wanted = [one for one in events if one["event"] == kind]
    return [{name: value for name, value in one.items() if name not in ("schema", "event")} for one in wanted]


class TestJsonLines:
    def test_of_a_migration_that_converges(self, bench: Bench) -> None:
        pair = Pair(bench, CALM)
        migration = pair.migrate("--json-lines", *NARROW, "--downtime-limit", "250ms")
        first = migration.line()
        assert bench.status("from")["state"] == "migrating"
        done = migration.finish()
        assert (done.code, done.err) == (0, "")
        events, document = events_and_document(f"{first}\n{done.out}")
        assert document["schema"] == "precopy.migrate/2"
        assert document["policy"] == "precopy"
        verdicts, rounds = of_kind(events, "verdict"), of_kind(events, "round")
        assert verdicts == document["verdicts"]
        assert rounds == document["rounds"]
        assert [one["round"] for one in verdicts] == [one["number"] for one in rounds if not one["final"]]
        assert verdicts[-1]["action"] == "switch over"
        assert verdicts[-1]["converges"] is True
        progress = of_kind(events, "progress")
        assert [one["sent_bytes"] for one in progress] == sorted(one["sent_bytes"] for one in progress)
        assert progress[-1]["phase"] == "switchover"
        pair.guest_has_moved()

    def test_of_one_that_does_not(self, bench: Bench) -> None:
        pair = Pair(bench, BUSY)
        done = pair.migrate("--json-lines", *NARROWER).finish()
        events, document = events_and_document(done.out)
        assert document["schema"] == "precopy.error/1"
        assert (document["error"]["kind"], document["error"]["exit_code"]) == ("NotConverged", 4)
        assert document["error"]["message"] == done.sentence(4)
        verdicts = of_kind(events, "verdict")
        assert len(verdicts) == len(of_kind(events, "round")) <= 5
        assert verdicts[-1]["action"] == "give up"
        assert verdicts[-1]["converges"] is False
        assert verdicts[-1]["smallest_downtime_limit_s"]["high"] > verdicts[-1]["downtime_limit_s"] == 0.3
        pair.guest_has_stayed()

    def test_not_together_with_json(self) -> None:
        error = called("migrate", "unix:/a", "unix:/b", "--json", "--json-lines").error_document(2)
        assert error["message"].startswith("--json and --json-lines exclude each other")

    def test_usage_errors_are_documents_too(self) -> None:
        done = called("migrate", "unix:/a", "unix:/b", "--json-lines", "--policy", "hope")
        assert (done.code, done.document()["error"]["exit_code"]) == (2, 2)
        wanted = ("migrate", "unix:/a", "unix:/b", "--json-lines", "--on-timeout", "throttle")
        assert called(*wanted).error_document(2)["message"] == (
            "the guest cannot be slowed down at the time-out where throttling is off"
        )


class TestText:
    def test_expected_beside_measured(self, bench: Bench) -> None:
        pair = Pair(bench, CALM)
        done = pair.migrate(*NARROW, "--downtime-limit", "250ms").finish()
        assert (done.code, done.err) == (0, "")
        (line,) = (line for line in done.out.splitlines() if line.startswith("after round "))
        assert ": expected downtime " in line
        assert "; measured " in line
        assert "throttled" not in done.out
        pair.guest_has_moved()

    def test_last_verdict_of_what_did_not_converge(self, bench: Bench) -> None:
        pair = Pair(bench, BUSY)
        done = pair.migrate(*NARROWER).finish()
        assert done.sentence(4).startswith("did not converge in ")
        *rounds, line = done.out.splitlines()
        assert re.search(r"^ +round +dirty +new +again +to send ", "\n".join(rounds), re.MULTILINE)
        made = [words for words in map(str.split, rounds) if words and words[0].isdigit()]
        assert f"did not converge in {len(made)} rounds" in done.err
        assert any(one.startswith("not completed: ") for one in rounds)
        assert line.startswith("after round ")
        assert ": will not converge: dirty rate is " in line
        pair.guest_has_stayed()

    def test_document_of_what_did_not_converge(self, bench: Bench) -> None:
        pair = Pair(bench, BUSY)
        document = pair.migrate(*NARROWER, "--json").finish().document()
        assert (document["schema"], document["error"]["exit_code"]) == ("precopy.error/1", 4)
        made = document["migration"]
        assert made["completed"] is False
        assert len(made["rounds"]) == len(made["verdicts"]) >= 3
        assert made["sent_bytes"] == sum(one["sent_bytes"] for one in made["rounds"]) + made["other_bytes"]
        assert made["verdicts"][-1]["action"] == "give up"
        pair.guest_has_stayed()

    def test_out_of_time(self, bench: Bench) -> None:
        pair = Pair(bench, BUSY)
        done = pair.migrate(*NARROWER, "--max-total", "300ms").finish()
        assert "out of time" in done.sentence(4)
        pair.guest_has_stayed()

    def test_out_of_time_and_switching_over_all_the_same(self, bench: Bench) -> None:
        pair = Pair(bench, BUSY)
        done = pair.migrate(*NARROWER, "--max-total", "300ms", "--on-timeout", "switch", "--json").finish()
        assert done.code == 0, done.err
        document = done.document()
        assert document["downtime_s"] > document["downtime_limit_s"]
        assert document["verdicts"][-1]["converges"] is False
        pair.guest_has_moved()

    @pytest.mark.parametrize("way", [("auto-converge",), ("dirty-limit", "--tracker", "dirty-ring")])
    def test_what_throttling_cost(self, bench: Bench, way: tuple[str, ...]) -> None:
        pair = Pair(bench, ("--ram", "8M", "--write-rate", "2K"))  # about what the link takes
        slow_down = ("--max-total", "1s", "--on-timeout", "throttle", "--throttle", *way)
        done = pair.migrate(*NARROW, *slow_down).finish()
        assert (done.code, done.err) == (0, "")
        (line,) = (line for line in done.out.splitlines() if line.startswith("throttled for "))
        assert line.rpartition(": ")[2].split(" % ")[0] != "0"
        pair.guest_has_moved()


class TestMetrics:
    def scrape(self, url: str) -> dict[str, float]:
        with urllib.request.urlopen(url, timeout=IN_TIME_S) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return {sample.name: sample.value for family in families for sample in family.samples}

    def test_in_mid_migration(self, bench: Bench) -> None:
        pair = Pair(bench, BUSY)
        migration = pair.migrate("--metrics", "127.0.0.1:0", *NARROWER, "--on-timeout", "ignore", "--json")
        assert migration.process.stderr is not None
        said = migration.process.stderr.readline()
        assert said.startswith("metrics: http://127.0.0.1:")
        url = said.split()[1]
        told: dict[str, float] = {}

        def in_a_second_round() -> bool:
            """Between a round's last page and the next sync, nothing remains."""
            told.update(self.scrape(url))
            return "precopy_migration_converges" in told and told["precopy_migration_remaining_bytes"] > 0

        wait_for(in_a_second_round)
        assert told["precopy_migration_rounds_total"] >= 1
        assert told["precopy_migration_sent_bytes_total"] > 2 << 20
        assert 0 < told["precopy_migration_remaining_bytes"] <= 32 << 20
        assert told["precopy_migration_dirty_rate_bytes_per_second"] > 0
        assert told["precopy_migration_downtime_limit_seconds"] == 0.3
        assert told["precopy_migration_converges"] != 1 or math.isnan(told["precopy_migration_converges"])
        migration.interrupt()
        assert migration.finish().error_document(130)["kind"] == "Cancelled"
        with pytest.raises(urllib.error.URLError):
            self.scrape(url)
        pair.guest_has_stayed()

    def test_address_in_use(self, bench: Bench) -> None:
        pair = Pair(bench, CALM)
        first = pair.migrate("--metrics", "127.0.0.1:0", "--max-bandwidth", "1M", "--json")
        assert first.process.stderr is not None
        port = first.process.stderr.readline().rpartition(":")[2].partition("/")[0]
        done = bench.run("migrate", bench.path("from"), bench.path("wire"), "--metrics", f"127.0.0.1:{port}")
        assert done.sentence(2) == (
            f"metrics cannot be served at 127.0.0.1:{port}: Address already in use; another program listens there: "
            f"use another port, or 0 for one that is free"
        )
        bench.until_state("from", "migrating")
        bench.until_state("to", "receiving")
        first.interrupt()
        assert first.finish().code == 130
        pair.guest_has_stayed()
