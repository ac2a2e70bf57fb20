"""The program in docs/memory.md whose workers write shared memory: as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.patience import IN_TIME_S

DOCUMENT = Path(__file__).parents[2] / "docs" / "memory.md"

pytestmark = [pytest.mark.needs("pagemap")]


def test_workers_that_write_shared_memory(tmp_path: Path) -> None:
    programs = re.findall(r"```python\n(# shared memory that a pool.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert len(programs) == 1
    script = tmp_path / "program.py"
    script.write_text(programs[0])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=2 * IN_TIME_S
    )
    assert done.stdout == "the copy is exact: True\n" * 2, done.stderr
    assert not done.stderr
    assert done.returncode == 0
