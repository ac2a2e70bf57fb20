"""A vhost device, as far as a dirty log is concerned: a process that writes guest memory and logs what it has written.

The device is ``python -m precopy.bench.vhost_device LOG_FD PAGES GPA,BYTES,FD...``: it inherits the log, which has
``PAGES`` bits, and the memory of each section. It takes commands on stdin, a line each, and answers each with a line on
stdout:

- ``write STAMP GPA PAGES...`` fills the pages of each range with the stamp, then logs them;
- ``mark FIRST COUNT STRIDE`` logs ``COUNT`` guest-physical pages from page ``FIRST`` on, each ``STRIDE`` pages after
  the one before, and writes nothing;
- ``run RATE SEED`` fills random pages with ever higher stamps, ``RATE`` pages a second (0: as fast as it can), until
  the next line comes, and answers when it begins, too.

The answer is how many pages that were; a 0 says that the device is up. It ends with its stdin.

Content comes before the log. The other way round, the host could take the bit, read the page's old content, and have
nothing left that tells it of the store to come (law 1). `set_bits` is a locked instruction, which is done only after
every store before it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import select
import socket
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from precopy.abi.atomic import set_bits
from precopy.errors import PeerLost, UsageError
from precopy.memory import GuestMemory
from precopy.memory.ram import Pages
from precopy.trackers.shared_log import VHOST_LOG_PAGE, SharedLog

_TIMEOUT_S = 60.0
_BURST_S, _BURST_PAGES = 0.002, 64


class _Lines:
    """Lines of a descriptor. Python's own reader would hold back lines that poll then does not see."""

    def __init__(self, fd: int) -> None:
        self._fd, self._buffer = fd, b""

    def waits(self, timeout: float) -> bool:
        """Whether there is something to read within ``timeout`` seconds: a line, or the end."""
        if b"\n" in self._buffer:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(1e3 * timeout))

    def next(self) -> str:
        """The next line without its end, or nothing at the end."""
        while b"\n" not in self._buffer:
            data = os.read(self._fd, 1 << 16)
            if not data:
                return ""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("ascii")


class VhostDevice:
    """A device process called ``name``, attached to ``log``, which writes ``memory`` (of `Backing.MEMFD`).

    It writes only when it is told to. Raises `LocalProtocolError` where the name is taken, `UsageError` where the
    memory cannot be shared; every method raises `PeerLost` where the process is gone.
    """

    def __init__(self, name: str, log: SharedLog, memory: GuestMemory) -> None:
        self.name, self._log = name, log
        sections = [(section, memory.host(section.block)) for section in memory.layout.sections]
        table, descriptors = [], {log.fd}
        for section, host in sections:
            if host.fd is None:
                raise UsageError(f"RAM block {host.name!r} cannot be shared with a device: it is no memfd")
            offset, size = section.offset * VHOST_LOG_PAGE, section.pages * VHOST_LOG_PAGE
            table.append(f"{section.gpa},{size},{host.fd},{offset}")
            descriptors.add(host.fd)
        log.attach(name)
        ours, theirs = socket.socketpair()
        ours.settimeout(_TIMEOUT_S)
        try:
            command = [sys.executable, "-m", __spec__.name, str(log.fd), str(log.pages), *table]
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                pass_fds=sorted(descriptors),
                start_new_session=True,  # ^C is ours: it ends when we do
            )
        except BaseException:
            ours.close()
            log.detach(name)
            raise
        finally:
            theirs.close()
        self._commands, self._answers = ours, _Lines(ours.fileno())
        try:
            self.answer()
        except PeerLost:
            self.close()
            raise

    def __enter__(self) -> VhostDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def write(self, stamp: int, ranges: Iterable[tuple[int, int]]) -> int:
        """Has every word of the pages of each (gpa, pages) be ``stamp``, and logs them; returns how many pages."""
        parts = " ".join(f"{gpa} {pages}" for gpa, pages in ranges)
        self.send(f"write {stamp} {parts}")
        return self.answer()

    def mark(self, first: int, count: int, stride: int = 1) -> int:
        """Logs ``count`` guest-physical pages from page ``first`` on, each ``stride`` pages after the one before, and
        writes nothing; returns how many pages."""
        self.send(f"mark {first} {count} {stride}")
        return self.answer()

    def run(self, rate: float = 0, seed: int = 0) -> None:
        """Begins to write random pages, ``rate`` a second (0: as fast as it can), until `pause`."""
        self.send(f"run {rate} {seed}")
        self.answer()

    def pause(self) -> int:
        """Ends a `run`; returns how many pages it has written. All of them are logged."""
        self.send("pause")
        return self.answer()

    def send(self, command: str) -> None:
        """Gives the device a command without waiting for its answer."""
        try:
            self._commands.sendall(command.encode("ascii") + b"\n")
        except OSError as error:
            raise self._lost(str(error)) from error

    def answer(self) -> int:
        """The answer to the earliest command that was not answered yet."""
        if not self._answers.waits(_TIMEOUT_S):
            raise self._lost(f"nothing came in {_TIMEOUT_S:.0f} s")
        try:
            line = self._answers.next()
        except OSError as error:
            raise self._lost(str(error)) from error
        if not line:
            raise self._lost("it has ended")
        return int(line)

    def answered(self) -> bool:
        """Whether `answer` would not wait."""
        return self._answers.waits(0)

    def close(self) -> None:
        """Ends the process and detaches the device; what it has logged stays. May be called twice."""
        if self._commands.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self._commands.shutdown(socket.SHUT_RDWR)
        self._commands.close()
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.detach(self.name)

    def _lost(self, why: str) -> PeerLost:
        return PeerLost(f"the vhost device {self.name!r} does not answer: {why}")


class _Device:
    """The device's own side: guest memory by gpa, and the log."""

    def __init__(self, log: SharedLog, sections: Sequence[tuple[int, Pages]]) -> None:
        self._log, self._lines = log, _Lines(0)
        self._sections = sorted(sections, key=lambda section: section[0])
        self._gpas = [gpa for gpa, _ in self._sections]
        self._ends = list(accumulate(len(pages) for _, pages in self._sections))

    def serve(self) -> None:
        """Carries out commands until stdin ends."""
        set_bits(self._log.words, 0, 0)  # which assembles it
        _answer(0)
        while line := self._lines.next():
            what, *arguments = line.split()
            if what == "write":
                stamp, *ranges = map(int, arguments)
                done = sum(self._write(gpa, pages, stamp) for gpa, pages in zip(ranges[::2], ranges[1::2], strict=True))
            elif what == "mark":
                done = self._mark(*map(int, arguments))
            elif what == "run":
                done = self._run(float(arguments[0]), int(arguments[1]))
            else:
                sys.exit(f"vhost device: {what!r} is no command")
            _answer(done)

    def _write(self, gpa: int, count: int, stamp: int) -> int:
        start, pages = self._sections[bisect_right(self._gpas, gpa) - 1]
        first = (gpa - start) // VHOST_LOG_PAGE
        if not 0 <= first <= first + count <= len(pages):
            sys.exit(f"vhost device: {count} pages at {gpa:#x} are not in one section")
        self._store(start, pages, first, count, stamp)
        return count

    def _mark(self, first: int, count: int, stride: int) -> int:
        set_bits(self._log.words, first, count, stride)
        return count

    def _run(self, rate: float, seed: int) -> int:
        order, stamp = random.Random(seed), seed << 32
        _answer(0)
        done, began = 0, time.monotonic()
        while not self._lines.waits(_BURST_S if rate else 0):
            due = int((time.monotonic() - began) * rate) - done if rate else _BURST_PAGES
            for _ in range(due):
                done += 1
                self._write_any(order.randrange(self._ends[-1]), stamp + done)
        self._lines.next()
        return done

    def _write_any(self, index: int, stamp: int) -> None:
        """Writes page ``index`` of all sections' pages."""
        section = bisect_right(self._ends, index)
        gpa, pages = self._sections[section]
        self._store(gpa, pages, index - self._ends[section] + len(pages), 1, stamp)

    def _store(self, gpa: int, pages: Pages, first: int, count: int, stamp: int) -> None:
        """Content first, log second (law 1)."""
        pages[first : first + count] = stamp
        set_bits(self._log.words, gpa // VHOST_LOG_PAGE + first, count)


def _answer(pages: int) -> None:
    os.write(1, b"%d\n" % pages)


def _main(log_fd: str, pages: str, *table: str) -> None:
    sections: list[tuple[int, Pages]] = []
    for entry in table:
        gpa, size, fd, offset = map(int, entry.split(","))
        memory = np.frombuffer(mmap.mmap(fd, offset + size), np.uint64, offset=offset)
        sections.append((gpa, memory.reshape(-1, VHOST_LOG_PAGE // 8)))
    with contextlib.suppress(ConnectionError):  # the process that started it is gone
        _Device(SharedLog(int(pages), int(log_fd)), sections).serve()


if __name__ == "__main__":
    _main(*sys.argv[1:])
