"""No argument of the public API is ignored without a word: each has an effect by itself, or is refused without its
partner. `tests/unit/cli/test_partners.py` says the same of the command line's options."""

from __future__ import annotations

import inspect
import math
import threading
from pathlib import Path
from typing import Any

import pytest

import precopy
from precopy.errors import UsageError
from precopy.migration import MigrationOptions
from precopy.names import CONVERGENCE_POLICIES
from support.public_api import public

ALWAYS = {
    "Memory": "size exact",
    "Memory.adopt": "buffer writers exact",
    "Memory.io_buffer": "start length",
    "Memory.over": "mapping",
    "Memory.touched": "start length",
    "Memory.track": "by exact",
    "Memory.writing": "start length",
    "Replication.checkpoint": "wait",
    "Replication.wait": "timeout",
    "Standby": "address timeout max_size max_staging on_progress",
    "Standby.wait": "timeout point",
    "attach": "memory",
    "compact": "directory keep",
    "open_memory": "directory size verify",
    "receive_memory": "address timeout on_loss max_size max_staging on_progress",
    "replicate": "memory address interval max_bandwidth timeout on_progress on_error",
    "restore": "directory at verify",
    "snapshot": "memory directory compress full replace lock",
    "snapshots": "directory",
    "verify": "directory at",
}
"""Parameters that have an effect whatever else is given. One that is new has to be put here, or below."""

IGNORED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "replicate": [
        *(
            ({parameter: value, **interval}, rf"{parameter} .* every interval seconds, and none is; give an interval")
            for parameter, value in (("lock", threading.Lock()), ("quiet", 0.01), ("quiet", 0.0))
            for interval in ({}, {"interval": None}, {"interval": math.inf})
        ),
        ({"quiet": 0.0, "interval": 1, "lock": threading.Lock()}, "give lock or quiet, not both"),
        ({"quiet": 0.0, "interval": math.inf, "lock": threading.Lock()}, "give lock or quiet, not both"),
    ],
    "snapshot": [
        ({"level": level, **compress}, r'level is zstd.s.*compress="zstd"')
        for level in (3, 1, -5)
        for compress in ({}, {"compress": None})
    ],
}
"""What would be ignored, and what is said. The first argument is the one that the sentence is about."""


def test_each_parameter_is_in_one_of_the_tables() -> None:
    refused = {name: {next(iter(arguments)) for arguments, _ in lines} for name, lines in IGNORED.items()}
    walked = set()
    for name, called in public():
        parameters = set(inspect.signature(called).parameters) - {"self"}
        known = set(ALWAYS.get(name, "").split())
        assert parameters == known | refused.get(name, set()), name
        assert not known & refused.get(name, set()), name
        walked.add(name)
    assert {*ALWAYS, *IGNORED} <= walked


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        pytest.param(name, *line, id=f"{name}-{next(iter(line[0]))}-{number}")
        for name, lines in IGNORED.items()
        for number, line in enumerate(lines)
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path: Path, name: str, arguments: dict[str, Any], said: str) -> None:
    """And nothing was done: no connection is tried, no directory made."""
    others: dict[str, dict[str, Any]] = {
        "replicate": {"address": f"unix:{tmp_path}/nowhere"},
        "snapshot": {"directory": tmp_path / "saved"},
    }
    with precopy.Memory(4096) as memory, pytest.raises(UsageError, match=said) as refused:
        getattr(precopy, name)(memory=memory, **others[name], **arguments)
    assert str(refused.value).isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", CONVERGENCE_POLICIES)
def test_throttling_under_a_policy_that_does_not(policy: str) -> None:
    """Each that is refused says which are not; at the time-out each may throttle."""
    MigrationOptions(policy=policy, throttle_mode="auto-converge", on_timeout="throttle")  # type: ignore[arg-type] # by name
    if policy in ("precopy", "qemu-auto-converge"):
        MigrationOptions(policy=policy, throttle_mode="auto-converge")  # type: ignore[arg-type] # by name
        return
    with pytest.raises(UsageError, match=f"{policy} slows no guest down.*precopy or qemu-auto-converge"):
        MigrationOptions(policy=policy, throttle_mode="auto-converge")  # type: ignore[arg-type] # by name
