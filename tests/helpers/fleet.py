"""Routers of a reader's own that leave a trail, or do harm; workers import them from here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM_REQUESTS = 150
"""Requests of a simulation in these tests."""

MIDDLE = 100
"""The request at which a router leaves its trail."""


class Trailing:
    """Sends requests to each replica in turn, and in the middle writes into a folder that it runs, and where."""

    def __init__(self, folder: Path, name: str = "calm") -> None:
        self.folder, self.name, self.num_chosen = str(folder), name, 0

    def choose(self, request: Any, fleet: Any) -> int:
        self.num_chosen += 1
        if self.num_chosen == MIDDLE:
            with open(Path(self.folder) / "runs", "a") as file:
                file.write(f"{self.name} {os.getpid()}\n")
            self.at_the_middle()
        return self.num_chosen % fleet.num_replicas

    def at_the_middle(self) -> None:
        """Nothing more."""


class Deadly(Trailing):
    """Kills the process that it runs in, the first ``num_deaths`` times."""

    def __init__(self, folder: Path, num_deaths: int = 1) -> None:
        super().__init__(folder, "deadly")
        self.num_deaths = num_deaths

    def at_the_middle(self) -> None:
        if sum(name == "deadly" for name, _ in runs(self.folder)) <= self.num_deaths:
            os.kill(os.getpid(), signal.SIGKILL)


class Meeting(Trailing):
    """Goes on when as many others as are wanted are in the middle too, each in a process of its own."""

    def __init__(self, folder: Path, num_processes: int) -> None:
        super().__init__(folder, "meeting")
        self.num_processes = num_processes

    def at_the_middle(self) -> None:
        wait_until(
            lambda: len({pid for _, pid in runs(self.folder)}) >= self.num_processes,
            lambda: f"nobody came: {runs(self.folder)}",
        )


class Waiting(Trailing):
    """Goes on when the sweep's caller has been answered, which writes a file ``answered``."""

    def at_the_middle(self) -> None:
        wait_until((Path(self.folder) / "answered").exists, lambda: "nobody was answered")


class Raising(Trailing):
    """Raises an exception in the middle."""

    def at_the_middle(self) -> None:
        raise LookupError("no way to\nchoose")


def wait_until(condition: Callable[[], bool], failure: Callable[[], str]) -> None:
    """Wait a minute at most for what another process does.

    Raises:
        TimeoutError: it did not come true; ``failure`` says what was seen instead.
    """
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(failure())
        time.sleep(0.01)


def runs(folder: Path | str) -> list[tuple[str, int]]:
    """Who came to its middle, and in which process, one after the other."""
    path = Path(folder) / "runs"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line.split()[0], int(line.split()[1])) for line in lines]
