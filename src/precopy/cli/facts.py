"""What host and which command a result comes from: a figure means little without them."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from typing import Any

import click

from precopy import __version__
from precopy.cli.say import say
from precopy.memory.system_memory import total_memory

_VECTORS = (
    ("x86_64", "flags", (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("avx", "AVX"), ("sse2", "SSE2"))),
    ("aarch64", "Features", (("sve2", "SVE2"), ("sve", "SVE"), ("asimd", "NEON"))),
    ("s390x", "features", (("vx", "VX"),)),
    ("loongarch64", "Features", (("lasx", "LASX"), ("lsx", "LSX"))),
)
"""By architecture: the line of /proc/cpuinfo that lists features, and vector units among them, the widest first."""
_MODELS = ("model name", "Model Name", "cpu", "uarch", "Processor", "vendor_id")
"""Lines that name the CPU, on one architecture or another, the most telling first."""
_RISCV_VECTOR = re.compile(r"rv(?:32|64)[a-u]*v")
_SVE_BYTES = "/proc/sys/abi/sve_default_vector_length"


def host_facts() -> dict[str, Any]:
    """The host's name, CPU and its vector unit, cores, memory, kernel, versions, the date and the load averages (1, 5
    and 15 minutes) now, as far as the system tells, and what was asked for: take them before measuring."""
    cpu, vector = cpu_of(_text("/proc/cpuinfo"), platform.machine(), _text(_SVE_BYTES))
    return {
        "host": platform.node(),
        "cpu": cpu,
        "vector": vector,
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": total_memory(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "precopy": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": _load(),
        "command": shlex.join(["precopy", *sys.argv[1:]]),
        "defaults": _defaults(),
    }


def _defaults() -> dict[str, str]:
    """The options of the command under way that were left at their defaults, as its help names both. Options that
    mean nothing then (switches that are off, values that are not set) are left out."""
    context = click.get_current_context(silent=True)
    if context is None:
        return {}
    left = {}
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "")
        default = option.get_default(context, call=False)
        if isinstance(option, click.Option) and given is click.core.ParameterSource.DEFAULT and _means(default):
            left[max(option.opts, key=len).lstrip("-")] = str(default)
    return left


def _means(default: object) -> bool:
    return isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""


def host_line(facts: dict[str, Any]) -> str:
    """The same for people, in one line."""
    from precopy.units import format_size

    memory = facts["memory_bytes"]
    cores = f"{facts['cores']} core{'' if facts['cores'] == 1 else 's'}"
    hardware = [facts["cpu"] or facts["architecture"], facts["vector"], cores]
    hardware += [format_size(memory)] if memory else []
    load = facts["load_average"]
    when = facts["date"].replace("T", " ").replace("+00:00", " UTC")
    busy = f", load {load[0]:.2f} at the start" if load else ""
    return f"host: {', '.join(hardware)}; Linux {facts['kernel']}; {when}{busy}"


def cpu_of(cpuinfo: str, architecture: str, sve_bytes: str = "") -> tuple[str, str]:
    """The CPU's model and its widest vector unit, of the text of /proc/cpuinfo; ``sve_bytes``: what the kernel says of
    the length of SVE's vectors. "" and "vector unit unknown" where the text does not say."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    model = next((fields[name] for name in _MODELS if fields.get(name)), "") or _arm_model(fields)
    return model, _vector(fields, architecture, sve_bytes.strip())


def _arm_model(fields: dict[str, str]) -> str:
    """An Arm CPU's numbers, which is all that its kernel says of it."""
    implementer, part = fields.get("CPU implementer"), fields.get("CPU part")
    return f"Arm CPU, implementer {implementer}, part {part}" if implementer and part else ""


def _vector(fields: dict[str, str], architecture: str, sve_bytes: str) -> str:
    for name, line, units in _VECTORS:
        features = fields.get(line, "").split()
        if name == architecture:
            for feature, unit in units:
                if feature in features:
                    bits = f" of {8 * int(sve_bytes)} bits" if feature.startswith("sve") and sve_bytes.isdigit() else ""
                    return unit + bits
    if architecture.startswith("ppc64") and "altivec" in fields.get("cpu", ""):
        return "AltiVec"
    if architecture.startswith("riscv") and _RISCV_VECTOR.match(fields.get("isa", "").partition("_")[0]):
        return "RVV"
    return "vector unit unknown"


def _load() -> list[float]:
    with contextlib.suppress(OSError):
        return [round(average, 2) for average in os.getloadavg()]
    return []


def _text(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""


def show_result(kind: str, record: object, host: dict[str, Any] | None = None, *, as_json: bool) -> None:
    """What came of a command, for people or as the one JSON document that ``--json`` prints. ``record`` is the one
    that `precopy.report.kinds` has for this kind, ``host`` what `host_facts` said before a benchmark made it; people
    are told it, too. A record that has a ``machine`` of its own keeps it."""
    from precopy.report.kinds import body_of, text_of

    if as_json:
        from precopy.report.documents import document, to_json

        click.echo(to_json(document(kind, {"machine": host or host_facts(), **body_of(kind, record)})))
        return

    parts = [*([host_line(host)] if host else []), *text_of(kind, record)]
    sentences = [part for part in parts if isinstance(part, str)]
    if len(sentences) == len(parts):  # without a table, rich is not needed, and half of the time not taken
        for sentence in sentences:
            say(sentence)
        return
    from precopy.report.console import show

    show(*parts)
