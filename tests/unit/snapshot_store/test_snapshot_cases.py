"""Programs and files that once failed, as they came: tests/cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.patience import IN_TIME_S

CASES = Path(__file__).parents[2] / "cases"


def run(case: str, script: str, where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CASES / case / script), *arguments],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=2 * IN_TIME_S,
        check=False,
    )


@pytest.mark.needs("pagemap")
def test_after_a_compaction_the_live_memory_goes_on_and_no_other(tmp_path: Path) -> None:
    done = run("snapshot-stale-writer-after-compact", "case.py", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for when in ("as it was", "compacted"):
        stale, live = (next(one for one in lines if one.startswith(f"{when} {who}")) for who in ("stale", "live"))
        assert "refused: " in stale
        assert "Snapshot(number=" in live
        assert "full=False" in live


@pytest.mark.parametrize("mebibytes", ["256", "1000"])
def test_a_table_that_is_a_hole_takes_no_memory(tmp_path: Path, mebibytes: str) -> None:
    done = run("hostile-3", "table.py", tmp_path, mebibytes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verify took" in done.stdout
