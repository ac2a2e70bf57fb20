"""The assembler, and what a program is told that has none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from precopy.abi.assembler import assemble
from precopy.errors import PrecopyError

NONE = "import sys; sys.modules['keystone'] = None\n"
"""Python code after which the assembler is not installed."""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", NONE + code], capture_output=True, text=True, check=False)


def test_each_mode_has_its_own_encoding() -> None:
    assert assemble("mov eax, 1  # a comment\n\n# another") == bytes.fromhex("b801000000")
    assert assemble("mov eax, 1", bits=16) == bytes.fromhex("66b801000000")
    assert assemble("jmp 0x1010", bits=32, address=0x1000) == bytes.fromhex("eb0e")


def test_what_is_no_assembly_is_refused() -> None:
    with pytest.raises(PrecopyError, match="64-bit code was not assembled"):
        assemble("no such instruction")


def test_a_guest_without_the_extra_is_refused_with_the_command_that_installs_it() -> None:
    done = python("from precopy.cli.main import main; main(['run', '--ram', '16M'])")
    assert done.returncode == 3
    assert 'keystone-engine, which is not installed; pip install "precopy[guests]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_the_memory_of_a_program_needs_no_assembler() -> None:
    done = python("import precopy; print(precopy.Memory(1 << 20).size)")
    assert (done.stdout.strip(), done.returncode) == (str(1 << 20), 0), done.stderr
