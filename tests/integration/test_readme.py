"""The README's Python section, run as it stands."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import precopy
from support.patience import IN_TIME_S

README = Path(__file__).parents[2] / "README.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.needs("pagemap")
def test_the_example_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs it twice has the state of the first time, but for what only the standby has by then."""
    (example,) = examples()
    monkeypatch.chdir(tmp_path)
    for times in (1, 2, 3):
        names: dict[str, Any] = {}
        exec(example[: example.index("with precopy.replicate")], names)
        again = np.frombuffer(names["again"], np.float64)
        assert (again[0], again[999], again[1000], again[5000]) == (times, times, 0, 3)
    assert [one.full for one in precopy.snapshots("state")] == [True, *[False] * 5]


@pytest.mark.needs("pagemap")
def test_the_example_runs_and_does_what_its_comments_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = examples()
    monkeypatch.chdir(tmp_path)
    address = f"unix:{tmp_path}/standby"
    received: list[Any] = []
    standby = threading.Thread(target=lambda: received.append(precopy.receive_memory(address)))
    standby.start()
    names: dict[str, Any] = {}
    exec(example.replace("unix:/tmp/standby", address), names)
    standby.join(IN_TIME_S)

    assert names["found"].indexes.tolist() == [0, 1]
    again = np.frombuffer(names["again"], np.float64)
    assert (again[0], again[999], again[1000], again[5000]) == (1, 1, 0, 3)
    state = names["state"]
    assert (state[0], state[5000], state[-1]) == (2, 4, 1)
    (copy,) = received
    assert np.array_equal(np.frombuffer(copy, np.float64), state)
    assert [one.full for one in precopy.snapshot_store.snapshots(Path("state"))] == [True, False]
