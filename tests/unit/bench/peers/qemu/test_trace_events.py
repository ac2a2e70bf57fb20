"""Reading QEMU's trace, and what of a captured command line is run."""

from pathlib import Path

import pytest

from precopy.bench.peers.qemu.captured import accelerators, parse_command, provide_files
from precopy.bench.peers.qemu.trace_events import QemuSyncs, TracedSync, parse_trace, trace_syncs
from precopy.errors import PeerProtocolError, Unsupported, UsageError

MIGRATION = """\
77@100.999990:migration_bitmap_sync_start
77@100.999995:kvm_clear_dirty_log slot#1 start 0x0 size 0x40
77@101.000001:kvm_clear_dirty_log slot#65537 start 0x40 size 0x40
some device: a guest error that has nothing to do with it
77@101.000490:migration_bitmap_sync_end dirty_pages 0
77@101.001000:kvm_clear_dirty_log slot#0 start 0x0 size 0xa0
77@102.000000:migration_bitmap_sync_start
88@102.000050:kvm_clear_dirty_log slot#9 start 0x0 size 0x40
77@102.000060:kvm_clear_dirty_log slot#1 start 0x0 size 0x40
77@102.000070:kvm_clear_dirty_log slot#1 start 0x0 size 0x40
77@102.000100:migration_bitmap_sync_end dirty_pages 18
77@103.000000:migration_bitmap_sync_start
77@103.000020:migration_bitmap_sync_end dirty_pages 18
"""
START = "77@1.000000:migration_bitmap_sync_start \n"
END = "77@1.000500:migration_bitmap_sync_end dirty_pages 3\n"
OVMF = (
    "qemu-system-x86_64 -accel kvm -machine q35,smm=off -m 512 -drive if=pflash,format=raw,unit=0,readonly=on,file={} "
    "-drive if=pflash,format=raw,unit=1,file={}"
)


class TestTrace:
    def test_times_syncs_and_tells_their_clears_from_deferred_ones(self) -> None:
        trace = parse_trace(MIGRATION)
        assert [round(1e6 * sync.sync_s) for sync in trace.syncs] == [500, 100, 20]
        assert [sync.phase for sync in trace.syncs] == ["setup", "iterate", "complete"]
        assert [sync.dirty_pages for sync in trace.syncs] == [0, 18, 18]
        assert [sync.clears_by_slot for sync in trace.syncs] == [{1: 1, 65537: 1}, {1: 2}, {}]
        assert [sync.clear_ioctls for sync in trace.syncs] == [2, 2, 0]
        assert trace.deferred_clear_ioctls == 1

    def test_a_line_of_11_1_has_a_date_and_no_thread(self) -> None:
        trace = parse_trace(
            "2026-11-29T23:59:59.999990Z migration_bitmap_sync_start \n"
            "2026-11-29T23:59:59.999995Z kvm_clear_dirty_log slot#1 start 0x0 size 0x40\n"
            "2026-11-30T00:00:00.000040Z migration_bitmap_sync_end dirty_pages 7\n"
        )
        assert [(round(1e6 * sync.sync_s), sync.dirty_pages, sync.clear_ioctls) for sync in trace.syncs] == [(50, 7, 1)]

    def test_clears_that_were_not_traced_are_not_none_at_all(self) -> None:
        (sync,) = parse_trace(START + END, clears=False).syncs
        assert sync == TracedSync("setup", pytest.approx(500e-6), 3, None)
        assert sync.clear_ioctls is None

    def test_no_events_are_no_syncs(self) -> None:
        assert parse_trace("warning: host doesn't support requested feature\n\n").syncs == ()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("migration_bitmap_sync_start\n" + END, "not understood: 'migration_bitmap_sync_start'"),
            (START + "77@1.5:migration_bitmap_sync_end dirty_pages 3", "not understood"),
            (START + "77@1.000500:migration_bitmap_sync_end dirty_pa", "migration_bitmap_sync_end is not understood"),
            (START + "77@1.000001:kvm_clear_dirty_log slot#x start 0x0 size 0x40", "kvm_clear_dirty_log is not"),
            (START + "77@1.000001:kvm_clear_dirty_log", "kvm_clear_dirty_log is not understood: ''"),
            ("2026-13-29T23:59:59.999990Z migration_bitmap_sync_start", "a time that cannot be"),
            (START, "does not end"),
            (START + START, "within another"),
            (END, "ends before it starts"),
            (START + END.replace("1.000500", "0.999999"), "ends before it starts"),
        ],
    )
    def test_trace_that_makes_no_sense_is_the_peers_fault(self, text: str, message: str) -> None:
        with pytest.raises(PeerProtocolError, match=message):
            parse_trace(text)

    def test_figures_are_medians_of_the_migrations_that_are_fair_for_them(self) -> None:
        timed = tuple(TracedSync("iterate", time, 0, None) for time in (0.3, 0.1, 0.2))
        counted = tuple(TracedSync("iterate", time, 0, {1: 892, 2: 132}) for time in (2.0, 1.0, 3.0))
        syncs = QemuSyncs("7.2.22", "kvm", "running", 1 << 29, (), "", "", timed, counted, 1, 2)
        assert (syncs.sync_s, syncs.sync_all_events_s, syncs.clear_ioctls) == (0.2, 2.0, 1024)


class TestCommandLine:
    def test_stays_as_captured(self) -> None:
        words = parse_command("qemu-system-x86_64 -accel kvm -m 512 -name 'a guest'\n")
        assert words == ("qemu-system-x86_64", "-accel", "kvm", "-m", "512", "-name", "a guest")

    @pytest.mark.parametrize(
        ("memory", "replaced"),
        [
            ("-m 512", "-m 2048M"),
            ("--m 4G", "--m 2048M"),
            ("-m size=4G,slots=2,maxmem=8G", "-m size=2048M,slots=2,maxmem=8G"),
            ("-m 4G,slots=2,maxmem=8G", "-m 2048M,slots=2,maxmem=8G"),
            ("-smp 2", "-smp 2 -m 2048M"),
        ],
    )
    def test_ram_replaces_what_it_says(self, memory: str, replaced: str) -> None:
        assert parse_command(f"qemu-system-x86_64 {memory}", 2 << 30) == ("qemu-system-x86_64", *replaced.split())

    @pytest.mark.parametrize("ram", [0, -(1 << 20), (1 << 20) + 4096])
    def test_ram_that_cannot_be_is_a_usage_error(self, ram: int) -> None:
        with pytest.raises(UsageError, match="1 MiB"):
            parse_command("qemu-system-x86_64 -m 512", ram)

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("", "empty command line"),
            ("rm -rf /", "not rm"),
            ("/tmp/qemu-system-x86_64 -m 512", "not /tmp/"),
            ("qemu-system-aarch64 -m 512", "only qemu-system-x86_64"),
            ("qemu-system-x86_64 -name 'open", "split"),
            ("qemu-system-x86_64 -daemonize", "-daemonize"),
            ("qemu-system-x86_64 --incoming defer", "-incoming"),
            ("qemu-system-x86_64 -S", "-S"),
        ],
    )
    def test_anything_else_is_a_usage_error(self, command: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            trace_syncs(command)

    @pytest.mark.parametrize(("syncs", "timeout"), [(0, 1.0), (1, 0.0)])
    def test_nothing_to_trace_is_a_usage_error(self, syncs: int, timeout: float) -> None:
        with pytest.raises(UsageError):
            trace_syncs("qemu-system-x86_64", syncs=syncs, timeout=timeout)

    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ("-accel kvm", {"kvm"}),
            ("-accel tcg,thread=multi", {"tcg"}),
            ("-accel kvm -accel tcg", {"kvm", "tcg"}),
            ("-enable-kvm", {"kvm"}),
            ("-machine q35,accel=kvm:tcg", {"kvm", "tcg"}),
            ("-M q35,smm=off", set()),
        ],
    )
    def test_accelerators(self, options: str, names: set[str]) -> None:
        assert accelerators(options.split()) == names


class TestFiles:
    @pytest.fixture
    def firmware(self, tmp_path: Path) -> Path:
        """A directory of firmware as Debian's package ovmf makes it, in names."""
        directory = tmp_path / "OVMF"
        directory.mkdir()
        for name in ("CODE_4M", "CODE_4M.secboot", "CODE_4M.ms", "VARS_4M", "VARS_4M.ms"):
            (directory / f"OVMF_{name}.fd").write_text(name)
        return directory

    @pytest.mark.parametrize(
        ("code", "variables"),
        [("CODE_4M", "VARS_4M"), ("CODE_4M.secboot", "VARS_4M"), ("CODE_4M.ms", "VARS_4M.ms")],
    )
    def test_variables_belong_to_the_code(self, firmware: Path, tmp_path: Path, code: str, variables: str) -> None:
        provide_files(parse_command(OVMF.format(firmware / f"OVMF_{code}.fd", "vars.fd")), tmp_path)
        assert (tmp_path / "vars.fd").read_text() == variables

    def test_none_are_made_where_none_are_named(self, tmp_path: Path) -> None:
        provide_files(parse_command("qemu-system-x86_64 -m 512 -drive if=virtio,file=disk.img"), tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_missing_firmware_says_what_installs_it(self, tmp_path: Path) -> None:
        for command in (OVMF.format("/none/OVMF_CODE.fd", "vars.fd"), "qemu-system-x86_64 -bios /none/bios.bin"):
            with pytest.raises(Unsupported, match=r"/none/.* is missing; run scripts/install-debian-packages"):
                provide_files(parse_command(command), tmp_path)

    def test_firmware_without_variables_is_unsupported(self, tmp_path: Path) -> None:
        (tmp_path / "firmware.fd").touch()
        with pytest.raises(Unsupported, match="no variables"):
            provide_files(parse_command(OVMF.format(tmp_path / "firmware.fd", "vars.fd")), tmp_path)

    @pytest.mark.parametrize("name", ["../vars.fd", "a/vars.fd"])
    def test_name_that_leads_elsewhere_is_a_usage_error(self, firmware: Path, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match="plain name"):
            provide_files(parse_command(OVMF.format(firmware / "OVMF_CODE_4M.fd", name)), tmp_path)

    def test_variables_without_firmware_are_a_usage_error(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no firmware"):
            provide_files(parse_command("qemu-system-x86_64 -drive if=pflash,file=vars.fd"), tmp_path)
