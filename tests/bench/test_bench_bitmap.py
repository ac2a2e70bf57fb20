"""The bitmap benchmark: its document, and that it refuses to time what gives a wrong result. No figure is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precopy.bench.bitmap import PATTERNS, BitmapBench, dirty_bitmap, measure
from precopy.bench.sync_loop import SOURCE, compile_loop
from precopy.bitmap import Bitmap, kernels
from precopy.cli.bench.bitmap import bitmap as command
from precopy.errors import Unsupported, UsageError, VerificationFailed
from support.patience import IN_TIME_S

pytestmark = pytest.mark.needs("cc")

SMALL = 64 << 20
"""Bytes of a guest with 16384 pages."""


def run(*guests: int, c_source: Path = SOURCE) -> BitmapBench:
    return measure(guests, 1, lambda _: None, c_source)


@pytest.fixture(autouse=True)
def no_cold_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are of no interest here."""
    monkeypatch.setattr("precopy.bench.bitmap._cold_bytes", lambda: 8)


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--guest", "64M", "--guest", "96M", "--repeat", "3", "--json"], standalone_mode=False)
    out = capsys.readouterr().out
    document: dict[str, Any] = json.loads(out)
    assert len(out.splitlines()) == 1
    assert document["schema"] == "precopy.bench-bitmap/1"
    assert document["machine"]["cores"] >= 1
    assert "-O2" in document["compiler"]
    assert document["unaligned_to_aligned"] > 0
    cases = document["cases"]
    keys = [(one["guest_bytes"], one["pattern"], one["aligned"]) for one in cases]
    assert keys == [(size << 20, name, aligned) for size in (64, 96) for name in PATTERNS for aligned in (True, False)]
    for one in cases:
        assert one["pages"] == one["guest_bytes"] // 4096
        assert one["bytes"] == one["pages"] // 8
        aligned = one["aligned"]
        assert (one["start"] % 64 == 0, one["length"] % 64 == 0) == (aligned, aligned)
        assert (one["c_per_page_gb_per_s"] is None) == (one["ratio_to_aligned"] is None) == aligned
        for name in ("ours_gb_per_s", "c_gb_per_s", "copy_gb_per_s", "ratio_to_c", "ratio_to_copy"):
            assert one[name] > 0
        native = kernels.missing() is None
        assert (one["native_gb_per_s"] is not None) == (one["native_ratio_to_c"] is not None) == native
        assert (one["new_pages"] == 0) == (one["pattern"] == "idle")


def test_one_repeat_adds_up() -> None:
    for one in run(SMALL).cases:
        assert one.ratio_to_c == pytest.approx(one.ours_gb_per_s / one.c_gb_per_s)
        if one.native_gb_per_s is not None:
            assert one.native_ratio_to_c == pytest.approx(one.native_gb_per_s / one.c_gb_per_s)
        assert one.ratio_to_copy == pytest.approx(one.ours_gb_per_s / one.copy_gb_per_s)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--guest", "64M", "--repeat", "1"], standalone_mode=False)
    out = capsys.readouterr().out
    for pattern in PATTERNS:
        assert sum(f" {pattern} " in line for line in out.splitlines()) >= 2
    assert "13 to 16355" in out
    assert out.splitlines()[-1].startswith("at least: dense ")


def test_a_guest_that_does_not_end_on_a_word() -> None:
    first, second = run((16 << 20) + 40960).cases[:2]
    assert (first.pages, first.length, first.bytes) == (4106, 4096, 512)
    assert (second.start, second.length, second.bytes) == (13, 4064, 512)


@pytest.mark.parametrize(
    ("wrong", "instead", "complaint"),
    [
        ("count += (uint64_t)__builtin_popcountll(fresh);", "count += 1;", "counted .* new pages"),
        ("dest[i] |= bits;", "dest[i] = bits;", "another bitmap of pending pages"),
        ("__atomic_exchange_n(&source[i], 0,", "__atomic_load_n(&source[i],", "did not clear"),
        ("count += (dest[page / 64] & bit) == 0;", "count++;", "by page counted"),
        ("dest[page / 64] |= bit;", "dest[page / 64] = bit;", "by page"),
    ],
)
def test_a_wrong_peer_is_noticed(tmp_path: Path, wrong: str, instead: str, complaint: str) -> None:
    source = tmp_path / "wrong.c"
    text = SOURCE.read_text()
    assert wrong in text
    source.write_text(text.replace(wrong, instead))
    with pytest.raises(VerificationFailed, match=complaint):
        run(SMALL, c_source=source)


def test_a_wrong_result_of_ours_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Bitmap.move_into
    monkeypatch.setattr(Bitmap, "move_into", lambda self, *arguments: right(self, *arguments) + 1)
    with pytest.raises(VerificationFailed, match="precopy counted"):
        run(SMALL)


@pytest.mark.needs("numba")
def test_a_wrong_result_of_what_numba_compiled_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from precopy.bitmap import native

    right = native.take_over
    monkeypatch.setattr(native, "take_over", lambda *arguments: right(*arguments) + 1)
    with pytest.raises(VerificationFailed, match="precopy with numba counted"):
        run(SMALL)
    assert not kernels.loaded()


def test_without_a_compiler(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CC"} | {"PATH": str(tmp_path)}
    command = [sys.executable, "-m", "precopy", "bench", "bitmap", "--guest", "64M"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=IN_TIME_S)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("precopy: no C compiler is installed")
    assert line.endswith("; install gcc, or set CC to one")


def test_a_compiler_that_cannot_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("no C at all\n")
    with pytest.raises(Unsupported, match=r"failed: .*error.*; set CC to another one"):
        run(SMALL, c_source=source)
    monkeypatch.setenv("CC", "false --flag")
    with pytest.raises(Unsupported, match="the C compiler false failed"):
        run(SMALL)


def test_cc_may_hold_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -DANY")
    assert "-O2" in compile_loop().compiler


@pytest.mark.parametrize("size", [0, 4096, (16 << 20) - 1, 1 << 50])
def test_guests_of_no_use(size: int) -> None:
    with pytest.raises(UsageError, match="cannot be measured"):
        run(size)


@pytest.mark.parametrize("pages", [4096, 4106, 1 << 20])
def test_the_patterns(pages: int) -> None:
    random = np.random.default_rng(0)
    dirty = {name: dirty_bitmap(name, pages, random) for name in PATTERNS}
    assert dirty["dense"].words.all()
    assert 0.4 < dirty["dense"].count() / pages < 0.6
    assert 0 < dirty["one-percent"].count() <= pages // 100
    assert dirty["one-percent-runs"].any()
    assert not dirty["idle"].any()
    for bitmap in dirty.values():
        Bitmap(pages, bitmap.words)  # refuses bits above the end
