"""``precopy demo --guest memory``: a numpy simulation that runs on while it is replicated and saved, then compared.

The standby is a process of its own: ``python -m precopy.cli.demo_memory ADDRESS_FILE``.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import xxhash

from precopy import Memory, receive_memory, replicate, restore, snapshot
from precopy.abi.filesystem import temporary_directory
from precopy.errors import PeerLost, PrecopyError, VerificationFailed, system_call
from precopy.report.kinds.demo_memory import MemoryDemo

_ROWS_A_STEP = 16
_COLUMNS = 1024
_STEP_S = 0.004
_INTERVAL_S, _RUN_S, _SNAPSHOTS = 0.25, 2.0, 4
_STANDBY_S = 30.0


class Simulation:
    """Heat that spreads over a plate, a band of rows a step; the plate is the memory's doubles, row by row.

    ``lock`` is held while it writes, which is all that a replication or a snapshot needs of a program.
    """

    def __init__(self, memory: Memory) -> None:
        self.lock = threading.Lock()
        self.steps = 0
        self._plate = np.frombuffer(memory, np.float64).reshape(-1, _COLUMNS)  # type: ignore[call-overload]
        self._plate[:] = np.sin(np.arange(_COLUMNS))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simulation", daemon=True)

    def __enter__(self) -> Simulation:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Makes no further step. May be called twice."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        plate = self._plate
        while not self._stop.is_set():
            first = 1 + self.steps * _ROWS_A_STEP % (len(plate) - _ROWS_A_STEP - 1)
            rows = slice(first, first + _ROWS_A_STEP)
            with self.lock:
                above, below = plate[first - 1 : first - 1 + _ROWS_A_STEP], plate[first + 1 : first + 1 + _ROWS_A_STEP]
                plate[rows] += 0.2 * (above + below - 2 * plate[rows])
                self.steps += 1
            time.sleep(_STEP_S)


def demo_memory(size: int, as_json: bool) -> int:
    """Runs it; returns the exit code. Raises what the parts raise."""
    from precopy.cli.facts import show_result
    from precopy.report.live import LiveProgress

    with temporary_directory() as directory, LiveProgress("starting a standby") as live:
        done = _run(size, directory, live.say)
    show_result("demo-memory", done, as_json=as_json)
    if done.copy_exact and done.restored_exact:
        return 0
    failure = VerificationFailed("the copy or the restored snapshot is not what the simulation had")
    if as_json:
        click.echo(f"precopy: {failure}", err=True)
        return failure.exit_code
    raise failure


def _run(size: int, directory: Path, tell: Callable[[str], None]) -> MemoryDemo:
    """``tell`` is called with the name of each step."""
    address = f"unix:{directory / 'standby'}"
    with contextlib.ExitStack() as stack:
        standby = stack.enter_context(_standby(address))
        memory = stack.enter_context(Memory(size))
        simulation = stack.enter_context(Simulation(memory))
        handle = stack.enter_context(replicate(memory, address, interval=_INTERVAL_S, lock=simulation.lock))
        saved, digest = [], ""
        for number in range(1, _SNAPSHOTS + 1):
            tell(f"the simulation runs and is replicated; snapshot {number} of {_SNAPSHOTS}")
            time.sleep(_RUN_S / _SNAPSHOTS)
            with simulation.lock:
                saved.append(snapshot(memory, directory / "snapshots"))
                digest = _digest(memory)
        simulation.stop()
        tell("the last point and the cutover")
        began = time.perf_counter()
        with handle.cutover():
            expected = _digest(memory)
        cutover_s = time.perf_counter() - began
        tell("comparing the copy and a restored snapshot")
        copied, _ = standby.communicate(timeout=_STANDBY_S)
        began = time.perf_counter()
        with restore(directory / "snapshots") as restored:
            restore_s = time.perf_counter() - began
            restored_exact = _digest(restored) == digest
        return MemoryDemo(
            size_bytes=memory.size,
            steps=simulation.steps,
            points=handle.progress.points,
            sent_bytes=handle.progress.sent_bytes,
            cutover_s=cutover_s,
            copy_exact=copied.strip() == expected,
            snapshots=tuple(saved),
            restore_s=restore_s,
            restored_exact=restored_exact,
        )


@contextlib.contextmanager
def _standby(address: str) -> Iterator[subprocess.Popen[str]]:
    """The other process, which listens when this returns. Raises `PeerLost` where it does not come up,
    `KernelCallError`."""
    command = [sys.executable, "-m", "precopy.cli.demo_memory", address]
    with system_call("fork", "the standby process"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        path, end = Path(address.removeprefix("unix:")), time.monotonic() + _STANDBY_S
        try:
            while not path.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise PeerLost("the demonstration's standby process did not come up")
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def _digest(memory: Memory) -> str:
    return xxhash.xxh3_128_hexdigest(memory.view)


def _receive(address: str) -> None:
    try:
        with receive_memory(address) as memory:
            print(_digest(memory))  # noqa: T201 - to the process that started this one
    except PrecopyError as error:
        click.echo(f"precopy: the standby: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _receive(sys.argv[1])
