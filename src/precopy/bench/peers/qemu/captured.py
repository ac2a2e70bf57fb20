"""A VM's command line as it was captured with the VM's layout: what of it is run here, and the files it needs.

Facts: OVMF's code and its variables are two files beside each other; the template of the variables has the code
file's name with VARS for CODE, and serves several code files (``OVMF_CODE_4M.secboot.fd`` takes ``OVMF_VARS_4M.fd``).
QEMU takes an option with one dash or two, and ``-m`` in MiB where no unit is given.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from precopy.errors import Unsupported, UsageError

PROGRAM = "qemu-system-x86_64"

_INSTALL = "run scripts/install-debian-packages"
_REFUSED = {"daemonize", "incoming", "preconfig", "S"}
"""Options with which QEMU could not be watched, or would wait for another process before its guest runs."""


def parse_command(text: str, ram: int | None = None) -> tuple[str, ...]:
    """The words of a captured command line; ``ram`` bytes replace what its ``-m`` says.

    Raises `UsageError` if it is not QEMU's, or has an option that cannot be run here.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"the command line cannot be split into words: {error}") from error
    if not words or words[0] != PROGRAM:
        raise UsageError(f"only {PROGRAM} is run, not {words[0] if words else 'an empty command line'}")
    if refused := _REFUSED.intersection(map(_option, words)):
        raise UsageError(f"a virtual machine with -{min(refused)} cannot be traced; leave that option out")
    return tuple(words if ram is None else _with_ram(words, ram))


def accelerators(words: Sequence[str]) -> set[str]:
    """Names of the accelerators that the command line allows; none means that QEMU decides."""
    names = {value.split(",")[0].removeprefix("accel=") for value in _values(words, "accel")}
    for value in (*_values(words, "machine"), *_values(words, "M")):
        names.update(_properties(value).get("accel", "").split(":"))
    if "enable-kvm" in map(_option, words):
        names.add("kvm")
    return names - {""}


def provide_files(words: Sequence[str], directory: Path) -> None:
    """Makes the flash files that the command line names without a directory, in ``directory``.

    They are copies of the variables that belong to the firmware of the same command line. Raises `Unsupported`
    where firmware is missing, `UsageError` where it is not said or the name leads out of ``directory``.
    """
    drives = map(_properties, _values(words, "drive"))
    flash = [Path(drive["file"]) for drive in drives if drive.get("if") == "pflash" and "file" in drive]
    firmware = [path for path in flash if path.is_absolute()]
    for path in (*firmware, *(Path(value) for value in _values(words, "bios") if value.startswith("/"))):
        if not path.is_file():
            raise Unsupported(f"the firmware {path} is missing", _INSTALL)
    for path in flash:
        if path.is_absolute():
            continue
        if path.name != str(path):
            raise UsageError(f"flash file {path} is neither an absolute path nor a plain name")
        if not firmware:
            raise UsageError(f"flash file {path} cannot be made: the command line names no firmware by absolute path")
        try:
            (directory / path).write_bytes(_variables(firmware[0]).read_bytes())
        except OSError as error:
            raise Unsupported(f"flash file {path} cannot be made: {error}", "set TMPDIR to a writable place") from error


def _variables(code: Path) -> Path:
    """The template of variables for OVMF's ``code``."""
    name = code.name.replace("CODE", "VARS")
    for candidate in (name, name.split(".")[0] + code.suffix):
        if candidate != code.name and code.with_name(candidate).is_file():
            return code.with_name(candidate)
    raise Unsupported(f"no variables for the firmware {code} lie beside it", _INSTALL)


def _with_ram(words: Sequence[str], ram: int) -> list[str]:
    if ram <= 0 or ram % (1 << 20):
        raise UsageError(f"{ram} bytes of RAM are not a positive multiple of 1 MiB")
    changed, size = list(words), f"{ram >> 20}M"
    places = [index for index, word in enumerate(words[:-1], 1) if _option(word) == "m"]
    for index in places:
        parts = words[index].split(",")
        parts = [f"size={size}" if part.startswith("size=") else part if "=" in part else size for part in parts]
        changed[index] = ",".join(parts)
    return changed if places else [*changed, "-m", size]


def _option(word: str) -> str:
    return word.lstrip("-") if word.startswith("-") else ""


def _values(words: Sequence[str], option: str) -> Iterator[str]:
    return (value for word, value in itertools.pairwise(words) if _option(word) == option)


def _properties(value: str) -> dict[str, str]:
    return {name: content for name, _, content in (part.partition("=") for part in value.split(","))}
