"""One QEMU process and its QMP connection; the process never outlives its `Machine`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from precopy.bench.peers.qemu.program import LOW_RAM_END
from precopy.errors import PeerLost, PeerProtocolError, PeerRefused, Unsupported, missing_extra

_PROGRAM = "qemu-system-x86_64"
FETCHED = ("10.0", "11.1")
"""Versions that scripts/install-qemu-versions puts beside the installed one."""
_ANSWER_TIMEOUT = 30.0
_POLL = 0.2
_SLOWEST_PREALLOCATION = 100e6
"""Bytes a second."""

_VERSION = re.compile(r"QEMU emulator version (\d+(?:\.\d+)+)")
_REGISTER = re.compile(r"\b(R\d+) ?=([0-9a-f]{16})\b")

Json = Mapping[str, Any]
"""A QMP answer or event, which QEMU's schema describes and no type here does."""


def find_qemus() -> list[str]:
    """Paths of every ``qemu-system-x86_64`` that is here: the installed one first, then those that
    scripts/install-qemu-versions has put into folders named by their versions, oldest first."""
    folder = Path(os.environ.get("PRECOPY_QEMUS") or "~/.cache/precopy/qemu").expanduser()
    beside = [path for path in folder.glob(f"[0-9]*.[0-9]*/{_PROGRAM}") if os.access(path, os.X_OK)]
    beside.sort(key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)])
    installed = shutil.which(_PROGRAM)
    return [*([installed] if installed else []), *map(str, beside)]


@functools.cache
def qemu_name(path: str) -> str:
    """Such as ``QEMU 10.0.2``: the version is what the program at ``path`` says; without one where it says none."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=_ANSWER_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return "QEMU"
    version = _VERSION.match(said.stdout)
    return f"QEMU {version[1]}" if version else "QEMU"


def absent_qemus() -> list[str]:
    """A sentence for each version that scripts/install-qemu-versions can fetch and that is not here."""
    here = [name for path in find_qemus() for name in (qemu_name(path), f"QEMU {Path(path).parent.name}")]
    return [
        f"QEMU {version} is not here and was left out; run scripts/install-qemu-versions {version}"
        for version in FETCHED
        if not any(f"{name}.".startswith(f"QEMU {version}.") for name in here)
    ]


def find_qemu() -> str | None:
    """Path of the installed QEMU, or of the oldest one beside it; None where there is none."""
    return next(iter(find_qemus()), None)


def require_qemu(path: str | None = None, *, kvm: bool = True) -> str:
    """``path``, by default of the installed QEMU. Raises `Unsupported` where QEMU, its QMP client or (if ``kvm``) KVM
    is missing."""
    path = path or find_qemu()
    if path is None:
        raise Unsupported("qemu-system-x86_64 is not installed", "install QEMU (on Debian: qemu-system-x86)")
    try:
        import qemu.qmp  # noqa: F401, PLC0415
    except ImportError:
        raise missing_extra("QEMU as a peer needs", "qemu.qmp", "qemu") from None
    if kvm and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Unsupported("/dev/kvm is missing or not accessible", "use a machine with KVM and join group kvm")
    return path


RING_PAGES = 4096
"""Entries of a vCPU's dirty ring: what QEMU's documentation starts it with."""


def accelerator(dirty_ring: bool) -> list[str]:
    """Options by which QEMU runs its VM under KVM, and tracks by the dirty log or by the dirty ring."""
    return ["-accel", f"kvm,dirty-ring-size={RING_PAGES}" if dirty_ring else "kvm"]


class Start(Protocol):
    """How a QEMU is started: ``role`` names it in messages, ``qemu`` is its path, ``directory`` where it runs."""

    @property
    def role(self) -> str: ...
    @property
    def qemu(self) -> str: ...
    @property
    def directory(self) -> Path: ...

    @property
    def preallocated(self) -> int:
        """Bytes of guest memory that QEMU allocates before it answers."""

    def command(self, qmp_fd: int) -> list[str]:
        """The command line; QMP is spoken over the inherited descriptor ``qmp_fd``."""


def qmp_options(qmp_fd: int) -> list[str]:
    """Options by which QEMU speaks QMP over the descriptor ``qmp_fd`` that it inherits."""
    return ["-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"]


def dying_with_us(command: list[str]) -> list[str]:
    """``command``, killed when the thread that starts it ends: our own death, even by SIGKILL, must not leave a
    guest that spins for ever."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else command


@dataclass(frozen=True)
class Config:
    """How one side is started. ``ram`` is bytes; files are relative to ``directory``, where QEMU runs."""

    role: str
    qemu: str
    ram: int
    rom: str
    directory: Path
    incoming: bool
    dirty_ring: bool = False

    @property
    def preallocated(self) -> int:
        return self.ram

    def command(self, qmp_fd: int) -> list[str]:
        """The command line; QMP is spoken over the inherited descriptor ``qmp_fd``."""
        command = [self.qemu, *accelerator(self.dirty_ring), "-nodefaults", "-no-user-config", "-display", "none"]
        command += ["-machine", f"pc,max-ram-below-4g={LOW_RAM_END},memory-backend=ram"]
        command += ["-object", f"memory-backend-ram,id=ram,size={self.ram},prealloc=on"]
        command += ["-m", f"{self.ram >> 20}M", "-smp", "1", "-bios", self.rom]
        command += qmp_options(qmp_fd)
        if self.incoming:
            command += ["-incoming", "defer"]
        return dying_with_us(command)


class Machine:
    """A running QEMU; `connect` first, `kill` and `disconnect` last.

    Use it from one thread: the kernel kills QEMU when the thread that started it ends. Every call raises
    `PeerLost` if QEMU has ended (with its last message) or does not answer in time, and `PeerRefused` if it
    says no.
    """

    def __init__(self, config: Start) -> None:
        """Starts the process. Raises `Unsupported` if it cannot be executed."""
        from qemu.qmp import QMPClient  # noqa: PLC0415

        self.config = config
        self._client = QMPClient(config.role)
        self._log = config.directory / f"{config.role}.log"
        self._connection, theirs = socket.socketpair()
        with theirs, self._log.open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    config.command(theirs.fileno()),
                    cwd=config.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    pass_fds=(theirs.fileno(),),
                )
            except OSError as error:
                self._connection.close()
                raise Unsupported(f"{config.qemu} cannot be executed: {error}", "reinstall QEMU") from error

    async def connect(self) -> None:
        """Makes the QMP connection, which comes about once QEMU has preallocated the guest's memory."""
        async with self._failures("start"):
            timeout = _ANSWER_TIMEOUT + self.config.preallocated / _SLOWEST_PREALLOCATION
            await asyncio.wait_for(self._client.connect(self._connection), timeout)

    async def execute(self, command: str, **arguments: object) -> Any:
        """The answer to one QMP command; underscores in the arguments' names stand for dashes."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        async with self._failures(command):
            return await asyncio.wait_for(self._client.execute(command, named), _ANSWER_TIMEOUT)

    async def version(self) -> str:
        """QEMU's version, such as ``7.2.22 (Debian ...)``."""
        answer = await self.execute("query-version")
        number = answer["qemu"]
        return f"{number['major']}.{number['minor']}.{number['micro']} {answer['package']}".strip()

    async def registers(self) -> dict[str, int]:
        """The vCPU's registers R8 to R15; all 0 before it is in 64-bit mode."""
        text = await self.execute("human-monitor-command", command_line="info registers")
        found = {name: int(value, 16) for name, value in _REGISTER.findall(text)}
        if "EIP=" in text:
            return dict.fromkeys((f"R{number}" for number in range(8, 16)), 0)
        if not {"R8", "R15"} <= found.keys():
            raise PeerProtocolError(f"QEMU's ({self.config.role}) answer to `info registers` is not understood")
        return found

    async def read_ram(self, address: int, size: int) -> bytes:
        """``size`` bytes of guest-physical memory at ``address``."""
        path = self.config.directory / f"{self.config.role}.ram"
        try:
            await self.execute("pmemsave", val=address, size=size, filename=path.name)
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)

    async def next_event(self) -> Json:
        """The next event that QEMU reports; waits as long as QEMU lives (limit it with `asyncio.timeout`)."""
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._client.events.get(), _POLL)
            if self._process.poll() is not None:
                raise self._lost("its process ended")

    def kill(self) -> None:
        """Kills the process and waits for its end; never fails."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ANSWER_TIMEOUT)

    async def disconnect(self) -> None:
        """Ends the QMP connection; never fails."""
        with contextlib.suppress(Exception):  # the connection of a process that was killed ends in any error
            await asyncio.wait_for(self._client.disconnect(), _ANSWER_TIMEOUT)
        self._connection.close()

    @contextlib.asynccontextmanager
    async def _failures(self, what: str) -> AsyncIterator[None]:
        from qemu.qmp import ExecuteError, QMPError  # noqa: PLC0415

        try:
            yield
        except ExecuteError as error:
            raise PeerRefused(f"QEMU ({self.config.role}): {what}: {error}") from error
        except TimeoutError as error:
            raise self._lost(f"no answer to {what} in time") from error
        except (QMPError, EOFError, OSError) as error:
            raise self._lost(f"connection lost at {what}") from error

    def _lost(self, reason: str) -> PeerLost:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_POLL)
        said = self._log.read_text(errors="replace").strip().splitlines()
        detail = f": {said[-1]}" if said else ""
        return PeerLost(f"QEMU ({self.config.role}) is lost, {reason}{detail}")
