"""How late this machine wakes threads, measured beside what is tested: a peer for whatever sleeps and wakes on time."""

from __future__ import annotations

import threading
import time


class Sleeper:
    """A thread that sleeps for ``seconds``, over and over, inside its ``with`` block."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sleep, name="sleeper")
        self._took: list[float] = []

    def __enter__(self) -> Sleeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def punctuality(self) -> float:
        """What it asked for as a share of what it took: nearly 1 on an idle machine."""
        return self._seconds * len(self._took) / sum(self._took)

    def _sleep(self) -> None:
        while not self._stop.is_set():
            began = time.perf_counter()
            time.sleep(self._seconds)
            self._took.append(time.perf_counter() - began)
