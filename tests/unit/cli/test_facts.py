"""What host a figure comes from: the CPU's model and vector unit, of what kernels of several architectures say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from precopy.cli.bench import BENCHMARKS
from precopy.cli.facts import cpu_of, host_facts, host_line
from support.patience import IN_TIME_S

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Processor\nflags\t\t: fpu sse sse2"
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm {}\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
POWER = "processor\t: 0\ncpu\t\t: POWER9 (architected), altivec supported\nclock\t\t: 2300.000000MHz\n"
RISCV = "processor\t: 0\nhart\t\t: 2\nisa\t\t: {}\nmmu\t\t: sv39\nuarch\t\t: thead,c910\n"
S390 = "vendor_id       : IBM/S390\nfeatures\t: esan3 zarch stfle msa vx vxd\n"


@pytest.mark.parametrize(
    ("text", "architecture", "model", "vector"),
    [
        (X86, "x86_64", "Intel(R) Xeon(R) Processor", "SSE2"),
        (f"{X86} avx", "x86_64", "Intel(R) Xeon(R) Processor", "AVX"),
        (f"{X86} avx avx2", "x86_64", "Intel(R) Xeon(R) Processor", "AVX2"),
        (f"{X86} avx2 avx512f avx512vl", "x86_64", "Intel(R) Xeon(R) Processor", "AVX-512"),
        (ARM.format(""), "aarch64", "Arm CPU, implementer 0x41, part 0xd40", "NEON"),
        (ARM.format("sve"), "aarch64", "Arm CPU, implementer 0x41, part 0xd40", "SVE of 256 bits"),
        (ARM.format("sve sve2"), "aarch64", "Arm CPU, implementer 0x41, part 0xd40", "SVE2 of 256 bits"),
        (POWER, "ppc64le", "POWER9 (architected), altivec supported", "AltiVec"),
        (RISCV.format("rv64imafdcv_zicsr"), "riscv64", "thead,c910", "RVV"),
        (RISCV.format("rv64imafdc_zvfh"), "riscv64", "thead,c910", "vector unit unknown"),
        (S390, "s390x", "IBM/S390", "VX"),
        ("", "x86_64", "", "vector unit unknown"),
        ("nonsense\n:::\n", "unheard-of", "", "vector unit unknown"),
    ],
)
def test_a_cpu_is_named(text: str, architecture: str, model: str, vector: str) -> None:
    assert cpu_of(text, architecture, "32\n") == (model, vector)


def test_this_host() -> None:
    facts = host_facts()
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    if facts["architecture"] == "x86_64":
        assert facts["vector"] == ("AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else facts["vector"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", facts["date"])
    assert len(facts["load_average"]) == 3
    line = host_line(facts)
    for part in (facts["cpu"], facts["vector"], f"{facts['cores']} core", f"Linux {facts['kernel']}", "UTC, load "):
        assert part in line


def test_every_benchmark_names_its_host_before_it_measures() -> None:
    for module, _ in BENCHMARKS.values():
        path = Path(sys.modules["precopy.cli.bench"].__file__ or "").parent / f"{module.rpartition('.')[2]}.py"
        source = path.read_text(encoding="utf-8")
        assert source.index("host_facts()") < source.index("measure(\n" if "measure(\n" in source else " measure("), (
            path
        )
        shown = re.search(r'show_result\("bench-[a-z]+", \w+, host, as_json=as_json\)', source)
        assert shown or ("host_line(host)" in source and '"machine": host' in source), path


def test_text_and_document_of_a_benchmark() -> None:
    command = [sys.executable, "-m", "precopy", "bench", "bitmap", "--guest", "1G", "--repeat", "1"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=2 * IN_TIME_S).stdout
    assert text.startswith(f"host: {host_facts()['cpu']}, {host_facts()['vector']}, ")
    document = json.loads(
        subprocess.run([*command, "--json"], capture_output=True, check=True, timeout=2 * IN_TIME_S).stdout
    )
    assert set(host_facts()) == set(document["machine"])
    assert document["machine"]["vector"] == host_facts()["vector"]
