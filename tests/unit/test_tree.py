"""Rules of the tree that import-linter cannot hold: what names mean, and where what ARCHITECTURE.md names is."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import precopy

SOURCE = Path(precopy.__file__).parent
ROOT = Path(__file__).parents[2]
MODULES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
SOURCES = [*(SOURCE / path for path in MODULES), *sorted((ROOT / "benchmarks").glob("*.py"))]
PAGES = [ROOT / "ARCHITECTURE.md", ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_MODEL = ("planning", "model")
_FILE = re.compile(r"`(?:src/precopy/)?((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.py)?)`")


_HIDES = re.compile(r"\bso many\b|\bwhat there is\b|\bwho asks\b|\bsays nothing of\b|\bas good as it gets\b")
"""Phrases that stand for a quantity, a thing or a reason instead of naming it."""
_NAMELESS = re.compile(r"\b(?:whoever|(?:no|some|any|every)body)\b", re.IGNORECASE)
"""For a thread, a process, a client, a peer or a consumer, which have their names."""


def test_names_of_machines_parts_occur_only_there() -> None:
    """`memory.py`, `guest.py` and `machine.py` are parts of one kind of machine, and `bench guest` is its benchmark."""
    benchmark = {Path("bench/guest.py"), Path("cli/bench/guest.py")}
    found = [path for path in MODULES if path.name in ("memory.py", "guest.py", "machine.py") and path not in benchmark]
    assert found
    assert all(path.parts[0] == "machines" for path in found), found


@pytest.mark.parametrize("name", ["trace", "process"])
def test_a_name_that_is_one_thing(name: str) -> None:
    modules = {path.parent / path.stem if path.stem != "__init__" else path.parent for path in MODULES}
    assert len([path for path in modules if path.name == name]) == 1


def test_every_module_says_what_it_is() -> None:
    empty = [path for path in MODULES if not (SOURCE / path).read_text().lstrip().startswith(('"""', 'r"""'))]
    assert [path for path in empty if path.name != "__main__.py"] == []
    assert [path for path in MODULES if (SOURCE / path).read_text().startswith('""""""')] == []


def _classes(module: Path) -> set[str]:
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}


def test_one_class_for_a_result() -> None:
    """What `migration.results` or `planning.model` calls by a name is called so nowhere else."""
    results = [path for path in MODULES if path == Path("migration/results.py") or path.parts[:2] == _MODEL]
    defined = [(name, path) for path in MODULES for name in _classes(path)]
    names = {name for name, path in defined if path in results}
    assert {"Round", "Verdict", "Downtime", "Decision"} <= names
    twice = {name: found for name in names if len(found := [path for other, path in defined if other == name]) > 1}
    assert twice == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_are_there(page: Path) -> None:
    """A path of the source, from a package on: `dirty/clear.py`, `wire/native/`."""
    packages = {path.name for path in SOURCE.iterdir() if path.is_dir()}
    named = {path for path in _FILE.findall(page.read_text(encoding="utf-8")) if path.split("/")[0] in packages}
    missing = sorted(path for path in named if not (SOURCE / path).exists() and not (ROOT / path).exists())
    assert missing == []


def test_the_map_fits_two_screens() -> None:
    """Names lead; the page is for what they do not say."""
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    assert [line for line in lines if len(line) > 120] == []


def test_laws_stand_where_the_map_says() -> None:
    laws = re.findall(r"^\| ([1-9])\. .*? \| `(.*?\.py)` \|", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE)
    assert [number for number, _ in laws] == ["1", "2", "3", "4", "5", "6"]
    missing = [(number, path) for number, path in laws if f"Law {number}" not in (SOURCE / path).read_text()]
    assert missing == []


def test_unit_tests_mirror_the_tree() -> None:
    """A folder of unit tests is a package of the source."""
    folders = {path.parent.relative_to(Path(__file__).parent) for path in Path(__file__).parent.rglob("test_*.py")}
    assert [folder for folder in folders if not (SOURCE / folder).is_dir()] == []


def _is_of_a_pair(node: ast.For | ast.comprehension) -> bool:
    return {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)} == {"one", "other"}


def _loop_variables(path: Path) -> set[str]:
    """Those of loops, comprehensions and lambdas in a module, but for those of a pair."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.For | ast.comprehension) and not _is_of_a_pair(node):
            names |= {name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Lambda):
            names |= {argument.arg for argument in node.args.args}
    return names


def test_loop_variables_say_what_they_are() -> None:
    """A slot, a round, a block: never just ``one``, but for one of a pair beside the ``other``."""
    assert [path for path in SOURCES if "one" in _loop_variables(path)] == []


def test_loop_variables_are_words() -> None:
    """But for the ``x`` and ``y`` of a point, and what is not used."""
    letters = [(path, name) for path in SOURCES for name in _loop_variables(path) if len(name) == 1]
    assert [(path, name) for path, name in letters if name not in "_xy"] == []


def _said(path: Path) -> list[str]:
    """Comments and docstrings of a module, each in one line."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(io.StringIO(file.read()).readline))
    kinds = (tokenize.COMMENT, tokenize.STRING)
    told = [token.string for token in tokens if token.type in kinds and token.string.startswith(("#", '"""', 'r"""'))]
    return [" ".join(text.split()) for text in told]


def test_comments_name_what_they_mean() -> None:
    """A quantity with its unit, a subject, a reason: none of the words that stand for these."""
    plain = [(path, said) for path in SOURCES for said in _said(path)]
    assert [(path, said) for path, said in plain if _HIDES.search(said) or _NAMELESS.search(said)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_what_they_mean(page: Path) -> None:
    assert _HIDES.findall(" ".join(page.read_text(encoding="utf-8").split())) == []
