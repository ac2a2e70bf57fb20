"""The tree of errors is the one that its module's docstring draws, exit codes and all."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import precopy
from precopy import errors
from precopy.errors import (
    BitmapRangeError,
    HelloMismatch,
    KernelCallError,
    MappingChanged,
    NotConverged,
    OutcomeUnknown,
    OutOfMemory,
    PeerLost,
    PeerRefused,
    PrecopyError,
    UnreportedWrites,
    Unsupported,
)
from support.patience import IN_TIME_S

EXIT_CODES = {
    "PrecopyError": 1,
    "UsageError": 2,
    "BitmapRangeError": 2,
    "LayoutError": 2,
    "LayoutTextError": 2,
    "Unsupported": 3,
    "OutOfMemory": 3,
    "KernelCallError": 1,
    "SnapshotError": 1,
    "UnreportedWrites": 1,
    "MappingChanged": 1,
    "GuestError": 1,
    "LocalProtocolError": 1,
    "NotConverged": 4,
    "PeerError": 5,
    "PeerLost": 5,
    "PeerRefused": 5,
    "HelloMismatch": 5,
    "PeerProtocolError": 5,
    "OutcomeUnknown": 6,
    "VerificationFailed": 7,
    "SnapshotDamaged": 7,
    "Cancelled": 130,
}


def classes() -> dict[str, type[PrecopyError]]:
    found = vars(errors).items()
    return {name: kind for name, kind in found if isinstance(kind, type) and issubclass(kind, PrecopyError)}


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """Of each line of the docstring's tree: the class, the class above it, and the exit code where it gives one."""
    tree: dict[str, tuple[str | None, int | None]] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([ │├└─]{4,})([A-Z]\w+)(?: +exit (\d+))?(?: |$)", line)
        if match:
            path = [(depth, name) for depth, name in path if depth < match.end(1)]
            tree[match[2]] = (path[-1][1] if path else None, int(match[3]) if match[3] else None)
            path.append((match.end(1), match[2]))
    return tree


def test_every_error_has_its_exit_code() -> None:
    assert {name: kind.exit_code for name, kind in classes().items()} == EXIT_CODES


def test_the_docstring_draws_every_class_once_below_its_base() -> None:
    assert {name: above for name, (above, _) in drawn().items() if above} == {
        name: kind.__bases__[0].__name__ for name, kind in classes().items() if kind is not PrecopyError
    }


def test_the_docstring_gives_the_exit_codes_that_are_set() -> None:
    given = {name: code for name, (_, code) in drawn().items() if code is not None}
    assert given == {name: EXIT_CODES[name] for name in given}
    left_out = EXIT_CODES.keys() - given.keys()
    assert all(EXIT_CODES[name] == classes()[name].__bases__[0].exit_code for name in left_out)  # type: ignore[attr-defined]


def test_no_exit_code_but_failure_means_two_things() -> None:
    tops = [kind for kind in classes().values() if PrecopyError in kind.__bases__ and kind.exit_code != 1]
    assert len({kind.exit_code for kind in tops}) == len(tops)


@pytest.mark.parametrize(
    ("error", "says", "data"),
    [
        (
            BitmapRangeError(5, 10, 12),
            ["[5, 15)", "12 pages"],
            {"start": 5, "count": 10, "size": 12},
        ),
        (
            Unsupported("no x here", "use y"),
            ["no x here; use y"],
            {"what": "no x here", "remedy": "use y"},
        ),
        (
            OutOfMemory("vga", 8 << 20, 5 << 20),
            ["vga", "8 MiB asked for", "5 MiB are available", "--ram"],
            {"name": "vga", "wanted": 8 << 20, "available": 5 << 20},
        ),
        (
            OutOfMemory("vga", 8 << 20, None),
            ["8 MiB asked for; use"],
            {"available": None},
        ),
        (
            KernelCallError("KVM_RUN", "vCPU 3", errno.EFAULT),
            ["KVM_RUN on vCPU 3", "Bad address", f"errno {errno.EFAULT}"],
            {"operation": "KVM_RUN", "target": "vCPU 3", "errno": errno.EFAULT},
        ),
        (
            UnreportedWrites(12, 345),
            ["no sync reported it", "12 pages from page 345", "memory.writing()", "memory.io_buffer()"],
            {"pages": 12, "first": 345},
        ),
        (
            MappingChanged("block 'memory'", "is not mapped any more", 64, 1),
            ["block 'memory'", "is not mapped any more (1 page, from page 64 on)", "begin anew", "full=True"],
            {"target": "block 'memory'", "what": "is not mapped any more", "first": 64, "pages": 1},
        ),
        (
            NotConverged(30, 3 << 20, 1.234, 0.3),
            ["30 rounds", "3.0 MiB", "1234 ms", "300 ms", "runs on at the source", "--downtime-limit"],
            {"rounds": 30, "remaining": 3 << 20, "expected_downtime_s": 1.234, "downtime_limit_s": 0.3},
        ),
        (
            NotConverged(30, 1, 0.6, 0.3, reason="out of rounds: some", smallest_limit=0.4001),
            ["30 rounds", "raise --max-rounds, --downtime-limit to at least 401ms or --max-bandwidth"],
            {"smallest_limit": 0.4001},
        ),
        (
            NotConverged(30, 1, 0.6, 0.3, reason="out of rounds: some", smallest_limit=0.032),
            ["raise --max-rounds, --downtime-limit or --max-bandwidth"],
            {"smallest_limit": 0.032},
        ),
        (PeerLost("gone"), ["gone"], {"silent": False}),
        (PeerLost("quiet", silent=True), ["quiet"], {"silent": True}),
        (PeerRefused("no room"), ["refused: no room"], {"reason": "no room"}),
        (HelloMismatch("sizes differ"), ["sizes differ"], {}),
        (
            OutcomeUnknown("abc", "the link broke"),
            ["session abc", "the link broke", "paused at the source", "precopy status"],
            {"session": "abc", "cause": "the link broke"},
        ),
    ],
)
def test_messages_name_what_the_error_carries(error: PrecopyError, says: list[str], data: dict[str, object]) -> None:
    for part in says:
        assert part in str(error)
    assert {name: getattr(error, name) for name in data} == data


EXTRAS = {
    "prometheus_client": ("metrics", "import precopy.service.metrics"),
    "zstandard": ("snapshot", "from precopy.memory.packing import compressor; compressor(3)"),
    "keystone": ("guests", "from precopy.abi.assembler import assemble; assemble('nop')"),
    "unicorn": ("emulated", "from precopy.cli.guest_choice import choose; choose('emulated')"),
    "qemu.qmp": ("qemu", "from precopy.bench.peers.qemu.launcher import require_qemu; require_qemu('/bin/true')"),
    "numba": ("fast", "from precopy.bitmap import kernels; kernels.load()"),
    "distributed": (
        "cluster",
        "from precopy.cli.plan_sweep import _executor; _executor('tcp://a:1', None).__enter__()",
    ),
}


@pytest.mark.parametrize(("package", "extra", "program"), [(name, *rest) for name, rest in EXTRAS.items()])
def test_a_missing_extra_says_how_to_install_it(package: str, extra: str, program: str) -> None:
    told = "\nexcept precopy.Unsupported as error: print(error)"
    code = f"import sys, precopy; sys.modules[{package!r}] = None\ntry: {program}{told}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=IN_TIME_S, check=True)
    assert done.stdout.endswith(f', which is not installed; pip install "precopy[{extra}]"\n')


def test_there_is_one_place_that_says_how() -> None:
    source = Path(precopy.__file__ or "").parent
    says = [path.relative_to(source) for path in source.rglob("*.py") if "precopy[" in path.read_text(encoding="utf-8")]
    assert says == [Path("errors.py")]
    declared = tomllib.loads((source.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert {*declared["project"]["optional-dependencies"]} - {"dev"} == {extra for extra, _ in EXTRAS.values()}
