"""Rows between two processes of one host: one block, large ones, scattered ones."""

from __future__ import annotations

import json
import mmap
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from ends import UCX, Backend, as_line, make_end
from hosts import addresses, far_prefix
from rows_base import Metric, Row, at_least, at_most, quick, yardstick

HERE = pathlib.Path(__file__).resolve().parent
LARGE = 1 << 20 if quick() else 64 << 20
BLOCK = 4096
BLOCKS = 100 if quick() else 10_000
PIECE = 1 << 20  # what the limits move at a time
SMALL_ROUNDS = 5 if quick() else 400


class FarProcess:
    """The process of network_target.py, on the far host if there is one."""

    def __init__(self, **words: Any) -> None:
        program = [sys.executable, str(HERE / "network_target.py"), json.dumps(words)]
        pipe = subprocess.PIPE
        command = [*far_prefix(), *program]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.invitation = self.answer()
        self.pid, self.address = self.invitation["pid"], self.invitation["address"]

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the far process ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, **message: Any) -> dict[str, Any]:
        self.process.stdin.write(as_line(message))
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class TwoProcesses(Row):
    """This process and a far one; both are stopped together while the other side is measured."""

    memory = "private"
    polls = False  # whether the far side looks for notifications all the time, or sleeps
    silent_for = 3600.0
    acquainted = True  # before the measuring

    def setup(self) -> None:
        import numpy as np

        if self.hosts and self.side == "peer":
            os.environ.setdefault("UCX_TLS", "tcp")  # else it finds the other side's memory
            os.environ.setdefault("UCX_NET_DEVICES", "cable")  # it may choose lo, and fail
        self.size = self.room()
        self.far = self.make_far("far")
        self.source = np.random.default_rng(1).integers(0, 256, self.size, dtype=np.uint8)
        self.end = make_end(self.side, "near", self.source, addresses()[0], self.silent_for)
        if self.acquainted:
            self.end.set_metadata(self.far.invitation)
            self.far.ask(do="know", **self.end.invitation())
        self.address, self.pid = self.far.address, self.far.pid
        self.prepare()

    def room(self) -> int:
        return max(LARGE, 4 * BLOCKS * BLOCK)

    def make_far(self, name: str, backend: Backend = UCX) -> FarProcess:
        return FarProcess(
            side=self.side,
            name=name,
            memory=self.memory,
            bytes=self.size,
            address=addresses()[1],
            polls=self.polls,
            silent_for=self.silent_for,
            backend=backend,
        )

    def prepare(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.far.close()

    def transfer(self, operation: str, size: int, at: int = 0, there: int | None = None) -> Any:
        """Of one block, at places that count from the begin of each side's memory."""
        import numpy as np

        there = at if there is None else there
        near = np.array([self.source.ctypes.data + at], dtype=np.uint64)
        far = np.array([self.address + there], dtype=np.uint64)
        return self.end.prepare(operation, near, far, size)

    def move(self, handle: Any) -> float:
        """Seconds from the post to the end that the poller sees."""
        start = time.perf_counter()
        self.end.move(handle)
        return time.perf_counter() - start

    def check_bytes(self) -> None:
        """All of the memory gets there."""
        self.move(self.transfer("WRITE", self.size))
        self.compare_sums()

    def compare_sums(self) -> None:
        """The far side adds up what it has."""
        import numpy as np

        if self.far.ask(do="sum")["sum"] != int(self.source.view(np.uint64).sum()):
            raise RuntimeError("bytes differ")

    def tell_lane(self, handle: Any) -> str:
        lane = self.end.path(handle) if self.ours else ""
        if lane:
            self.facts["lane"] = lane
        return lane


class PrivateMemory(TwoProcesses):
    name = "pair_private"
    title = "two processes, private memory"
    sides = ("ours", "peer", "mooncake")
    metrics = (
        Metric("64 B WRITE", "us", (at_most("peer", 0.6),), limit="one attach"),
        Metric("4 KiB WRITE", "us", (at_most("peer", 0.6),), limit="one attach"),
        Metric(
            "64 MiB WRITE",
            "GB/s",
            (at_least("limit", 0.85), at_least("peer", 1.2)),
            higher=True,
            limit="attach, one thread",
        ),
        Metric("64 MiB READ", "GB/s", (at_least("limit", 0.85),), higher=True, limit="attach"),
        Metric(
            "4 KiB x 10,000 scattered WRITE",
            "us/block",
            (at_most("limit", 1.3), at_most("peer", 0.25)),
            limit="attach in batches of 64, one thread",
        ),
    )

    def prepare(self) -> None:
        import numpy as np

        self.handles = {
            "64 B WRITE": self.transfer("WRITE", 64),
            "4 KiB WRITE": self.transfer("WRITE", BLOCK),
            "64 MiB WRITE": self.transfer("WRITE", LARGE),
            "64 MiB READ": self.transfer("READ", LARGE),
        }
        self.limit_base = self.limit_memory()
        rng = np.random.default_rng(2)
        self.left, self.right = (
            rng.permutation(4 * BLOCKS)[:BLOCKS].astype(np.uint64) * np.uint64(BLOCK)
            for _ in range(2)
        )
        near = self.left + np.uint64(self.source.ctypes.data)
        far = self.right + np.uint64(self.address)
        self.scattered = self.end.prepare("WRITE", near, far, BLOCK)
        self.check_bytes()
        self.tell_lane(self.handles["64 MiB WRITE"])
        if self.ours:
            self.library = yardstick()

    def limit_memory(self) -> int:
        return self.address

    def limit(self, metric: str, far: Any, near: Any, size: int, read: bool) -> float:
        """Seconds for the plain system call over the same blocks."""
        count, there, here = len(far), far.ctypes.data, near.ctypes.data
        start = time.perf_counter()
        moved = self.library.attach_blocks(self.pid, there, here, count, size, read)
        spent = time.perf_counter() - start
        if moved != count * size:
            raise RuntimeError(f"limit of {metric}: {moved} bytes moved")
        return spent

    def places(self, nbytes: int) -> tuple[Any, Any, int]:
        import numpy as np

        size = min(nbytes, PIECE)
        steps = np.arange(nbytes // size, dtype=np.uint64) * size
        near = (steps + self.source.ctypes.data).astype(np.uint64)
        return (steps + self.limit_base).astype(np.uint64), near, size

    def measure(self) -> None:
        import numpy as np

        for metric, nbytes in (("64 B WRITE", 64), ("4 KiB WRITE", BLOCK)):
            far, near, size = self.places(nbytes)
            for _ in range(SMALL_ROUNDS):
                self.note(metric, self.move(self.handles[metric]) * 1e6)
                if self.ours:
                    self.note(f"limit:{metric}", self.limit(metric, far, near, size, False) * 1e6)
        for metric in ("64 MiB WRITE", "64 MiB READ"):
            far, near, size = self.places(LARGE)
            for _ in range(5):
                self.note(metric, LARGE / self.move(self.handles[metric]) / 1e9)
                if self.ours:
                    spent = self.limit(metric, far, near, size, metric.endswith("READ"))
                    self.note(f"limit:{metric}", LARGE / spent / 1e9)
        metric = "4 KiB x 10,000 scattered WRITE"
        far = self.right + np.uint64(self.limit_base)
        near = self.left + np.uint64(self.source.ctypes.data)
        for _ in range(5):
            self.note(metric, self.move(self.scattered) / BLOCKS * 1e6)
            if self.ours:
                spent = self.limit(metric, far, near, BLOCK, False)
                self.note(f"limit:{metric}", spent / BLOCKS * 1e6)


class SharedMemory(PrivateMemory):
    name = "pair_shared"
    title = "two processes, memory that can be shared"
    sides = ("ours", "peer")
    memory = "shared"
    metrics = (
        Metric("64 B WRITE", "us", (at_most("peer", 0.25),), limit="memcpy and the Python call"),
        Metric("4 KiB WRITE", "us", (at_most("peer", 0.25),), limit="memcpy and the Python call"),
        Metric(
            "64 MiB WRITE",
            "GB/s",
            (at_least("limit", 0.85), at_least("peer", 2.5)),
            higher=True,
            limit="memcpy into a shared mapping, one thread",
        ),
        Metric("64 MiB READ", "GB/s", (at_least("limit", 0.85),), higher=True, limit="memcpy"),
        Metric(
            "4 KiB x 10,000 scattered WRITE",
            "us/block",
            (at_most("limit", 1.3), at_most("peer", 0.1)),
            limit="memcpy loop, one thread",
        ),
    )

    def limit_memory(self) -> int:
        import numpy as np

        file = os.memfd_create("limit")
        os.ftruncate(file, self.size)
        self.mapped = np.frombuffer(mmap.mmap(file, self.size, mmap.MAP_SHARED), dtype=np.uint8)
        self.mapped[:] = 1
        return self.mapped.ctypes.data

    def limit(self, metric: str, far: Any, near: Any, size: int, read: bool) -> float:
        to, origin = (near, far) if read else (far, near)
        count, there, here = len(far), to.ctypes.data, origin.ctypes.data
        start = time.perf_counter()
        self.library.copy_blocks(there, here, count, size)
        return time.perf_counter() - start


PAIR_ROWS: list[type[Row]] = [PrivateMemory, SharedMemory]
