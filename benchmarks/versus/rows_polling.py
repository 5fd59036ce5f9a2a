"""Rows in which both ends poll without a rest, as inference engines do: the far process calls
get_new_notifs in an endless loop, the near one check_xfer_state. Alone on the machine, and beside
a process for each core that only uses up processor time.

Each of the two threads that poll stays on a core of its own, where the scheduler puts them on a
quiet machine. With other work about it may put both on one, and whatever else must run finds the
other free; the packages' own threads run where they like.
"""

from __future__ import annotations

import contextlib
import os

from hogs import Hogs
from rows_base import Metric, Row, at_most, quick
from rows_network import BLOCK, TwoProcesses

SIZES = {"64 B": 64, "4 KiB": BLOCK, "64 KiB": 64 << 10, "1 MiB": 1 << 20}
OPERATIONS = ("WRITE", "READ")
POSTS = 200  # of one size and operation in a round
POSTS_BESIDE_HOGS = 100  # each may take tens of milliseconds


def metrics_of(
    sizes: tuple[str, ...], median: float, p99: float | None = None
) -> tuple[Metric, ...]:
    """Time to the end of one block, by size and operation; targets are of the peer's time."""
    slow = (at_most("peer", p99),) if p99 is not None else ()
    made = []
    for operation in OPERATIONS:
        for size in sizes:
            made.append(Metric(f"{size} {operation}", "us", (at_most("peer", median),)))
            made.append(Metric(f"{size} {operation}, p99 of a round", "us", slow))
    return tuple(made)


class Polling(TwoProcesses):
    """Each size has its place. In a round fresh bytes are written there from the first half of
    this side's memory, read back into the second half, and compared."""

    polls = True
    sizes = tuple(SIZES)
    posts = POSTS

    def room(self) -> int:
        self.places = {}
        self.half = 0
        for size in self.sizes:
            self.places[size] = self.half
            self.half += max(SIZES[size], BLOCK)
        return 2 * self.half

    def prepare(self) -> None:
        import numpy as np

        self.rng = np.random.default_rng(6)
        self.handles = {}
        for operation in OPERATIONS:
            shift = self.half if operation == "READ" else 0
            for size, at in self.places.items():
                handle = self.transfer(operation, SIZES[size], at + shift, at)
                self.handles[operation, size] = handle
        self.check_bytes()
        self.tell_lane(self.handles["WRITE", self.sizes[-1]])
        self.cores = sorted(os.sched_getaffinity(0))
        if len(self.cores) > 1:
            self.far.ask(do="stay", core=self.cores[1])
            os.sched_setaffinity(0, self.cores[:1])  # this thread

    def measure(self) -> None:
        written, fetched = self.source[: self.half], self.source[self.half :]
        written[:] = self.rng.integers(0, 256, self.half, dtype="uint8")
        fetched[:] = 0
        posts = 3 if quick() else self.posts
        with self.beside():
            for (operation, size), handle in self.handles.items():
                spent = sorted(self.move(handle) * 1e6 for _ in range(posts))
                for one in spent:
                    self.note(f"{size} {operation}", one)
                slow = spent[len(spent) * 99 // 100]
                self.note(f"{size} {operation}, p99 of a round", slow)
        for size, at in self.places.items():
            span = slice(at, at + SIZES[size])
            if not (written[span] == fetched[span]).all():
                raise RuntimeError(f"{size}: bytes differ")

    def beside(self) -> contextlib.AbstractContextManager[None]:
        """What goes on while it is measured."""
        return contextlib.nullcontext()


class HostsPolling(Polling):
    name = "hosts_polling"
    title = "two hosts, both ends polling"
    hosts = True
    metrics = metrics_of(Polling.sizes, 0.8, 0.25)


class HostsPollingHogs(HostsPolling):
    name = "hosts_polling_hogs"
    title = "two hosts, both ends polling, an endless loop for each core beside"
    posts = POSTS_BESIDE_HOGS
    most_rounds = 5

    def prepare(self) -> None:
        super().prepare()
        self.hogs = Hogs(self.cores)

    def beside(self) -> contextlib.AbstractContextManager[None]:
        return self.hogs.running()

    def close(self) -> None:
        self.hogs.close()
        super().close()


class PairPolling(Polling):
    name = "pair_polling"
    title = "two processes, private memory, both ends polling"
    sizes = ("64 KiB", "1 MiB")
    metrics = metrics_of(sizes, 0.9)


POLLING_ROWS: list[type[Row]] = [HostsPolling, HostsPollingHogs, PairPolling]
