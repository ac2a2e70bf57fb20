"""What people are told of every QEMU that was measured beside precopy."""

from __future__ import annotations

from typing import Any

import msgspec

from precopy.report.kinds import load
from precopy.report.table import Table
from support import reports


def told(kind: str, document: dict[str, Any]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Lines of the tables, by their first cells, and sentences."""
    made_of = load(kind)
    parts = made_of.text(msgspec.convert(made_of.today(document), made_of.record))
    tables = [part for part in parts if isinstance(part, Table)]
    return {row[0]: row for table in tables for row in table.rows}, [part for part in parts if isinstance(part, str)]


def test_syncs_whose_work_was_not_equal_are_marked() -> None:
    document = reports.bench_sync()
    work = document["equal_work"]
    lines, said = told("bench-sync", document)
    assert lines["QEMU 7.2.22"][3:] == ("544", "1301", "21.2 ms", "54 of 57")
    assert lines["QEMU 11.1.3"][1] == "dirty ring"
    assert lines["QEMU 11.1.3"][4] == "612*"
    assert any(sentence.startswith("* no sync found the pages") for sentence in said)
    assert "precopy's shortest sync time is 7.50 of the newest QEMU's shortest" in said
    assert work["left_out"][0] in said

    work["peers"] = [{**peer, "equal": True} for peer in work["peers"]]
    work["ours_to_newest"] = None
    _, said = told("bench-sync", document)
    assert not any(sentence.startswith("* no sync") or "newest QEMU" in sentence for sentence in said)


def test_migrations_of_every_qemu_have_a_line_and_the_absent_a_sentence() -> None:
    document = {**reports.bench_migrate(), "left_out": ["QEMU 10.0 is not here"]}
    lines, said = told("bench-migrate", document)
    assert {"QEMU 7.2.22", "QEMU 11.1.3, ring, multifd 2"} <= lines.keys()
    assert "QEMU 10.0 is not here" in said
    assert any("1.28 times QEMU's best" in sentence for sentence in said)


def test_the_ratio_is_to_the_fastest() -> None:
    made_of, document = load("bench-migrate"), reports.bench_migrate()
    record = msgspec.convert(made_of.today(document), made_of.record)
    fastest = [repeat.fastest_qemu.throughput_bytes_per_s for repeat in record.repeats]
    assert fastest == [3.1e9, 3.1e9]
    again = type(record).of(record.setup, record.repeats, record.idle_sync, ())
    first, second = (repeat.precopy.throughput_bytes_per_s / 3.1e9 for repeat in record.repeats)
    assert again.ratio_to_qemu == (first + second) / 2
