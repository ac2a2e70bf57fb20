"""What of a captured command line is run, and what its traced syncs come to."""

from pathlib import Path

import pytest

from precopy.bench.peers.qemu.captured import accelerators, parse_command, provide_files
from precopy.bench.peers.qemu.trace_events import QemuSyncs, trace_syncs
from precopy.bench.peers.qemu.trace_log import TracedSync
from precopy.errors import Unsupported, UsageError

OVMF = (
    "qemu-system-x86_64 -accel kvm -machine q35,smm=off -m 512 -drive if=pflash,format=raw,unit=0,readonly=on,file={} "
    "-drive if=pflash,format=raw,unit=1,file={}"
)


def test_figures_are_medians_of_the_migrations_that_are_fair_for_them() -> None:
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
