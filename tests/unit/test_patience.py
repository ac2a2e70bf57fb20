"""How long tests wait: in one place, so that no test ends sooner than another on a machine that is busy."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from support.patience import IN_TIME_S

TESTS = Path(__file__).parents[1]
FILES = sorted(path for path in TESTS.rglob("*.py") if "cases" not in path.relative_to(TESTS).parts)
WAITS = {"wait", "wait_for", "join", "communicate", "settimeout", "run", "check_output", "urlopen", "create_connection"}
"""What waits for something else to come, and takes the time for it as its first argument or as ``timeout``."""
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
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            named = [word.value for word in node.keywords if word.arg == "timeout"]
            first = node.args[:1] if node.func.attr in ("wait", "join", "settimeout") else []
            second = node.args[1:2] if node.func.attr == "wait_for" else []
            given = (*named, *first, *second)
            numbers = [one.value for one in given if isinstance(one, ast.Constant)]
            numbers += [named_numbers.get(one.id) for one in given if isinstance(one, ast.Name)]
            if node.func.attr in WAITS and any(isinstance(n, int | float) and LONG_S < n < IN_TIME_S for n in numbers):
                found.append(f"line {node.lineno}: {ast.unparse(node)[:60]}")
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.mark.timeout":
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_a_wait_for_an_event_is_as_long_as_all_others(path: Path) -> None:
    assert bounds(ast.parse(path.read_text(encoding="utf-8"))) == [], "say IN_TIME_S of support/patience.py"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("thread.join(10)", 1),
        ("subprocess.run(command, timeout=60)", 1),
        ("pytestmark = pytest.mark.timeout(60)", 1),
        ("PATIENCE_S = 20.0\nchanged.wait_for(arrived, PATIENCE_S)", 1),
        ("QUIET_S = 0.5\nassert not event.wait(QUIET_S)", 0),
        ("event.wait(0.1); thread.join(); thread.join(IN_TIME_S)", 0),
        ("Standby(address, timeout=2.0)", 0),
    ],
)
def test_what_is_found(code: str, found: int) -> None:
    assert len(bounds(ast.parse(code))) == found
