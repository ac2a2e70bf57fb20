"""Lines broken at words: nothing is lost, nothing is too long, and a number keeps its unit."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.report.wrapping import wrap
from precopy.units import format_bits, format_duration, format_rate, format_size
from support.commands import called
from support.patience import IN_TIME_S

MEASURES = st.one_of(
    st.floats(0, 1e9).map(format_duration),
    st.floats(0, 1e18).map(format_size),
    st.floats(0, 1e15).map(format_rate),
    st.floats(0, 1e15).map(format_bits),
    st.floats(0, 100).map(lambda share: f"{share:.0f} %"),
)
WORDS = st.text("abcxyz.,;:()/-", min_size=1, max_size=12)
SENTENCES = st.lists(st.one_of(WORDS, MEASURES, MEASURES.map(lambda one: f"({one},")), min_size=1, max_size=30)


@given(SENTENCES, st.integers(24, 120), st.sampled_from(["", "  "]))
def test_words_stay_whole(parts: list[str], width: int, indent: str) -> None:
    lines = wrap(" ".join(parts), width, indent=indent)
    assert max(map(len, lines)) <= width
    assert " ".join(line.strip() for line in lines) == " ".join(parts)
    for part in parts:
        assert any(part in line for line in lines), part


@given(st.text(min_size=0, max_size=200), st.integers(1, 40))
def test_no_text_is_lost_or_too_long(text: str, width: int) -> None:
    lines = wrap(text, width)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
    if width > 1:
        assert all(len(line) <= width for line in lines)


def test_a_path_that_is_longer_than_a_line_is_broken_within() -> None:
    assert wrap("cannot open /a/very/long/path/indeed: no", 12) == [
        "cannot open",
        "/a/very/long",
        "/path/indeed",
        ": no",
    ]


WIDTHS = (40, 60, 80)
EACH_WIDTH = """
import os, sys
from precopy.cli.main import main
for columns in sys.argv[1].split():
    os.environ["COLUMNS"] = columns
    try:
        main(sys.argv[2:])
    except SystemExit as ended:
        print("\\f", ended.code, sep="", end="\\f", flush=True)
"""


def on_terminals(arguments: list[str]) -> list[tuple[str, int]]:
    """What a command writes to a terminal of each of `WIDTHS`, and its exit code."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "dumb"}
    command = [sys.executable, "-c", EACH_WIDTH, " ".join(map(str, WIDTHS)), *arguments]
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment) as child:
        os.close(follower)
        said = b""
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # the other end is closed: how Linux says the end
                break
            if not data:
                break
            said += data
        child.wait(IN_TIME_S)
    os.close(leader)
    *parts, rest = said.decode().replace("\r\n", "\n").split("\f")
    assert rest == ""
    return list(zip(parts[::2], map(int, parts[1::2]), strict=True))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plan", "--ram", "a lot"], 2, "is not a size"),
        (["migrate", "unix:/nowhere/at/all/control", "unix:/nowhere/at/all/wire"], 5, "cannot connect to"),
        (["replay", "/nowhere/at/all/recording"], 2, "there is no file"),
    ],
)
def test_errors_are_broken_at_words(arguments: list[str], code: int, said: str) -> None:
    piped = called(*arguments)
    shown = on_terminals(arguments)
    assert len(shown) == len(WIDTHS)
    for columns, (text, ended) in zip(WIDTHS, shown, strict=True):
        assert ended == code, text
        assert max(map(len, text.splitlines())) <= columns
        assert said in " ".join(text.split())
        for word in ("migration", "recording", "control", "precopy:"):
            assert " ".join(text.split()).count(word) == text.count(word)  # none is broken
        assert " ".join(piped.err.split()) == " ".join(text.split())
