"""The commands as a user runs them: each its own process, all sockets real, and faults as they come."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from precopy.machines.workload import CODE_GPA, assemble
from precopy.machines.workload.image import RESERVED_END
from support.commands import (
    ARRIVES,
    CORRUPTED,
    Bench,
    Command,
    Finished,
    called,
    corrupt,
    find_in_memory,
    processes_of,
    wait_for,
    write_memory,
)
from support.patience import IN_TIME_S
from support.wire_proxy import Fault, Harm, ListeningProxy

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.usefixtures("nothing_left")]

RAM = ("--ram", "16M")
SLOW = ("--max-bandwidth", "2M")
"""With half of 16M filled, a first round of more than four seconds: time enough to do something to it."""


class Two:
    """A guest's process and one that waits for it, both up; ``source`` and ``destination`` are their sockets' names."""

    def __init__(self, bench: Bench, run: Sequence[str] = (), receive: Sequence[str] = ()) -> None:
        self.bench = bench
        self.destination = bench.start("receive", bench.path("wire"), *RAM, "--control", bench.path("to"), *receive)
        self.source = bench.start("run", *RAM, "--control", bench.path("from"), *run)
        bench.until_state("to", "waiting")
        bench.until_state("from", "running")

    def migrate(self, *options: str, to: str = "wire") -> Command:
        """Starts the migration; with SLOW, returns when pages are under way."""
        command = self.bench.start("migrate", self.bench.path("from"), self.bench.path(to), *options)
        if "--max-bandwidth" in options:
            self.bench.until_state("from", "migrating")
            self.bench.until_state("to", "receiving")
        return command

    def guest_is_at_the_source(self) -> None:
        """The guest runs there and has lost nothing; then ends it."""
        self.bench.until_state("from", "running")
        assert self.bench.ask("from", "check")["ok"]
        self.quit("from", self.source)

    def guest_is_at_the_destination(self) -> None:
        self.bench.until_state("to", "running")
        first = self.bench.ask("to", "check")
        assert first["ok"]
        self.quit("to", self.destination)

    def quit(self, name: str, process: Command) -> None:
        assert self.bench.ask(name, "quit")["state"] == "ended"
        assert process.finish().code == 0


@pytest.fixture
def two(bench: Bench) -> Two:
    return Two(bench)


class TestHappyPath:
    def test_every_command_as_json(self, bench: Bench) -> None:
        two = Two(bench, run=["--json", "--workload", "hotset"], receive=["--json"])
        control = bench.path("from")
        before = bench.json("status", control)
        assert before["schema"] == "precopy.status/1"
        assert (before["state"], before["guest"], before["blocks"]) == ("running", "kvm", 10)
        assert before["machine"] == "kvm x86_64, 1 vCPU"
        assert before["pid"] == two.source.pid
        assert before["session"] is before["last_error"] is before["received"] is None
        assert bench.json("status", bench.path("to"))["state"] == "waiting"

        checked = bench.json("check", control)
        assert checked["schema"] == "precopy.check/1"
        assert (checked["ok"], checked["broken"]) == (True, [])
        assert checked["pages"] > 4096
        assert 0 < checked["pause_s"] < IN_TIME_S
        assert bench.json("pause", control)["state"] == "paused"
        paused = [bench.json("check", control) for _ in range(2)]
        assert paused[0]["steps"] == paused[1]["steps"] >= checked["steps"]
        assert bench.json("resume", control)["state"] == "running"

        done = bench.json("migrate", control, bench.path("wire"), "--verify", "--clear", "merged", *ARRIVES)
        self.assert_migration(done)
        ran = two.source.finish()
        assert (ran.code, ran.complaints()) == (0, [])
        assert ran.document()["schema"] == "precopy.run/1"
        assert (ran.document()["outcome"], ran.document()["session"]) == ("migrated", done["session"])

        there = bench.json("status", bench.path("to"))
        assert (there["state"], there["session"]) == ("running", done["session"])
        assert there["received"]["session"] == done["session"]
        assert there["received"]["answered"] is True
        assert there["received"]["compared_pages"] == done["compared_pages"]
        arrived = bench.json("check", bench.path("to"))
        assert arrived["ok"]
        assert arrived["steps"] > paused[1]["steps"]
        wait_for(lambda: bench.ask("to", "check")["steps"] > arrived["steps"])
        assert bench.json("quit", bench.path("to"))["schema"] == "precopy.status/1"
        received = two.destination.finish()
        assert (received.code, received.complaints()) == (0, [])
        assert received.document()["schema"] == "precopy.receive/1"
        assert (received.document()["outcome"], received.document()["session"]) == ("quit", done["session"])

    def assert_migration(self, done: dict[str, Any]) -> None:
        assert done["schema"] == "precopy.migrate/2"
        assert (done["guest"], done["clear"]) == ("kvm", "merged")
        assert done["completed"] is done["verified"] is True
        rounds = done["rounds"]
        assert [one["final"] for one in rounds] == [False] * (len(rounds) - 1) + [True]
        for name in ("get_log_ioctls", "clear_log_ioctls", "zero_pages", "torn_batches"):
            assert done[name] == sum(one[name] for one in rounds)
        assert done["downtime_s"] == pytest.approx(sum(done["downtime"].values()))
        assert done["ram_bytes"] // 4096 == done["compared_pages"]
        assert done["throughput_bytes_per_s"] > 0

    def test_every_command_as_text_over_tcp(self, bench: Bench) -> None:
        destination = bench.start("receive", "tcp:127.0.0.1:0", *RAM, "--vcpus", "2")
        waiting, control_line = destination.line(), destination.line()
        assert waiting.startswith("waiting at tcp:127.0.0.1:")
        assert waiting.endswith(" for a kvm guest (/dev/kvm works here)")
        there = control_line.removeprefix("control: ")
        assert there == f"unix:{bench.temporary}/precopy-{destination.pid}"
        source = bench.start("run", *RAM, "--vcpus", "2", "--workload", "sequential")
        assert source.line().startswith("guest: kvm (/dev/kvm works here), ")
        here = source.line().removeprefix("control: ")

        status = bench.run("status", here)
        assert status.code == 0
        assert status.out.splitlines()[0] == "running: kvm x86_64, 2 vCPUs (/dev/kvm works here)"
        assert "must have left there" in bench.run("check", here).out
        done = bench.run("migrate", here, waiting.split()[2], "--verify", *ARRIVES)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith("kvm guest migrated to tcp:127.0.0.1:")
        for word in ("round", "sync time", "transfer time", "downtime", "compared byte for byte"):
            assert word in done.out
        gone = source.finish()
        assert (gone.code, gone.err) == (0, "")
        assert gone.out == "the guest was migrated away and runs elsewhere\n"
        assert destination.line().startswith("the guest runs here: ")
        assert bench.run("quit", there).code == 0
        assert destination.finish().code == 0

    def test_guest_moves_on_from_where_it_has_arrived(self, two: Two) -> None:
        bench = two.bench
        onward = bench.start("receive", bench.path("next"), *RAM, "--control", bench.path("third"))
        bench.until_state("third", "waiting")
        first = bench.json("migrate", bench.path("from"), bench.path("wire"), *ARRIVES)
        second = bench.json("migrate", bench.path("to"), bench.path("next"), "--verify", *ARRIVES)
        assert first["session"] != second["session"]
        assert two.source.finish().code == two.destination.finish().code == 0
        assert bench.ask("third", "status")["session"] == second["session"]
        assert bench.ask("third", "check")["ok"]
        two.quit("third", onward)

    def test_quitting_ends_who_still_waits(self, bench: Bench) -> None:
        destination = bench.start("receive", bench.path("wire"), *RAM, "--control", bench.path("to"), "--json")
        bench.until_state("to", "waiting")
        assert bench.ask("to", "quit")["state"] == "ended"
        done = destination.finish()
        assert (done.code, done.complaints()) == (0, [])
        assert (done.document()["outcome"], done.document()["received"]) == ("quit", None)

    def test_quitting_who_receives_leaves_the_guest_where_it_is(self, two: Two) -> None:
        migration = two.migrate(*SLOW)
        assert two.bench.ask("to", "quit")["state"] == "ended"
        assert two.destination.finish().code == 0
        migration.finish().sentence(5)
        two.guest_is_at_the_source()

    def test_cancelling_leaves_the_guest_where_it_is(self, two: Two) -> None:
        migration = two.migrate(*SLOW, "--json")
        assert two.bench.json("cancel", two.bench.path("from"))["schema"] == "precopy.status/1"
        error = migration.finish().error_document(130)
        assert error["kind"] == "Cancelled"
        assert "cancelled" in two.destination.finish().sentence(5)
        assert "cancelled" in two.bench.status("from")["last_error"]
        two.guest_is_at_the_source()


class TestRefusals:
    def test_wrong_ram_at_the_destination(self, bench: Bench) -> None:
        two = Two(bench, receive=["--ram", "24M"])
        said = two.migrate().finish().sentence(5)
        sentence = (
            f"RAM block 'pc.ram' has {16 << 20} bytes at the source and {24 << 20} here; start both sides with the "
            f"same --ram and --layout"
        )
        assert said == f"the other side refused: {sentence}"
        assert two.destination.finish().sentence(5) == sentence
        two.guest_is_at_the_source()

    def test_guest_that_does_not_converge(self, bench: Bench) -> None:
        two = Two(bench, run=["--write-rate", "max"])
        options = ["--downtime-limit", "0", "--max-rounds", "3", "--max-bandwidth", "20M", "--json"]
        error = two.migrate(*options).finish().error_document(4)
        assert error["kind"] == "NotConverged"
        assert "did not converge in 3 rounds" in error["message"]
        assert "did not converge" in two.destination.finish().sentence(5)
        two.guest_is_at_the_source()

    def test_memory_that_was_changed_at_the_destination(self, bench: Bench) -> None:
        """Somebody writes into the destination's memory after a page arrived there: only verification can find it."""
        two = Two(bench, run=["--workload", "idle", "--layout", "flat"], receive=["--layout", "flat"])
        migration = two.migrate(*SLOW, "--verify", "--json")
        corrupt(two.destination.pid, assemble("idle"), 16 << 20)
        error = migration.finish().error_document(7)
        assert error["kind"] == "VerificationFailed"
        assert error["message"] == (
            f"1 of 4096 pages differ at the destination, the first at ram_addr page {CORRUPTED}; the guest runs on at "
            f"the source"
        )
        assert two.destination.finish().sentence(7) == "1 of 4096 pages differ from the source's"
        two.guest_is_at_the_source()

    def test_invariant_that_is_broken(self, bench: Bench) -> None:
        two = Two(bench, run=["--workload", "sequential", "--write-rate", "20", "--layout", "flat"])
        wait_for(lambda: bench.ask("from", "check")["steps"] > 1)
        program = find_in_memory(two.source.pid, assemble("sequential"), 16 << 20)
        assert program is not None
        write_memory(two.source.pid, program - CODE_GPA + RESERVED_END, b"\xff" * 4)
        error = bench.run("check", bench.path("from"), "--json").error_document(7)
        assert error["kind"] == "VerificationFailed"
        assert "vCPU 0, page 0: its stamp is 4294967295, after " in error["message"]
        assert bench.status("from")["state"] == "running"
        two.quit("from", two.source)
        two.quit("to", two.destination)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("run", "--ram", "lots"), "'lots' is not a size"),
            (("run", "--ram", "1M"), "at least 2M"),
            (("run", "--write-rate", "0"), "has to be above 0"),
            (("run", "--vcpus", "99"), "99"),
            (("run", "--guest", "emulated", "--vcpus", "2", "--ram", "16M"), "an emulated guest has one vCPU"),
            (("receive", "somewhere"), "is not an address"),
            (("receive", f"unix:/{'x' * 120}"), "longer than 107 bytes"),
            (("migrate", "unix:/nowhere"), "Missing argument 'ADDRESS'"),
            (("migrate", "unix:/a", "unix:/b", "--clear", "never"), "never"),
            (("migrate", "unix:/a", "unix:/b", "--clear", "before-patch"), "merged"),
            (("status", "tcp:127.0.0.1:7000"), "is no control socket"),
            (("walk",), "No such command 'walk'"),
        ],
    )
    def test_what_cannot_be_meant(self, arguments: tuple[str, ...], said: str) -> None:
        done = called(*arguments, "--json")
        assert done.code == 2
        document = done.document()
        assert document["schema"] == "precopy.error/1"
        assert document["error"]["exit_code"] == 2
        assert said in document["error"]["message"]
        assert said in " ".join(done.err.split())

    def test_address_in_use(self, two: Two) -> None:
        bench = two.bench
        there = "; another program listens there: use another path, or end that program"
        said = bench.run("run", *RAM, "--control", bench.path("from")).sentence(2)
        assert said == f"cannot listen at {bench.path('from')}: Address already in use{there}"
        said = bench.run("receive", bench.path("wire"), *RAM, "--control", bench.path("other")).sentence(2)
        assert said == f"cannot listen at {bench.path('wire')}: Address already in use{there}"
        said = bench.run("receive", bench.path("other"), *RAM, "--control", bench.path("from")).sentence(2)
        assert said == f"cannot listen at {bench.path('from')}: Address already in use{there}"
        two.guest_is_at_the_source()
        two.quit("to", two.destination)

    def test_file_in_the_socket_s_place_is_left_alone(self, bench: Bench) -> None:
        (bench.directory / "notes").write_text("mine")
        assert "Address already in use" in bench.run("run", *RAM, "--control", bench.path("notes")).sentence(2)
        assert (bench.directory / "notes").read_text() == "mine"

    def test_directory_that_does_not_exist(self, bench: Bench) -> None:
        said = bench.run("run", *RAM, "--control", bench.path("no/where")).sentence(2)
        gone = bench.directory / "no"
        assert said.endswith(f"No such file or directory; {gone} is not there: use a path in a directory that is there")

    def test_nobody_there(self, bench: Bench) -> None:
        error = bench.run("status", bench.path("nobody"), "--json").error_document(5)
        assert error["message"] == f"cannot connect to {bench.path('nobody')}: No such file or directory"
        source = bench.start("run", *RAM, "--control", bench.path("from"))
        bench.until_state("from", "running")
        said = bench.run("migrate", bench.path("from"), bench.path("nobody")).sentence(5)
        assert said == f"cannot connect to {bench.path('nobody')}: No such file or directory"
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        said = bench.run("migrate", bench.path("from"), f"tcp:127.0.0.1:{port}").sentence(5)
        assert said == f"cannot connect to tcp:127.0.0.1:{port}: Connection refused"
        assert bench.status("from")["state"] == "running"
        bench.ask("from", "quit")
        assert source.finish().code == 0

    def test_commands_that_do_not_fit_the_state(self, two: Two) -> None:
        bench = two.bench
        said = bench.run("resume", bench.path("from")).sentence(2)
        assert said == "the guest is running; this needs it to be paused"
        assert bench.run("check", bench.path("to")).sentence(2).startswith("the guest is waiting; ")
        assert bench.run("cancel", bench.path("from")).sentence(2).startswith("the guest is running; ")
        migration = two.migrate(*SLOW)
        for command in ("check", "pause", "quit"):
            assert bench.run(command, bench.path("from")).sentence(2).startswith("the guest is migrating; ")
        assert (
            bench.run("migrate", bench.path("from"), bench.path("x")).sentence(2).startswith("the guest is migrating")
        )
        assert bench.run("cancel", bench.path("from")).code == 0
        migration.finish().sentence(130)
        two.destination.finish().sentence(5)
        two.guest_is_at_the_source()


class TestMachine:
    """What the machine does not have. Each: exit code 3 and one sentence."""

    def test_too_little_memory(self, bench: Bench) -> None:
        for command in (("run", "--ram", "4T"), ("receive", bench.path("wire"), "--ram", "4T")):
            error = bench.run(*command, "--json").error_document(3)
            assert error["kind"] == "OutOfMemory"
            assert "not enough memory for the guest's RAM: " in error["message"]
            assert error["message"].endswith("use a smaller --ram")

    def test_no_permission_on_kvm(self, bench: Bench) -> None:
        said = self.unprivileged(bench, "run", *RAM, "--guest", "kvm").sentence(3)
        assert said == (
            "no permission to open /dev/kvm; join the group that owns it (usually kvm), or use --guest emulated"
        )

    def unprivileged(self, bench: Bench, *arguments: str) -> Finished:
        """Runs as nobody, who may read everything (Python may lie in root's home) and write nothing."""
        if os.geteuid() or not shutil.which("setpriv"):
            pytest.skip("needs root and setpriv to become somebody without permission")
        mode = os.stat("/dev/kvm").st_mode
        if mode & 0o006:
            pytest.skip("/dev/kvm is open to everybody here")
        prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        prefix += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
        return bench.run(*arguments, prefix=prefix)

    def without_devices(self) -> list[str]:
        """A prefix for a command that finds an empty /dev."""
        hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh"]
        if not shutil.which("unshare") or subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
            pytest.skip("needs leave to make a mount namespace")
        return hide

    def test_no_kvm_device(self, bench: Bench) -> None:
        prefix = self.without_devices()
        error = bench.run("run", *RAM, "--guest", "kvm", "--json", prefix=prefix).error_document(3)
        assert error["message"] == "/dev/kvm does not exist; load the kvm module, or use --guest emulated"

    @pytest.mark.needs("unicorn")
    def test_emulated_guest_where_there_is_no_kvm(self, bench: Bench) -> None:
        source = bench.start("run", *RAM, "--control", bench.path("from"), prefix=self.without_devices())
        why = "no KVM: /dev/kvm does not exist; load the kvm module, or use --guest emulated"
        assert source.line().startswith(f"guest: emulated ({why}), ")
        assert bench.status("from")["why"] == why
        assert bench.ask("from", "check")["ok"]
        bench.ask("from", "quit")
        assert source.finish().code == 0

    def test_device_that_is_not_kvm(self, bench: Bench) -> None:
        prefix = self.without_devices()
        prefix[4] = 'mount -t tmpfs none /dev && touch /dev/kvm && exec "$@"'
        said = bench.run("run", *RAM, "--guest", "kvm", prefix=prefix).sentence(3)
        assert said.startswith("/dev/kvm is not KVM: KVM_GET_API_VERSION on /dev/kvm failed: ")


class TestSuddenDeath:
    """SIGKILL, after which nothing can be tidied: what is left is found out by the others."""

    def test_of_the_source(self, two: Two) -> None:
        migration = two.migrate(*SLOW)
        two.source.kill()
        said = migration.finish().sentence(5)
        assert said == f"the guest's process at {two.bench.path('from')} ended before it answered"
        assert "the peer at" in two.destination.finish().sentence(5)
        assert two.source.finish().code == -signal.SIGKILL
        # The socket file of a process that was killed stays, and is no obstacle to the next.
        assert two.bench.run("status", two.bench.path("from")).sentence(5).endswith("Connection refused")
        again = two.bench.start("run", *RAM, "--control", two.bench.path("from"))
        two.bench.until_state("from", "running")
        two.quit("from", again)

    def test_of_the_destination(self, two: Two) -> None:
        migration = two.migrate(*SLOW, "--json")
        two.destination.kill()
        error = migration.finish().error_document(5)
        assert error["kind"] == "PeerLost"
        assert two.destination.finish().code == -signal.SIGKILL
        two.guest_is_at_the_source()
        two.bench.expected = {"wire", "to"}

    def test_of_the_client(self, bench: Bench) -> None:
        """Who asked for the migration is not who makes it: it goes on."""
        two = Two(bench, run=["--write-rate", "20"])
        migration = two.migrate(*SLOW)
        migration.kill()
        assert migration.finish().code == -signal.SIGKILL
        assert two.source.finish().code == 0
        two.guest_is_at_the_destination()

    def test_of_the_guest(self, two: Two) -> None:
        """A guest that crashes ends its process with a sentence that says why."""
        address = find_in_memory(two.source.pid, assemble("random"), 8 << 20)
        assert address is not None
        two.bench.ask("from", "pause")
        write_memory(two.source.pid, address, b"\xf4" * 256)  # hlt, which is not for user code, and nobody handles that
        two.bench.ask("from", "resume")
        said = two.source.finish().sentence(1)
        assert said == "vCPU 0 left the guest for reason 8 (shutdown (triple fault))"
        two.quit("to", two.destination)


class TestInterrupt:
    """Ctrl-C during a migration: exit code 130, and the guest is where the sentence says."""

    def test_of_the_client(self, two: Two) -> None:
        migration = two.migrate(*SLOW)
        migration.interrupt()
        said = migration.finish().sentence(130)
        assert said == "the migration was cancelled; the guest runs on at the source"
        assert "the migration was cancelled" in two.destination.finish().sentence(5)
        two.guest_is_at_the_source()

    def test_of_the_destination(self, two: Two) -> None:
        migration = two.migrate(*SLOW)
        two.destination.interrupt()
        assert two.destination.finish().sentence(130) == "interrupted"
        said = migration.finish().sentence(5)
        assert said == "the other side refused: the destination was interrupted by its user"
        two.guest_is_at_the_source()

    def test_of_the_source(self, two: Two) -> None:
        """The guest's process is the guest: whoever interrupts it ends it, and the destination is told."""
        migration = two.migrate(*SLOW, "--json")
        two.source.interrupt()
        assert two.source.finish().sentence(130) == "interrupted"
        assert migration.finish().error_document(130)["kind"] == "Cancelled"
        assert "the migration was cancelled" in two.destination.finish().sentence(5)

    def test_of_who_waits_or_runs(self, two: Two) -> None:
        for process in (two.source, two.destination):
            process.interrupt()
            assert process.finish().sentence(130) == "interrupted"

    def test_termination_is_as_orderly(self, two: Two) -> None:
        migration = two.migrate(*SLOW)
        two.destination.process.terminate()
        assert two.destination.finish().sentence(130) == "interrupted"
        migration.finish().sentence(5)
        two.guest_is_at_the_source()


class TestUnknownOutcome:
    """Lost between the commit and its answer; docs/operations.md says how to decide."""

    def migrate(self, two: Two, fault: Fault, meanwhile: Callable[[], None] = lambda: None) -> str:
        """Migrates over a link with the fault, and does ``meanwhile`` when it has struck; returns the session."""
        bench = two.bench
        with ListeningProxy(str(bench.directory / "proxy"), str(bench.directory / "wire"), fault) as link:
            migration = two.migrate("--timeout", "3s", "--json", *ARRIVES, to="proxy")
            assert link.proxy.struck.wait(IN_TIME_S)
            meanwhile()
            error = migration.finish().error_document(6)
        assert error["kind"] == "OutcomeUnknown"
        here = bench.status("from")
        assert here["state"] == "unknown"
        assert here["session"] in error["message"]
        assert here["last_error"] == error["message"]
        session: str = here["session"]
        return session

    def test_it_runs_at_the_destination(self, two: Two) -> None:
        bench = two.bench
        session = self.migrate(two, Fault("destination", "Running", Harm.SILENCE))
        there = bench.ask("to", "status")
        assert (there["state"], there["session"]) == ("running", session)
        stopped = bench.ask("from", "check")
        assert stopped["ok"]
        said = bench.run("pause", bench.path("from")).sentence(2)
        assert said == "where the guest runs is unknown; this needs it to be running"
        assert bench.ask("from", "check")["steps"] == stopped["steps"]
        two.quit("from", two.source)
        arrived = bench.ask("to", "check")
        assert arrived["ok"]
        assert arrived["steps"] > stopped["steps"]
        two.guest_is_at_the_destination()

    def test_it_does_not_run_at_the_destination(self, two: Two) -> None:
        self.migrate(two, Fault("source", "Commit", Harm.CUT))
        two.destination.finish().sentence(5)
        assert two.bench.ask("from", "resume")["state"] == "running"
        two.guest_is_at_the_source()

    def test_destination_killed_in_the_moment_of_the_commit(self, two: Two) -> None:
        bench = two.bench
        self.migrate(two, Fault("source", "Commit", Harm.SILENCE), meanwhile=two.destination.kill)
        assert two.destination.finish().code == -signal.SIGKILL
        assert bench.ask("from", "resume")["state"] == "running"

        # The guest has lost nothing, and can be moved to where the other died: its sockets are in nobody's way.
        two.destination = bench.start("receive", bench.path("wire"), *RAM, "--control", bench.path("to"))
        bench.until_state("to", "waiting")
        assert bench.json("migrate", bench.path("from"), bench.path("wire"), "--verify", *ARRIVES)["verified"]
        assert two.source.finish().code == 0
        two.guest_is_at_the_destination()


def test_bench_finds_what_is_left(tmp_path: Path) -> None:
    """The helper that all tests here lean on does see a stray process."""
    command = Command(["run", *RAM, "--control", f"unix:{tmp_path}/from"], tmp_path)
    assert command.line()
    assert list(processes_of(tmp_path)) == [command.pid]
    command.kill()
    command.finish()
    assert processes_of(tmp_path) == {}
