"""How long tests wait: in one place, so that no test ends sooner than another on a machine that is busy."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from support.patience import IN_TIME_S

TESTS = Path(__file__).parents[1]
FILES = sorted(path for path in TESTS.rglob("*.py") if "cases" not in path.relative_to(TESTS).parts)
WAITS = {"wait": 0, "join": 0, "communicate": 1, "settimeout": 0, "run": None, "check_output": None, "urlopen": 2}
WAITS |= {"create_connection": 1, "connect": 1, "finish": 0, "until": 1, "wait_for": 1, "until_state": None}
"""What waits for something else to come, and takes the time for it as this argument (by position) or as ``timeout``."""
LONG_S = 1.0
"""Whoever waits for less does not wait for an event: it sees that none comes, or that one did."""


def bounds(tree: ast.AST) -> list[str]:
    """Calls that wait for seconds that are a number in the code, or a name of one there, and marks that end a test."""
    found = []
    named_numbers = {
        target.id: node.value.value
        for node in ast.iter_child_nodes(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        name = _called(node)
        if isinstance(node, ast.Call) and name in WAITS:
            at = WAITS[name]
            given = [word.value for word in node.keywords if word.arg == "timeout"]
            given += [] if at is None else node.args[at : at + 1]
            numbers = [one.value for one in given if isinstance(one, ast.Constant)]
            numbers += [named_numbers.get(one.id) for one in given if isinstance(one, ast.Name)]
            if any(isinstance(n, int | float) and LONG_S < n < IN_TIME_S for n in numbers):
                found.append(f"line {node.lineno}: {ast.unparse(node)[:60]}")
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.timeout":
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def _called(node: ast.AST) -> str:
    """The name of the function or method that is called, or nothing."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
            return name
    return ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_a_wait_for_an_event_is_as_long_as_all_others(path: Path) -> None:
    assert bounds(ast.parse(path.read_text(encoding="utf-8"))) == [], "say IN_TIME_S of support/patience.py"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("thread.join(10)", 1),
        ("subprocess.run(command, timeout=60)", 1),
        ("until(lambda: done, 20)", 1),
        ("wait_for(ready, timeout=60)", 1),
        ("command.finish(60)", 1),
        ("socket.create_connection((host, port), 30)", 1),
        ("pytestmark = pytest.mark.timeout(60)", 1),
        ("PATIENCE_S = 20.0\nchanged.wait_for(arrived, PATIENCE_S)", 1),
        ("QUIET_S = 0.5\nassert not event.wait(QUIET_S)", 0),
        ("event.wait(0.1); thread.join(); thread.join(IN_TIME_S)", 0),
        ("Standby(address, timeout=2.0)", 0),
    ],
)
def test_what_is_found(code: str, found: int) -> None:
    assert len(bounds(ast.parse(code))) == found
