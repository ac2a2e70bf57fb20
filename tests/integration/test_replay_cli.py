"""``precopy replay`` and ``precopy compare`` as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from precopy.names import CONVERGENCE_POLICIES
from precopy.units import PAGE_SIZE
from support.commands import called, precopy
from support.traces import BANDWIDTH, RAM, hot_and_cold, record, sequential, write

LINK = BANDWIDTH / PAGE_SIZE


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("recordings")
    paths = str(directory / "in-order"), str(directory / "hot")
    for path, guest in zip(paths, (sequential(0.5 * LINK), hot_and_cold(2 * LINK, 512)), strict=True):
        write(record(guest, mid_round=4), path)
    return paths


def document(*arguments: str) -> dict[str, Any]:
    done = called(*arguments, "--json")
    assert (done.code, done.err) == (0, "")
    return done.document()


class TestReplay:
    def test_as_it_was(self, recordings: tuple[str, str]) -> None:
        body = document("replay", recordings[0])
        assert body["schema"] == "precopy.replay/2"
        assert (body["file"], body["ram_bytes"], body["note"]) == (recordings[0], RAM, "")
        was, would = body["recorded"], body["replayed"]
        assert was.keys() == would.keys()
        assert (would["completed"], would["policy"], would["clear"]) == (True, "precopy", "merged")
        assert would["limits"] == was["limits"]
        assert would["downtime_s"] == pytest.approx(was["downtime_s"], rel=0.05)
        assert would["total_s"] == pytest.approx(was["total_s"], rel=0.02)
        assert [one["number"] for one in would["rounds"]] == list(range(1, len(would["rounds"]) + 1))

    def test_under_other_terms(self, recordings: tuple[str, str]) -> None:
        terms = ("--policy", "qemu", "--bandwidth", "32M", "--clear", "per-page", "--downtime-limit", "2s")
        more = ("--max-rounds", "9", "--max-total", "60s", "--on-timeout", "switch", "--max-throttle", "0.5")
        would = document("replay", recordings[0], *terms, *more)["replayed"]
        assert (would["policy"], would["clear"], would["bandwidth_bytes_per_s"]) == ("qemu", "per-page", 32e6)
        assert would["limits"] == {
            "downtime_limit_s": 2.0, "max_rounds": 9, "timeout_s": 60.0, "on_timeout": "switch", "max_throttle": 0.5,
        }  # fmt: skip
        assert would["completed"]
        assert 1.0 < would["downtime_s"] < 2.1

    def test_for_people(self, recordings: tuple[str, str]) -> None:
        done = precopy("replay", recordings[0], "--bandwidth", "32M")
        assert (done.code, done.err) == (0, "")
        lines = done.out.splitlines()
        (was,) = (line for line in lines if line.strip().startswith("recorded "))
        (would,) = (line for line in lines if line.strip().startswith("replayed "))
        assert "yes" in was.split()
        assert "no" in would.split()
        assert any(line.startswith("replayed: give up, ") for line in lines)

    def test_a_recording_that_was_cut_short(self, recordings: tuple[str, str], tmp_path: Path) -> None:
        short = tmp_path / "short"
        short.write_bytes(Path(recordings[0]).read_bytes()[:-10])
        body = document("replay", str(short))
        assert "cut short" in body["note"]
        assert (body["recorded"]["completed"], body["replayed"]["completed"]) == (None, True)
        assert "note: the recording was cut short" in called("replay", str(short)).out

    def test_what_cannot_be_replayed(self, recordings: tuple[str, str], tmp_path: Path) -> None:
        assert "there is no file" in called("replay", str(tmp_path / "none")).sentence(2)
        assert "it does not begin with" in called("replay", __file__).sentence(2)
        damaged = bytearray(Path(recordings[0]).read_bytes())
        damaged[100] ^= 1
        (tmp_path / "damaged").write_bytes(damaged)
        assert "is damaged: the block at byte 20" in called("replay", str(tmp_path / "damaged")).sentence(7)
        assert "above 0" in called("replay", recordings[0], "--bandwidth", "0").sentence(2)
        assert "needs a --max-throttle" in called("replay", recordings[0], "--on-timeout", "throttle").sentence(2)


class TestCompare:
    def test_all_policies(self, recordings: tuple[str, str]) -> None:
        body = document("compare", *recordings)
        assert body["schema"] == "precopy.compare/1"
        assert [one["name"] for one in body["traces"]] == list(recordings)
        for one in body["traces"]:
            assert [result["policy"] for result in one["results"]] == list(CONVERGENCE_POLICIES)
            assert {*one["results"][0]} == {
                "policy", "completed", "downtime_s", "total_s", "sent_bytes", "guest_time_lost_s", "rounds", "reason",
                "on_front",
            }  # fmt: skip
            assert any(result["on_front"] for result in one["results"])

    def test_one_that_cannot_be_read_is_said_and_the_others_are_compared(
        self, recordings: tuple[str, str], tmp_path: Path
    ) -> None:
        damaged = bytearray(Path(recordings[0]).read_bytes())
        damaged[100] ^= 1
        broken = tmp_path / "damaged"
        broken.write_bytes(damaged)
        done = called("compare", str(broken), *recordings, "--policies", "precopy", "--json")
        assert done.code == 7
        assert "is damaged: the block at byte 20" in done.err
        body = done.document()
        assert [one["name"] for one in body["traces"]] == list(recordings)
        assert [(one["name"], one["exit_code"]) for one in body["failed"]] == [(str(broken), 7)]
        missing = called("compare", recordings[0], "/nowhere", "--policies", "precopy")
        assert recordings[0] in missing.out.splitlines()
        assert "there is no file /nowhere" in missing.sentence(2)
        assert "is damaged" in called("compare", str(broken)).sentence(7)

    def test_some_within_other_limits(self, recordings: tuple[str, str]) -> None:
        body = document("compare", recordings[0], "--policies", "qemu,precopy", "--downtime-limit", "20ms")
        (one,) = body["traces"]
        assert [result["policy"] for result in one["results"]] == ["qemu", "precopy"]
        assert one["results"][1]["downtime_s"] <= 0.02

    def test_for_people(self, recordings: tuple[str, str]) -> None:
        done = called("compare", *recordings, "--policies", "precopy,nova")
        assert (done.code, done.err) == (0, "")
        assert all(recording in done.out.splitlines() for recording in recordings)
        assert "all 2 recordings" in done.out
        assert done.out.count("precopy ") >= 3

    def test_a_policy_that_there_is_not(self, recordings: tuple[str, str]) -> None:
        done = called("compare", recordings[0], "--policies", "precopy,hope")
        assert done.code == 2
        assert "no policy is called 'hope'; there are precopy, qemu" in done.err
