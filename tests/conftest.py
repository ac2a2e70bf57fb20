"""What a test needs of the machine: skipped with its reason where it is missing, a failure where PRECOPY_REQUIRE
(a comma-separated list such as ``kvm,pagemap``) says that this machine has it. Which tests are real: `is_real`.

PRECOPY_EXAMPLES is the number of examples of each property test, for a longer run than the default's.

Where CI is set, property tests draw the same examples each time: what a change is told depends on the change. Other
runs draw new ones."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support import io_uring
from support.browser import NAMES

settings.register_profile(
    "precopy",
    max_examples=int(os.environ.get("PRECOPY_EXAMPLES", "100")),
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("precopy")


def _kvm() -> str | None:
    from precopy.machines.kvm import unavailable

    return unavailable()


def _unicorn() -> str | None:
    return None if importlib.util.find_spec("unicorn") else "the package unicorn is not installed"


def _qemu() -> str | None:
    return None if shutil.which("qemu-system-x86_64") else "qemu-system-x86_64 is not installed"


def _beside(version: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        from precopy.bench.peers.qemu.launcher import find_qemus

        if any(Path(path).parent.name == version for path in find_qemus()):
            return None
        return f"QEMU {version} is not here (scripts/install-qemu-versions {version})"

    return missing


def _pagemap() -> str | None:
    from precopy.trackers.pagemap import unavailable

    return unavailable()


def _cc() -> str | None:
    compilers = (os.environ.get("CC", "cc").split()[0], "gcc", "clang")
    return None if any(map(shutil.which, compilers)) else "no C compiler is installed"


def _io_uring() -> str | None:
    return io_uring.unavailable()


def _chromium() -> str | None:
    return None if any(map(shutil.which, NAMES)) else "no Chromium is installed"


def _numba() -> str | None:
    from precopy.bitmap import kernels

    return kernels.missing()


FEATURES: dict[str, Callable[[], str | None]] = {
    "kvm": _kvm,
    "unicorn": _unicorn,
    "qemu": _qemu,
    "qemu10": _beside("10.0"),
    "qemu11": _beside("11.1"),
    "pagemap": _pagemap,
    "cc": _cc,
    "chromium": _chromium,
    "io_uring": _io_uring,
    "numba": _numba,
}
_why: dict[str, str | None] = {}


def missing(feature: str) -> str | None:
    """Why ``feature`` cannot be used here, or None."""
    if feature not in _why:
        _why[feature] = FEATURES[feature]()
    return _why[feature]


def required() -> set[str]:
    return {name for name in os.environ.get("PRECOPY_REQUIRE", "").split(",") if name}


def pytest_configure(config: pytest.Config) -> None:
    # In a script's background SIGINT is ignored, and so it would be in every command that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("COLUMNS", None)  # tables depend on no terminal; pytest-xdist sets this for its workers
    unknown = required() - FEATURES.keys()
    if unknown:
        raise pytest.UsageError(f"PRECOPY_REQUIRE names {', '.join(sorted(unknown))}; there are {', '.join(FEATURES)}")
    lost = {name: why for name in required() if (why := missing(name))}
    if lost:
        raise pytest.UsageError(f"PRECOPY_REQUIRE is not met: {lost}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for feature in marker.args:
            why = missing(feature)
            if why:
                pytest.skip(f"needs {feature}: {why}")


_PURE = ("unit", "golden", "contract", "property", "fuzz")
"""Directories of tests that need nothing real unless they say so, fast ones first."""


def _kind(item: pytest.Item) -> str:
    """The directory of ``tests/`` that ``item`` lies in."""
    return _directory(item.path)


@functools.cache
def _directory(path: Path) -> str:
    return path.relative_to(Path(__file__).parent).parts[0]


def is_real(item: pytest.Item) -> bool:
    """Whether ``item`` has a guest, a process or a figure."""
    return _kind(item) not in _PURE or item.get_closest_marker("needs") is not None


@pytest.hookimpl(tryfirst=True)  # before -m takes its choice
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the real ones. Fast ones first."""
    for item in items:
        if re.search(r"<.* at 0x[0-9a-f]{6,}", item.nodeid):
            raise pytest.UsageError(f"{item.nodeid} has an address in its name, which each process has another of")
        if is_real(item):
            item.add_marker("real")
    order = (*_PURE, "bench", "integration")
    items.sort(key=lambda item: order.index(_kind(item)) if _kind(item) in order else len(order))


def pytest_collection_finish() -> None:
    """Takes what is there for good, 300,000 objects of tests and modules, out of the garbage collector's sight: else
    each of its full runs goes through them (0.1 s), and writes to all of them, which where a test has forked copies
    them all."""
    gc.collect()
    gc.freeze()
