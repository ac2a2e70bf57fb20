"""``precopy demo`` and ``precopy --help``, as a stranger runs them first."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from precopy.cli.front import COMMANDS
from precopy.machines.workload import assemble
from precopy.migration import Downtime, Round, Verdict
from precopy.names import CLEAR_POLICIES
from precopy.ports import Stall
from precopy.progress import CpuTime
from support.commands import CORRUPTED, Bench, called, corrupt, find_in_memory, processes_of, wait_for
from support.patience import IN_TIME_S

pytestmark = [pytest.mark.usefixtures("nothing_left")]


ARRIVES = ("--downtime-limit", "10s")
"""On a machine, too, that is so busy that the guest does not converge."""
KINDS = [
    pytest.param("kvm", marks=pytest.mark.needs("kvm")),
    pytest.param("emulated", marks=pytest.mark.needs("unicorn")),
]


class StallDocument(msgspec.Struct, forbid_unknown_fields=True):
    window_s: float
    longest_s: float
    stalled_s: float
    gaps: int
    unread: int


class GuestStallDocument(msgspec.Struct, forbid_unknown_fields=True):
    before: StallDocument | None
    precopy: StallDocument | None
    why_not: str


class RoundDocument(msgspec.Struct, forbid_unknown_fields=True):
    """One entry of ``rounds``, field by field; a name that goes or changes is a break of the schema."""

    number: int
    final: bool
    sync_s: float
    log_sync_s: float
    bitmap_sync_s: float
    log_clear_s: float
    transfer_s: float
    send_s: float
    scan_s: float
    clear_s: float
    ack_s: float
    dirty_pages: int
    new_dirty_pages: int
    sent_pages: int
    zero_pages: int
    torn_batches: int
    sent_bytes: int
    get_log_ioctls: int
    clear_log_ioctls: int
    get_log_ioctl_s: float
    clear_log_ioctl_s: float
    bandwidth_bytes_per_s: float
    dirty_rate_bytes_per_s: float
    arrived_s: float
    throttled_share: float
    dirty_map: list[int]
    pending_pages: int
    pending_bytes: int
    again_pages: int
    left_pages: int
    found_twice_pages: int
    stall: StallDocument | None


class RangeDocument(msgspec.Struct, forbid_unknown_fields=True):
    value: float | None
    low: float | None
    high: float | None


class VerdictDocument(msgspec.Struct, forbid_unknown_fields=True):
    """One entry of ``verdicts``, after each round but the last."""

    round: int
    elapsed_s: float
    action: str
    reason: str
    downtime_limit_s: float
    converges: bool | None
    more_rounds: RangeDocument
    downtime_s: RangeDocument
    total_s: RangeDocument
    smallest_downtime_limit_s: RangeDocument
    largest_dirty_rate_bytes_per_s: float | None
    dirty_rate_bytes_per_s: float
    bandwidth_bytes_per_s: RangeDocument
    remaining_bytes: int
    throttle_to: float


class ThrottledDocument(msgspec.Struct, forbid_unknown_fields=True):
    throttled_s: list[float]
    active_s: float


class DowntimeDocument(msgspec.Struct, forbid_unknown_fields=True):
    pause_s: float
    final_sync_s: float
    final_send_s: float
    state_s: float
    commit_s: float


class RunDocument(msgspec.Struct, forbid_unknown_fields=True):
    """One entry of ``runs``."""

    session: str
    guest: str
    tracker: str
    tracker_why: str
    tracker_pause_s: float
    clear: str
    clear_chunk_shift: int
    policy: str
    rounds: list[RoundDocument]
    verdicts: list[VerdictDocument]
    throttled: ThrottledDocument
    guest_time_lost_s: float
    downtime: DowntimeDocument
    downtime_s: float
    downtime_limit_s: float
    total_s: float
    verify_s: float
    setup_s: float
    sent_bytes: int
    ram_bytes: int
    compared_pages: int
    verify_bytes: int
    setup_bytes: int
    other_bytes: int
    moving_s: float
    completed: bool
    verified: bool
    verdict: str
    throughput_bytes_per_s: float
    source_cpu: CpuTime
    destination_cpu: CpuTime
    cpu_s_per_gb: float
    get_log_ioctls: int
    clear_log_ioctls: int
    zero_pages: int
    torn_batches: int
    sync_way: str
    sync_way_why: str
    stall: GuestStallDocument


class MachineDocument(msgspec.Struct, forbid_unknown_fields=True):
    host: str
    cpu: str
    vector: str
    architecture: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    precopy: str
    date: str
    load_average: list[float]
    command: str
    defaults: dict[str, str]


class DemoDocument(msgspec.Struct, forbid_unknown_fields=True):
    """``precopy.demo/2``."""

    schema: str
    machine: MachineDocument
    guest: str
    why: str
    runs: list[RunDocument]


def test_the_schema_here_is_that_of_the_records() -> None:
    assert RoundDocument.__struct_fields__ == Round.__match_args__
    assert StallDocument.__struct_fields__ == Stall.__match_args__
    assert VerdictDocument.__struct_fields__ == Verdict.__match_args__
    assert DowntimeDocument.__struct_fields__ == Downtime.__match_args__


@pytest.mark.parametrize("kind", KINDS)
def test_json(bench: Bench, kind: str) -> None:
    done = bench.run("demo", "--ram", "16M", "--guest", kind, *ARRIVES, "--json", timeout=IN_TIME_S)
    assert (done.code, done.err) == (0, "")
    demo = msgspec.convert(done.document(), DemoDocument)

    assert (demo.schema, demo.guest, demo.why) == ("precopy.demo/2", kind, "asked for")
    assert demo.machine.cores > 0
    assert demo.machine.memory_bytes > 0
    assert [run.clear for run in demo.runs] == list(reversed(CLEAR_POLICIES))  # the best one first
    assert len({run.session for run in demo.runs}) == 3
    for run in demo.runs:
        check_run(run, kind)
    deferred, merged, per_page = (run.clear_log_ioctls for run in demo.runs)
    assert per_page == sum(one.dirty_pages + one.found_twice_pages for one in demo.runs[2].rounds) > 4096
    for run, calls in zip(demo.runs[:2], (deferred, merged), strict=True):
        slots = 11 if kind == "kvm" else 1
        assert 0 < calls <= 3 * slots * len(run.rounds)
        assert calls * 20 < per_page


def check_run(run: RunDocument, kind: str) -> None:
    assert (run.guest, run.verdict) == (kind, "yes")
    assert run.completed
    assert run.verified
    assert run.ram_bytes > 16 << 20
    assert run.compared_pages == run.ram_bytes // 4096
    for name in ("get_log_ioctls", "clear_log_ioctls", "zero_pages", "torn_batches"):
        assert getattr(run, name) == sum(getattr(one, name) for one in run.rounds)
    assert run.downtime_s == pytest.approx(sum(msgspec.structs.astuple(run.downtime)))
    assert 0 < run.downtime_s < run.total_s
    assert run.rounds[0].sent_pages + run.rounds[0].zero_pages == run.compared_pages
    assert run.moving_s == run.total_s - run.verify_s - run.setup_s
    assert run.throughput_bytes_per_s == pytest.approx(run.sent_bytes / run.moving_s)
    assert run.sent_bytes == sum(one.sent_bytes for one in run.rounds) + run.other_bytes
    assert run.verify_bytes > (run.compared_pages - run.zero_pages) * 4096 > 0


@pytest.mark.needs("kvm")
def test_table(bench: Bench) -> None:
    """One policy, other options: the table has its line, and the sentence below says what was verified."""
    done = bench.run(
        *("demo", "--ram", "16M", "--clear", "merged", "--tcp", "--vcpus", "2", *ARRIVES),
        *("--workload", "sequential", "--write-rate", "max", "--layout", "flat"),
        timeout=IN_TIME_S,
    )
    assert (done.code, done.err) == (0, "")
    host, guest, *_ = done.out.splitlines()
    assert re.fullmatch(r"host: .+; Linux \S+; \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, load [\d.]+ at the start", host)
    assert guest.startswith("guest: kvm (/dev/kvm works here), 16.0 MiB of RAM, layout flat; it writes as many pages")
    rows = [line.split() for line in done.out.splitlines() if line.split()[:1] == ["merged"]]
    assert len(rows) == 1
    assert rows[0][-1] == "yes"
    for word in (
        "rounds",
        "clear ioctls",
        "first sync time",
        "first transfer time",
        "downtime",
        "throughput",
        "verified",
    ):
        assert word in done.out
    assert "both memories were the same byte for byte" in done.out


@pytest.mark.needs("kvm")
def test_what_does_not_converge_is_a_row_with_its_reason(bench: Bench) -> None:
    options = ["--ram", "4M", "--layout", "flat", "--write-rate", "max", "--max-bandwidth", "10M", "--max-rounds", "2"]
    done = bench.run("demo", *options, "--downtime-limit", "1ms", timeout=IN_TIME_S)
    assert done.sentence(4).startswith("deferred: did not converge: ")
    rows = [line.split()[0] for line in done.out.splitlines() if "did not converge" in line]
    assert rows == list(reversed(CLEAR_POLICIES))
    assert "downtime" in done.out
    document = bench.run("demo", *options, "--downtime-limit", "1ms", "--clear", "merged", "--json", timeout=IN_TIME_S)
    assert document.code == 4
    (run,) = document.document()["runs"]
    assert (run["completed"], run["verified"], len(run["rounds"])) == (False, False, len(run["verdicts"]))
    assert run["verdict"].startswith("did not converge: ")


def destination_of(bench: Bench) -> int:
    """The process that receives, once there is one."""
    found: list[int] = []

    def is_there() -> bool:
        found.extend(pid for pid, line in processes_of(bench.directory).items() if " receive " in line)
        return bool(found)

    wait_for(is_there)
    return found[0]


@pytest.mark.needs("kvm")
@pytest.mark.parametrize("as_json", [True, False], ids=["json", "table"])
def test_memory_that_differs_ends_in_exit_code_7(bench: Bench, as_json: bool) -> None:
    """Somebody writes into the destination's memory while the demo runs, and the demo says so."""
    options = ["--ram", "16M", "--layout", "flat", "--workload", "idle", "--clear", "deferred"]
    command = bench.start("demo", *options, "--max-bandwidth", "2M", *(["--json"] if as_json else []))
    corrupt(destination_of(bench), assemble("idle"), 16 << 20)
    done = command.finish()

    said = (
        f"deferred: 1 of 4096 pages differ at the destination, the first at ram_addr page {CORRUPTED}; the guest runs "
        f"on at the source"
    )
    assert done.sentence(7) == said
    if as_json:
        document: dict[str, Any] = done.document()
        assert document["schema"] == "precopy.demo/2"
        (run,) = document["runs"]
        assert (run["clear"], run["completed"], run["verified"]) == ("deferred", False, False)
        assert run["verdict"] == said.removeprefix("deferred: ")
    else:
        assert "NOT verified" in done.out


@pytest.mark.needs("kvm")
def test_demo_that_cannot_start_says_why(bench: Bench) -> None:
    error = bench.run("demo", "--ram", "4T", "--json").error_document(3)
    assert "not enough memory for the guest's RAM" in error["message"]


@pytest.mark.needs("kvm")
@pytest.mark.parametrize("when", ["starting", "migrating"])
def test_interrupted_demo_leaves_nothing(bench: Bench, when: str) -> None:
    options = ["--ram", "16M", "--layout", "flat", "--workload", "idle"]
    command = bench.start("demo", *options, "--max-bandwidth", "2M")
    if when == "starting":
        wait_for(lambda: len(processes_of(bench.directory)) == 3)
    else:
        pid = destination_of(bench)
        wait_for(lambda: find_in_memory(pid, assemble("idle"), 16 << 20) is not None)
    command.interrupt()
    assert command.finish().sentence(130)


@pytest.mark.needs("kvm")
def test_killed_demo_leaves_no_process(bench: Bench) -> None:
    """Its children end with it; only its directory cannot be removed by the dead."""
    command = bench.start("demo", "--ram", "16M", "--max-bandwidth", "2M")
    wait_for(lambda: len(processes_of(bench.directory)) == 3)
    command.kill()
    command.finish()
    wait_for(lambda: not processes_of(bench.directory))
    for path in sorted(bench.temporary.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def test_help_lists_every_command(bench: Bench) -> None:
    done = bench.run("--help")
    assert (done.code, done.err) == (0, "")
    for name in COMMANDS:
        assert f"\n  {name} " in done.out
    assert "Exit codes: 0 done" in done.out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_its_own_help(command: str) -> None:
    done = called(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: precopy {command} ")


def test_version(bench: Bench) -> None:
    from precopy import __version__

    assert bench.run("--version").out == f"precopy, version {__version__}\n"
