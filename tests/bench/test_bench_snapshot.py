"""The snapshot benchmark: its document and its table. No figure is judged."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precopy import Memory
from precopy.bench import snapshot as bench
from precopy.bench.snapshot import Place
from precopy.cli.bench.snapshot import snapshot as command
from precopy.errors import UsageError, VerificationFailed

QUICK = ["--size", "4M", "--dirty", "1", "--dirty", "50", "--repeat", "2"]


@pytest.mark.needs("pagemap")
def test_the_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command.main([*QUICK, "--disk", str(tmp_path), "--restore-size", "8M", "--json"], standalone_mode=False)
    out = capsys.readouterr().out
    document: dict[str, Any] = json.loads(out)
    assert len(out.splitlines()) == 1
    assert document["schema"] == "precopy.bench-snapshot/1"
    assert (document["size"], document["repeats"]) == (4 << 20, 2)
    assert document["machine"]["cores"] >= 1
    kinds = [place["kind"] for place in document["places"]]
    assert kinds in (["memory", "disk"], ["disk"])
    peers = [("full", None), ("numpy.save", None), ("pickle", None), ("shared_memory", None)]
    ways = ["increment"] + (["increment zstd"] if importlib.util.find_spec("zstandard") else [])
    ours = [(way, share) for share in (0.01, 0.5) for way in ways]
    cases = [(one["place"], one["what"], one["dirty_share"]) for one in document["cases"]]
    assert cases == [(kind, *way) for kind in kinds for way in peers + ours]
    for one in document["cases"]:
        assert one["seconds"]["min"] > 0
        assert one["flushed"] == (one["what"] != "shared_memory")
        assert (one["full_s_to_it"] is None) == (one["what"] == "full")
        if one["dirty_share"]:
            assert one["pages"] == int(1024 * one["dirty_share"])
    sizes = [(one["place"], one["size"], one["snapshots"]) for one in document["restores"]]
    assert sizes == [*((kind, 4 << 20, 1 + len(ours)) for kind in kinds), *((kind, 8 << 20, 1) for kind in kinds)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("pagemap")
def test_a_place_that_fails_is_said_and_the_others_are_measured(tmp_path: Path) -> None:
    good, bad = Place("disk", str(tmp_path), "here"), Place("memory", "/proc", "proc")
    done = bench.measure(1 << 20, [0.5], 1, where=[bad, good], restore_size=1 << 20, tell=lambda _: None)
    assert [one.name for one in done.failed] == ["memory (proc)", "restoring, memory (proc)"]
    assert all("/proc" in one.message for one in done.failed)
    assert {one.place for one in done.cases} == {"disk"}
    assert [one.place for one in done.restores] == ["disk", "disk"]


@pytest.mark.needs("pagemap")
def test_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command.main([*QUICK, "--disk", str(tmp_path)], standalone_mode=False)
    out = capsys.readouterr().out
    assert "increment, 50 % dirty" in out
    assert "shared_memory, not flushed" in out
    assert out.splitlines()[-1].startswith("restored in ")


@pytest.mark.needs("pagemap")
def test_what_is_restored_is_compared(tmp_path: Path) -> None:
    with Memory(1 << 20) as memory:
        words = np.frombuffer(memory.view, np.uint64)
        words[:] = 1
        bench.snapshot(memory, tmp_path)
        bench._restore(tmp_path, words)
        words[77] = 2
        with pytest.raises(VerificationFailed, match="differs"):
            bench._restore(tmp_path, words)


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    where = bench.places(tmp_path)
    for size, share in ((4096, 0.5), (1 << 20, 0.0), (1 << 20, 1.5)):
        with pytest.raises(UsageError, match="at least"):
            bench.measure(size, [share], 1, where=where, restore_size=None, tell=lambda _: None)
    with pytest.raises(UsageError, match="no directory to measure in"):
        bench.places(tmp_path / "no")
