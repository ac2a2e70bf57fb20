"""Options are typed from the command line to the engine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import click
import pytest

import precopy.cli
from precopy.cli.migrate import migrate
from precopy.cli.options import as_one, json_option
from precopy.cli.values import SIZE
from precopy.migration import MigrationOptions

MODULES = sorted(Path(precopy.cli.__file__).parent.rglob("*.py"))


def untyped(source: str) -> Iterator[str]:
    """Parameters that are ``Any``, or not annotated; ``self`` and ``cls`` aside."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            taken = node.args
            named = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, *filter(None, (taken.vararg, taken.kwarg))]
            for one in named:
                if one.arg in ("self", "cls"):
                    continue
                if one.annotation is None or ast.unparse(one.annotation) in ("Any", "typing.Any"):
                    yield f"{node.name}({one.arg}), line {node.lineno}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_no_parameter_is_any(module: Path) -> None:
    assert list(untyped(module.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def run(as_json: bool, **options: Any) -> None: ...", "run(options), line 1"),
        ("def run(*rest: typing.Any) -> None: ...", "run(rest), line 1"),
        ("class A:\n    async def run(self, *, control: Any) -> None: ...", "run(control), line 2"),
        ("def run(control) -> None: ...", "run(control), line 1"),
    ],
)
def test_the_rule_finds_what_it_forbids(source: str, found: str) -> None:
    assert list(untyped(source)) == [found]


def test_migrate_has_an_option_for_every_field_of_the_engines() -> None:
    assert {field.name for field in fields(MigrationOptions)} <= {param.name for param in migrate.params}


def test_options_of_one_subject_are_one_argument() -> None:
    @dataclass(frozen=True)
    class Room:
        ram: int
        doors: int

    seen: list[object] = []

    @click.command()
    @click.option("--ram", type=SIZE, default="1M")
    @as_one("room", Room, [click.option("--doors", type=int, default=2)])
    @json_option
    def build(room: Room, as_json: bool) -> None:
        seen.extend((room, as_json))

    build.main(["--ram", "2M", "--json"], standalone_mode=False)
    assert seen == [Room(2 << 20, 2), True]
    assert [param.name for param in build.params] == ["ram", "doors", "as_json"]
