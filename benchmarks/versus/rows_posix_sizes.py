"""Rows of the POSIX backend: one small block, as of a client that moves a page at a time, and large
ones with O_DIRECT. What was written is read back by plain system calls, and what was read compared.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Any

from rows_base import Metric, Row, Target, at_most, quick
from rows_posix import PAGE, FileRow

SMALL_ROUNDS = 5 if quick() else 200


class Small(FileRow):
    """One block of 4 KiB, written and read again and again."""

    size = 1 << 20

    def prepare(self) -> None:
        self.cores = sorted(os.sched_getaffinity(0))
        self.number = 0
        self.handles = {
            "write": self.transfer_of("WRITE", [(0, PAGE, PAGE)]),
            "read": self.transfer_of("READ", [(0, PAGE, PAGE)]),
        }
        self.view = memoryview(self.memory)[:PAGE]
        self.other = memoryview(mmap.mmap(-1, PAGE))  # aligned, as O_DIRECT wants it

    def measure(self) -> None:
        # A disk's interrupts come to one processor: there a block takes a third less time than on
        # another. So this thread takes turns, and in a round all sides are on the same one.
        os.sched_setaffinity(0, [self.cores[self.number % len(self.cores)]])
        self.number += 1
        try:
            self.blocks()
        finally:
            os.sched_setaffinity(0, self.cores)

    def blocks(self) -> None:
        fresh = os.urandom(PAGE)
        self.view[:] = fresh
        self.limit("write", lambda: os.pwrite(self.fd, self.view, PAGE))
        os.pwrite(self.fd, self.other, PAGE)  # else the limit could be what is compared
        self.rounds("write")
        os.preadv(self.fd, [self.other], PAGE)
        self.compare("written", self.other, fresh)
        fresh = os.urandom(PAGE)
        self.other[:] = fresh
        os.pwrite(self.fd, self.other, PAGE)
        self.limit("read", lambda: os.preadv(self.fd, [self.view], PAGE))
        self.view[:] = bytes(PAGE)
        self.rounds("read")
        self.compare("read", self.view, fresh)

    def limit(self, metric: str, call: Any) -> None:
        for _ in range(SMALL_ROUNDS if self.ours else 0):
            start = time.perf_counter()
            call()
            self.note(f"limit:{metric}", (time.perf_counter() - start) * 1e6)

    def rounds(self, metric: str) -> None:
        for _ in range(SMALL_ROUNDS):
            self.note(metric, self.once(self.handles[metric]) * 1e6)

    def compare(self, what: str, found: Any, fresh: bytes) -> None:
        if found != fresh:
            raise RuntimeError(f"what was {what} differs")


def small(name: str, title: str, mode: str, direct: bool, factor: float) -> type[Row]:
    target = (at_most("peer", factor),)
    metrics = (
        Metric("write", "us", target, limit="os.pwrite"),
        Metric("read", "us", target, limit="os.preadv"),
    )
    fields = {"name": name, "title": title, "mode": mode, "direct": direct, "metrics": metrics}
    return type(f"Small_{name}", (Small,), fields)


class LargeDirect(FileRow):
    """256 x 1 MiB, side by side in memory and in the file, and in an order that leaves nothing to
    merge."""

    name = "posix_large_aio"
    title = "POSIX 256 x 1 MiB, O_DIRECT, use_aio"
    mode = "aio"
    direct = True
    block = 1 << 20
    count = 8 if quick() else 256
    size = count * block
    limit = "a loop of Linux AIO, depth 32"
    reached: tuple[Target, ...] = (at_most("peer", 0.9),)
    metrics = (
        Metric("write", "ms", reached, limit=limit),
        Metric("read", "ms", limit=limit),
        Metric("write, out of order", "ms", reached, limit=limit),
        Metric("read, out of order", "ms", limit=limit),
    )

    def prepare(self) -> None:
        import numpy as np

        self.rng = np.random.default_rng(7)
        self.blocks = np.frombuffer(self.memory, dtype=np.uint64).reshape(self.count, -1)
        self.near = np.arange(self.count, dtype=np.uint64) * np.uint64(self.block)
        self.far, self.handles = {}, {}
        for suffix, step in (("", 1), (", out of order", 37)):
            far = [i * step % self.count * self.block for i in range(self.count)]
            places = [(i * self.block, at, self.block) for i, at in enumerate(far)]
            self.far[suffix] = np.array(far, dtype=np.uint64)
            self.handles[f"write{suffix}"] = self.transfer_of("WRITE", places)
            self.handles[f"read{suffix}"] = self.transfer_of("READ", places)

    def measure(self) -> None:
        import numpy as np

        for suffix, far in self.far.items():
            fresh = self.rng.integers(0, 1 << 63, self.block // 8, dtype=np.uint64)
            for number, block in enumerate(self.blocks):
                block[:] = fresh
                block[0] = number
            self.rounds("write", suffix)
            self.compare_file(fresh, far)
            self.blocks[:] = 0
            self.rounds("read", suffix)
            self.compare_memory(fresh)

    def rounds(self, operation: str, suffix: str) -> None:
        metric = f"{operation}{suffix}"
        if self.ours:  # first, so that what is compared is what ours moved
            for _ in range(2):
                spent = self.plain_loop(operation, self.near, self.far[suffix], self.block, 32)
                self.note(f"limit:{metric}", spent * 1e3)
            self.spoil(operation)
        for _ in range(2):
            self.note(metric, self.once(self.handles[metric]) * 1e3)

    def spoil(self, operation: str) -> None:
        """Takes the end of each block away that the loop has moved."""
        if operation == "read":
            self.blocks[:] = 0
            return
        page = memoryview(mmap.mmap(-1, PAGE))
        for end in range(self.block, self.size + 1, self.block):
            os.pwrite(self.fd, page, end - PAGE)

    def compare_file(self, fresh: Any, far: Any) -> None:
        import numpy as np

        room = mmap.mmap(-1, self.block)
        found = np.frombuffer(room, dtype=np.uint64)
        for number, at in enumerate(far.tolist()):
            os.preadv(self.fd, [room], at)
            if found[0] != number or not (found[1:] == fresh[1:]).all():
                raise RuntimeError(f"block {number} was not written as it is")

    def compare_memory(self, fresh: Any) -> None:
        for number, block in enumerate(self.blocks):
            if block[0] != number or not (block[1:] == fresh[1:]).all():
                raise RuntimeError(f"block {number} was not read as it is")


POSIX_SIZE_ROWS: list[type[Row]] = [
    small("posix_small", "POSIX 4 KiB buffered, one", "", False, 1),
    small("posix_small_uring", "POSIX 4 KiB O_DIRECT, one, use_uring", "uring", True, 0.9),
    small("posix_small_aio", "POSIX 4 KiB O_DIRECT, one, use_aio", "aio", True, 0.9),
    LargeDirect,
]
