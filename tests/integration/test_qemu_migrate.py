"""Stock QEMU migrates our guest: random memory arrives, the guest goes on, and nothing is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from precopy.bench.peers.qemu import launcher as machine
from precopy.bench.peers.qemu.boot import build_rom
from precopy.bench.peers.qemu.migrate import QemuPair, measure_migration
from precopy.bench.peers.qemu.pair import Side
from precopy.bench.peers.qemu.program import FIRST_FILLED, LOW_RAM_END, Guest
from precopy.errors import NotConverged, OutOfMemory, PeerLost, Unsupported, UsageError
from precopy.units import PAGE_SIZE
from support.commands import wait_for
from support.patience import IN_TIME_S
from support.processes import children

RAM = 128 << 20
REWRITTEN = 16 << 20
LIMIT = 0.3

needs = [pytest.mark.needs("qemu"), pytest.mark.needs("kvm")]
needs_and_leaves_nothing = [*needs, pytest.mark.usefixtures("qemu_leaves_nothing")]


def assert_random(content: bytes) -> None:
    assert len(zlib.compress(content)) > 0.99 * len(content)


def stamps(pair: QemuPair, side: Side) -> list[int]:
    """What the guest wrote last into each page of its rewritten set."""
    content = memoryview(pair.read_ram(side, FIRST_FILLED, REWRITTEN)).cast("Q")
    return content[:: PAGE_SIZE // 8].tolist()


@pytest.mark.parametrize("write_rate", [None, 20_000])
class TestMigration:
    pytestmark = needs_and_leaves_nothing

    def test_moves_random_memory_and_a_guest_that_goes_on(self, write_rate: int | None) -> None:
        still = FIRST_FILLED + REWRITTEN
        with QemuPair(ram=RAM, rewritten=REWRITTEN, write_rate=write_rate, timeout=IN_TIME_S) as pair:
            before = [pair.read_ram("source", address, 1 << 20) for address in (still, RAM - (1 << 20))]
            completed = pair.migrate(LIMIT)
            after = [pair.read_ram("destination", address, 1 << 20) for address in (still, RAM - (1 << 20))]
            stopped_at = pair.pages_written("source")
            first = stamps(pair, "destination")
            wait_for(lambda: stamps(pair, "destination") != first)
            assert pair.pages_written("source") == stopped_at < pair.pages_written("destination")

        assert before == after
        for content in after:
            assert_random(content)
        assert completed.answer["status"] == "completed"
        assert completed.answer["ram"]["transferred"] > 0.98 * RAM
        assert 0 < completed.stop_to_resume_s < completed.wall_s < IN_TIME_S

    def test_guest_writes_every_page_of_its_set_and_no_other(self, write_rate: int | None) -> None:
        with QemuPair(ram=RAM, rewritten=REWRITTEN, write_rate=write_rate, timeout=IN_TIME_S) as pair:
            pages = REWRITTEN // PAGE_SIZE
            wait_for(lambda: pair.pages_written("source") > pages)
            written = stamps(pair, "source")
            beyond = pair.read_ram("source", FIRST_FILLED + REWRITTEN, PAGE_SIZE)
            whole_page = pair.read_ram("source", FIRST_FILLED, PAGE_SIZE)
            now = pair.pages_written("source")

        assert 0 < min(written) <= max(written) <= now
        assert_random(beyond)
        assert_random(whole_page[8:])


class TestPace:
    """Time that the host gives to others is not made up for: so the least is what it writes in a second of CPU time, of
    which it takes all that it gets."""

    pytestmark = needs_and_leaves_nothing

    def test_guest_without_one_is_not_emulated(self) -> None:
        """It writes far more than 0.3 million a second, which is what it would reach where CPL 0 is emulated."""
        _, of_cpu = write_rates(None)
        assert of_cpu > 2e6

    def test_guest_keeps_its_own(self) -> None:
        reached: list[float] = []
        # It measures its clock when it comes up, which is too slow where the host takes its CPU just then.
        while len(reached) < 4 and not any(rate > 0.8 * 20_000 for rate in reached):
            of_time, of_cpu = write_rates(20_000)
            assert of_time < 1.2 * 20_000
            reached.append(of_cpu)
        assert max(reached) > 0.8 * 20_000


def write_rates(write_rate: int | None) -> tuple[float, float]:
    """Pages that a guest writes in a second, and in a second of its processes' CPU time."""
    before = children()
    with QemuPair(ram=RAM, rewritten=REWRITTEN, write_rate=write_rate, timeout=IN_TIME_S) as pair:
        pids = children() - before
        began, spent, written = time.perf_counter(), cpu_s(pids), pair.pages_written("source")
        wait_for(lambda: cpu_s(pids) - spent > 0.5)
        pages = pair.pages_written("source") - written
        return pages / (time.perf_counter() - began), pages / (cpu_s(pids) - spent)


def cpu_s(pids: set[int]) -> float:
    """Seconds of CPU time that the processes have had, their guests' included."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in stats) / os.sysconf("SC_CLK_TCK")


class TestMeasurement:
    pytestmark = needs_and_leaves_nothing

    def test_figures_agree_with_each_other(self) -> None:
        began = time.perf_counter()
        measured = measure_migration(
            ram=RAM, rewritten=REWRITTEN, downtime_limit_s=LIMIT, settle=0.1, timeout=IN_TIME_S
        )
        within_s = time.perf_counter() - began
        assert measured.version[0].isdigit()
        assert 0 < measured.downtime_s <= measured.total_s
        # What QEMU says, and how long it took to hear of it. On a busy machine that is longer, or shorter: QEMU says
        # that it has completed before it takes the time.
        assert measured.wall_s / 20 < measured.total_s < within_s
        assert 0 < measured.wall_s < within_s
        assert measured.transferred_bytes > 0.98 * RAM
        assert measured.throughput_bytes_per_s * measured.total_s == pytest.approx(measured.transferred_bytes)
        assert measured.wall_throughput_bytes_per_s * measured.wall_s == pytest.approx(measured.transferred_bytes)
        assert measured.rounds >= 2
        assert measured.downtime_limit_s == LIMIT
        assert measured.write_rate_pages_per_s > 0

    def test_idle_guest_writes_nothing_and_sends_its_memory_once(self) -> None:
        measured = measure_migration(ram=RAM, rewritten=0, settle=0.1, timeout=IN_TIME_S)
        assert measured.write_rate_pages_per_s == 0
        assert 0.98 * RAM < measured.transferred_bytes < 1.05 * RAM


class TestFailures:
    pytestmark = needs_and_leaves_nothing

    def test_guest_runs_on_at_the_source_if_time_is_up(self) -> None:
        with QemuPair(ram=RAM, rewritten=REWRITTEN, timeout=IN_TIME_S) as pair:
            pair._timeout = 2
            with pytest.raises(NotConverged) as caught:
                pair.migrate(LIMIT, max_bandwidth=10 << 20)
            assert caught.value.remaining > RAM // 2
            assert pair.measure_write_rate("source", 0.1) > 0

    def test_lost_processes_are_an_error_that_names_them(self) -> None:
        before = children()
        with QemuPair(ram=RAM, rewritten=REWRITTEN, timeout=IN_TIME_S) as pair:
            for pid in children() - before:
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(PeerLost, match=r"QEMU \((source|destination)\) is lost"):
                pair.migrate(LIMIT)

    def test_start_failure_carries_what_qemu_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        command = machine.Config.command
        monkeypatch.setattr(machine.Config, "command", lambda *args: [*command(*args), "-device", "no-such"])
        pair = QemuPair(ram=RAM, rewritten=REWRITTEN, timeout=IN_TIME_S)
        with pytest.raises(PeerLost, match="no-such"), pair:
            pass


class TestSuddenDeath:
    pytestmark = needs

    @pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
    def test_killed_measurement_leaves_no_qemu(self, tmp_path: Path) -> None:
        program = (
            "from precopy.bench.peers.qemu.migrate import QemuPair\nimport time\n"
            f"with QemuPair(ram={RAM}, rewritten={REWRITTEN}, timeout={IN_TIME_S}) as pair:\n"
            "    print('up', flush=True)\n    time.sleep({IN_TIME_S})\n"
        )
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as run:
            assert run.stdout is not None
            assert run.stdout.readline() == b"up\n"
            pids = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            run.kill()
        assert len(pids) == 2
        deadline = time.monotonic() + IN_TIME_S
        while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(is_alive(pid) for pid in pids)


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestRefusals:
    def test_missing_qemu_is_unsupported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setenv("PRECOPY_QEMUS", "/nowhere")
        with pytest.raises(Unsupported, match="qemu-system-x86_64 is not installed"):
            measure_migration(ram=RAM, rewritten=0)

    def test_missing_kvm_is_unsupported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("qemu.qmp")
        monkeypatch.setattr(machine, "find_qemu", lambda: "qemu-system-x86_64")
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(Unsupported, match="/dev/kvm"):
            measure_migration(ram=RAM, rewritten=0)

    def test_too_much_memory_is_refused_before_anything_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("precopy.bench.peers.qemu.pair.require_qemu", lambda _: "qemu-system-x86_64")
        monkeypatch.setattr("precopy.bench.peers.qemu.pair._OVERHEAD", 1 << 60)
        with pytest.raises(OutOfMemory):
            measure_migration(ram=RAM, rewritten=0)

    @pytest.mark.parametrize(
        ("ram", "rewritten", "write_rate"),
        [
            (RAM + PAGE_SIZE, 0, None),
            (0, 0, None),
            (128 << 30, 0, None),
            (RAM, RAM, None),
            (RAM, -PAGE_SIZE, None),
            (RAM, 100, None),
            (RAM, REWRITTEN, 0),
        ],
    )
    def test_guest_that_cannot_be_is_a_usage_error(self, ram: int, rewritten: int, write_rate: int | None) -> None:
        with pytest.raises(UsageError):
            QemuPair(ram=ram, rewritten=rewritten, write_rate=write_rate)


class TestImage:
    @pytest.mark.parametrize("ram", [RAM, LOW_RAM_END, LOW_RAM_END + RAM, 64 << 30])
    @pytest.mark.parametrize(("rewritten", "write_rate"), [(0, None), (REWRITTEN, None), (REWRITTEN, 10**9)])
    def test_is_one_segment_that_starts_with_a_jump(self, ram: int, rewritten: int, write_rate: int | None) -> None:
        rom = build_rom(Guest(ram, rewritten, write_rate, seed=(1 << 64) - 1))
        assert len(rom) == 64 << 10
        assert rom[-16] == 0xE9
        assert (0xFFF3 + int.from_bytes(rom[-15:-13], "little")) % (64 << 10) == 0

    def test_content_covers_all_ram_but_the_first_pages(self) -> None:
        ranges = Guest(LOW_RAM_END + RAM, 0).filled
        assert ranges == ((FIRST_FILLED, LOW_RAM_END), (4 << 30, (4 << 30) + RAM))
