"""The tracking benchmark: its document, and that it refuses to time what finds other pages. No figure is judged."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from precopy.bench import track as bench
from precopy.bench.track import CLUSTER, dirty_indexes, measure
from precopy.bench.track_writer import measure_writer
from precopy.cli.bench.track import track as command
from precopy.errors import UsageError, VerificationFailed
from precopy.names import CLEAR_POLICIES

pytestmark = pytest.mark.needs("pagemap")
PAGES = (64 << 20) // 4096


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--size", "64M", "--repeat", "1", "--writer", "1", "--json"], standalone_mode=False)
    out = capsys.readouterr().out
    document: dict[str, Any] = json.loads(out)
    assert len(out.splitlines()) == 1
    assert document["schema"] == "precopy.bench-track/1"
    assert document["machine"]["cores"] >= 1
    cases = document["cases"]
    assert [(one["dirty_share"], one["pattern"]) for one in cases] == [
        *((share, pattern) for share in (0.001, 0.01, 0.1) for pattern in ("scattered", "clustered")),
        (1.0, "clustered"),
    ]
    for one in cases:
        assert one["size_bytes"] == 64 << 20
        assert one["dirty_pages"] == round(PAGES * one["dirty_share"])
        assert one["two_step"].keys() == set(CLEAR_POLICIES)
        for figures in (one["one_step"], *one["two_step"].values()):
            for name in ("sync_s", "later_s"):
                assert 0 <= figures[name]["min"] <= figures[name]["median"] <= figures[name]["max"]
            assert figures["sync_s"]["min"] > 0
            assert figures["ioctls"] >= 1
        assert one["two_step"]["per-page"]["ioctls"] > one["dirty_pages"]
        assert one["two_step"]["deferred"]["later_s"]["min"] > 0
        assert one["two_step"]["merged"]["later_s"]["max"] == 0
        for way in ("compare", "hash", "write_all"):
            peer, ours = one[f"{way}_s"]["median"], one["one_step"]["sync_s"]["median"]
            assert one[f"ratio_to_{way}"] == pytest.approx(peer / ours)
    (writer,) = document["writers"]
    assert writer["size_bytes"] == 64 << 20
    assert writer["syncs_per_s"] == 1
    for name in ("untracked_gb_per_s", "tracked_gb_per_s"):
        assert writer[name] > 0
    assert writer["slowdown"] < 1
    assert writer["slowdown_wall"] < 1
    assert writer["sync_s"]["min"] > 0
    assert writer["faults"] >= 1
    relaxed = writer["relaxed"]
    assert relaxed["gb_per_s"] > 0
    assert relaxed["cpu_gb_per_s"] > 0
    assert max(relaxed[name] for name in ("slowdown", "slowdown_wall", "slowdown_all")) < 1
    assert relaxed["sync_s"]["min"] > 0
    assert (relaxed["faults"], relaxed["unarmed_pages"]) == (PAGES, 0)  # the first sync arms all, whatever it finds


def test_a_writer_of_a_hot_memory_has_no_faults() -> None:
    """The same number of slices, by the same sync: what is exact has a fault for each page, the other one has none."""
    pages = (16 << 20) // 4096
    writer = measure_writer(16 << 20, 5)
    assert writer.relaxed is not None
    assert writer.faults >= pages
    assert writer.relaxed.faults < pages // 8
    assert writer.relaxed.unarmed_pages > 7 * pages // 8


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--size", "16M", "--repeat", "1", "--writer", "1"], standalone_mode=False)
    captured = capsys.readouterr()
    assert captured.out.count("scattered") == 3
    assert captured.out.count("clustered") == 4
    exact, relaxed = captured.out.splitlines()[-2:]
    for said in (exact, relaxed):
        for by in ("CPU time", "the clock"):
            assert re.search(
                rf"by (?:its )?{by} [\d.]+ GB/s, and [\d.]+ GB/s tracked \(\d+ % (?:slower|faster)\)", said
            )
    assert relaxed.startswith("the same with exact=False")
    assert re.search(r"\d+ % (?:slower|faster) over all 1 slices; 0 pages not armed$", relaxed)
    assert "measuring 16.0 MiB, a writer" in captured.err


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("pattern", ["scattered", "clustered"])
def test_patterns(share: float, pattern: str) -> None:
    index = dirty_indexes(PAGES, share, pattern, np.random.default_rng(1))
    assert index.size == max(round(PAGES * share), 1)
    assert (np.diff(index) > 0).all()
    assert 0 <= index[0] <= index[-1] < PAGES
    runs = 1 + int((np.diff(index) > 1).sum())
    if pattern == "clustered":
        assert runs <= -(-index.size // CLUSTER)
    elif share < 0.1:
        assert runs > 0.9 * index.size


@pytest.mark.parametrize("size", [4096, (16 << 20) - 4096, (16 << 20) + 1])
def test_a_size_that_cannot_be_measured(size: int) -> None:
    with pytest.raises(UsageError, match=str(size)):
        measure([size], 1, 1, lambda _: None)


@pytest.mark.parametrize(("step", "way"), [("write", "merged"), ("compare", "comparing"), ("hash", "hashing")])
def test_nothing_is_timed_that_finds_other_pages(monkeypatch: pytest.MonkeyPatch, step: str, way: str) -> None:
    """Something else writes just before ``step``."""
    original = getattr(bench._Subject, step)

    def after_a_stray(subject: Any, index: Any) -> Any:
        subject.words[-1] += np.uint64(1)
        return original(subject, index)

    monkeypatch.setattr(bench._Subject, step, after_a_stray)
    done = measure([16 << 20], 1, 1, lambda _: None, (0.001,))
    assert (done.cases, done.writers) == ((), ())
    (failed,) = done.failed
    assert (failed.kind, failed.exit_code) == (VerificationFailed.__name__, VerificationFailed.exit_code)
    assert f"{way} found 5 pages where 4 were written" in failed.message


@pytest.mark.needs("pagemap")
def test_a_size_that_fails_is_noted_and_the_others_are_measured() -> None:
    done = measure([1 << 43, 16 << 20], 1, 1, lambda _: None, (0.001,))
    assert [(one.kind, one.name) for one in done.failed] == [("OutOfMemory", "8.0 TiB")]
    assert {one.size_bytes for one in done.cases} == {16 << 20}
    assert len(done.writers) == 1
