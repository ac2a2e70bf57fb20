"""Arguments and files that are wrong or unusual: one sentence, and nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import precopy
from precopy.cli.main import main
from precopy.errors import Unsupported, UsageError
from precopy.memory import CAPTURES, Capture
from precopy.recording.files import RecordingWriter, read_recording
from precopy.snapshot_store import export
from precopy.transport.address import parse_address
from support.commands import called
from support.commands import precopy as command


@pytest.mark.needs("pagemap")
def test_an_export_replaces_no_device_and_no_link(tmp_path: Path) -> None:
    memory = precopy.Memory(1 << 20)
    np.frombuffer(memory, np.uint8)[0] = 7
    precopy.snapshot(memory, tmp_path / "saved")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="no regular file"):
        export(tmp_path / "saved", tmp_path / "fifo")
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    export(tmp_path / "saved", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes()[:2] == b"\x07\x00"


@pytest.mark.parametrize("name", CAPTURES)
def test_a_capture_with_a_terminals_line_ends_is_read(name: str, tmp_path: Path) -> None:
    Capture.named(name).write(tmp_path)
    for file in ("ramblock.txt", "mtree-flat.txt"):
        text = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(text.replace(b"\n", b"\r\n"))
    assert Capture.read(tmp_path).layout() == Capture.named(name).layout()


@pytest.mark.parametrize(
    "arguments",
    [("bench", "sync", "--ram-share", "nan"), ("bench", "display", "--refresh", "nan"), ("demo", "--fill", "nan")],
)
def test_what_is_no_number_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    done = called(*arguments)
    assert done.code == 2
    assert "no number" in done.err


@pytest.mark.needs("kvm")
def test_a_write_rate_of_zero_is_not_taken_for_the_largest() -> None:
    done = called("demo", "--ram", "16M", "--write-rate", "0", "--clear", "merged")
    assert done.code == 2
    assert "above 0" in done.err


@pytest.mark.needs("pagemap")
def test_a_child_process_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    """Its descriptors are its parent's: it can neither harvest nor end what is tracked there."""
    memory = precopy.Memory(64 * 4096)
    array = np.frombuffer(memory, np.uint8)
    with memory.track() as changes:
        changes.sync()
        array[5 * 4096] = 1
        child = os.fork()
        if not child:
            try:
                changes.sync()
            except Unsupported:
                memory.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert changes.sync().indexes.tolist() == [5]
        memory.close()
        with pytest.raises(UsageError, match="is closed"):
            changes.sync()


def test_replicating_what_is_no_memory_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(UsageError, match="bytearray cannot"):
        precopy.replicate(bytearray(4096), "unix:/nowhere")  # type: ignore[arg-type]
    assert "replicate" in dir(precopy)


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "unix:/a\0b"),
        ("migrate", "unix:/a", "tcp:a\0b:7000"),
        ("migrate", "unix:/a", "unix:/b", "--record", "/tmp/a\0b"),
        ("report", "a\0b"),
        ("snapshot", "list", "a\0b"),
        ("layout", "a\0b"),
        ("plan", "--recording", "a\0b"),
        ("run", "--json", "--control", "unix:/a\0b"),
    ],
)
def test_a_nul_in_an_argument_is_a_usage_error(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert len(said) == 1
    assert "NUL" in said[0]
    assert "\0" not in said[0]


LONG = "x" * 5000
PLAN = ("plan", "sweep", "--ram", "1G", "--dirty-rate", "1M", "--bandwidth", "1G", "--sync-time", "1ms", "--csv")


@pytest.mark.parametrize(
    "arguments",
    [
        *(("report", nothing) for nothing in (".", "/", "", "..", LONG)),
        *(("layout", nothing) for nothing in (".", "", LONG, "/proc/1/cwd/x")),
        *((*PLAN, nothing) for nothing in (LONG, f"{LONG}/x", "/proc/1/fd/x/y", "/dev/null/x")),
        ("replay", "."),
        ("snapshot", "list", LONG),
        ("bench", "sync", "--layout", LONG),
    ],
    ids=lambda arguments: "-".join(argument[:12] for argument in arguments),
)
def test_what_names_no_file_is_one_sentence(arguments: tuple[str, ...]) -> None:
    done = called(*arguments)
    assert done.code in (1, 2), done.err
    assert "internal error" not in done.err
    assert len(done.err.splitlines()) == 1


class TestAWorkingDirectoryThatIsGone:
    """Nothing relative has a place then: one sentence says so, and what is absolute works."""

    @pytest.fixture(autouse=True)
    def gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()

    @pytest.mark.parametrize(
        "arguments",
        [
            ("snapshot", "list", "x"),
            ("snapshot", "list", "."),
            ("snapshot", "export", "/dev/shm", "x"),
            ("migrate", "unix:x", "unix:y", "--record", "z"),
            ("layout", "."),
            ("layout", "x"),
            ("report", "x.json"),
            ("replay", "x"),
        ],
        ids="-".join,
    )
    def test_a_command(self, arguments: tuple[str, ...]) -> None:
        done = command(*arguments)
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert "internal error" not in done.err

    @pytest.mark.needs("pagemap")
    def test_a_program(self, tmp_path: Path) -> None:
        memory = precopy.Memory(1 << 20)
        for call in (
            lambda: precopy.snapshot(memory, "saved"),
            lambda: precopy.open_memory("saved", 1 << 20),
            lambda: precopy.snapshots("saved"),
            lambda: parse_address("unix:x").absolute(),
        ):
            with pytest.raises(UsageError, match="not there any more"):
                call()
        assert precopy.snapshot(memory, tmp_path / "saved").number == 1


def test_a_nul_in_a_path_of_the_api_is_a_usage_error(tmp_path: Path) -> None:
    bad = f"{tmp_path}/a\0b"
    for call in (
        lambda: precopy.restore(bad),
        lambda: precopy.compact(bad),
        lambda: export(tmp_path, bad),
        lambda: read_recording(bad),
        lambda: RecordingWriter(bad),
        lambda: precopy.Standby(f"unix:{bad}"),
        lambda: precopy.receive_memory(f"unix:{bad}"),
    ):
        with pytest.raises(UsageError, match="NUL"):
            call()


def test_a_directory_without_snapshots(tmp_path: Path) -> None:
    """To list nothing is done; to verify nothing is not, because nothing was verified."""
    listed = called("snapshot", "list", str(tmp_path))
    assert (listed.code, listed.out) == (0, f"no snapshots in {tmp_path}\n")
    assert called("snapshot", "list", str(tmp_path), "--json").document()["snapshots"] == []
    sentence = f"{tmp_path} has no snapshot, so nothing was verified"
    assert called("snapshot", "verify", str(tmp_path)).sentence(2) == sentence
    done = called("snapshot", "verify", str(tmp_path), "--json")
    assert (done.code, done.document()["error"]["message"]) == (2, sentence)
