"""Rows of the POSIX backend: memory to and from one file, O_DIRECT and through the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from typing import Any

import fio
from rows_base import Metric, Row, at_least, finish, yardstick

PAGE = 4096
MODES = {"aio": "use_aio", "uring": "use_uring", "posix_aio": "use_posix_aio"}
# fio's engine and depth beside each mode; POSIX AIO has a thread for each request.
FIO = {"aio": ("libaio", 32), "uring": ("io_uring", 32), "posix_aio": ("posixaio", 16)}


def address_of(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class FileRow(Row):
    """An agent with the POSIX backend, one file, one buffer of equal size."""

    size = 0
    mode = "uring"
    direct = False

    def setup(self) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        self.path = os.path.join(self.scratch, f"{self.name}.{self.side}")
        self.fill(self.path)
        flags = os.O_RDWR | (os.O_DIRECT if self.direct else 0)
        self.fd = os.open(self.path, flags)
        # Huge pages: with small ones the speed of a transfer depends on where in the machine's
        # memory they happen to lie, and differs by half from process to process.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.memory = mmap.mmap(-1, self.size, flags=flags)
        self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.memory[:] = os.urandom(1 << 20) * (self.size >> 20) + b"x" * (self.size % (1 << 20))
        self.base = address_of(self.memory)
        self.agent = nixl_agent("files", nixl_agent_config(backends=[]))
        self.agent.create_backend("POSIX", {MODES[self.mode]: "true"} if self.mode else {})
        self.agent.register_memory([(self.base, self.size, 0, "")], "DRAM")
        self.agent.register_memory([(0, self.size, self.fd, "")], "FILE")
        self.limits = self.ours and fio.available()
        self.prepare()

    def fill(self, path: str) -> None:
        """Blocks on disk, so that no side pays for allocating them."""
        with open(path, "wb") as file:
            piece = os.urandom(1 << 20)
            for _ in range(max(1, self.size >> 20)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def prepare(self) -> None:
        raise NotImplementedError

    def transfer_of(self, operation: str, places: list[tuple[int, int, int]]) -> Any:
        """`places`: offset in memory, offset in the file, length."""
        agent = self.agent
        near = agent.get_xfer_descs([(self.base + m, n, 0) for m, _, n in places], "DRAM")
        far = agent.get_xfer_descs([(f, n, self.fd) for _, f, n in places], "FILE")
        return agent.initialize_xfer(operation, near, far, agent.name)

    def once(self, handle: Any) -> float:
        start = time.perf_counter()
        finish(self.agent, handle, self.agent.transfer(handle))
        return time.perf_counter() - start

    def plain_loop(self, operation: str, near: Any, far: Any, size: int, depth: int) -> float:
        """Seconds a loop takes for blocks of `size`: offsets in memory and in the file."""
        near = near + self.base
        start = time.perf_counter()
        error = yardstick().move_blocks(
            self.fd,
            operation == "write",
            near.ctypes.data,
            far.ctypes.data,
            len(far),
            size,
            depth,
        )
        if error != 0:
            raise RuntimeError(f"the plain loop: {os.strerror(error)}")
        return time.perf_counter() - start

    def close(self) -> None:
        os.unlink(self.path)


class Contiguous(FileRow):
    """4096 neighbours of 4 KiB, which a good backend moves as a few large requests.

    fio runs with a full queue for 0.4 s. The plain loop moves the same 16 MiB of the same memory,
    and begins and ends as often as ours.
    """

    size = 4096 * PAGE
    direct = True
    repeat = 4

    def prepare(self) -> None:
        import numpy as np

        self.offsets = np.arange(self.size >> 20, dtype=np.uint64) << np.uint64(20)
        places = [(i * PAGE, i * PAGE, PAGE) for i in range(self.size // PAGE)]
        self.handles = {
            "write": self.transfer_of("WRITE", places),
            "read": self.transfer_of("READ", places),
        }

    def measure(self) -> None:
        for metric, handle in self.handles.items():
            for _ in range(self.repeat):
                rate = self.size / self.once(handle) / 1e9
                self.note(metric, rate)
                self.note(f"{metric}, again", rate)
                if self.limits:
                    seconds = self.plain_loop(metric, self.offsets, self.offsets, 1 << 20, 32)
                    self.note(f"limit:{metric}, again", self.size / seconds / 1e9)
            if self.limits:
                engine, depth = FIO[self.mode]
                rate, _ = fio.run(
                    self.path,
                    self.size,
                    rw=metric,
                    bs="1m",
                    iodepth=depth,
                    direct=1,
                    ioengine=engine,
                )
                self.note(f"limit:{metric}", rate)


def contiguous(mode: str) -> type[Row]:
    target = (at_least("limit", 0.9),)
    text = f"fio {FIO[mode][0]}, 1 MiB"
    loop = "a loop of Linux AIO, the same 16 MiB"
    return type(
        f"Contiguous_{mode}",
        (Contiguous,),
        {
            "name": f"posix_direct_{mode}",
            "title": f"POSIX 4096 x 4 KiB contiguous, O_DIRECT, use_{mode}",
            "mode": mode,
            "metrics": (
                Metric("write", "GB/s", target, higher=True, limit=text),
                Metric("read", "GB/s", target, higher=True, limit=text),
                Metric("write, again", "GB/s", higher=True, limit=loop),
                Metric("read, again", "GB/s", higher=True, limit=loop),
            ),
        },
    )


class RandomDirect(FileRow):
    """4 KiB at random places of a 256 MiB file.

    fio moves everything through 128 blocks of memory, which stay in the processor's cache; so does
    the first pair of metrics. In the second each block has its own place in memory, as pages of a
    cache have, and the limit is a plain loop over the very same places. Every side rewrites the
    same places each round: the first direct write to a place of a fresh file is slower.
    """

    name = "posix_random"
    title = "POSIX 4 KiB random, O_DIRECT, use_uring"
    size = 256 << 20
    direct = True
    count = 8192
    depth = 128
    metrics = (
        Metric(
            "read",
            "kIOPS",
            (at_least("limit", 0.9),),
            higher=True,
            limit="fio io_uring, fixed buffers, depth 128",
        ),
        Metric("write", "kIOPS", (at_least("limit", 0.9),), higher=True, limit="the same"),
        Metric(
            "read, 32 MiB of memory",
            "kIOPS",
            (at_least("limit", 0.9),),
            higher=True,
            limit="a loop of Linux AIO, depth 128",
        ),
        Metric(
            "write, 32 MiB of memory",
            "kIOPS",
            (at_least("limit", 0.9),),
            higher=True,
            limit="the same",
        ),
    )

    def prepare(self) -> None:
        import numpy as np

        order = np.random.default_rng(5).permutation(self.size // PAGE)
        far = order[-self.count :]
        self.near = {
            "": np.arange(self.count) % self.depth,
            ", 32 MiB of memory": order[: self.count],
        }
        self.handles = {}
        for suffix, near in self.near.items():
            places = [
                (m * PAGE, f * PAGE, PAGE) for m, f in zip(near.tolist(), far.tolist(), strict=True)
            ]
            self.handles[f"read{suffix}"] = self.transfer_of("READ", places)
            self.handles[f"write{suffix}"] = self.transfer_of("WRITE", places)
        self.offsets = np.ascontiguousarray(far, np.uint64) * PAGE

    def measure(self) -> None:
        for metric, handle in self.handles.items():
            for _ in range(3):
                self.note(metric, self.count / self.once(handle) / 1e3)
                if self.limits:
                    self.note(f"limit:{metric}", self.limit_of(metric))

    def limit_of(self, metric: str) -> float:
        operation, _, suffix = metric.partition(",")
        return self.loop(operation) if suffix else self.fio(operation)

    def fio(self, operation: str) -> float:
        _, iops = fio.run(
            self.path,
            self.size,
            amount=self.count * PAGE,
            rw=f"rand{operation}",
            bs="4k",
            iodepth=self.depth,
            direct=1,
            ioengine="io_uring",
            fixedbufs=1,
            registerfiles=1,
        )
        return iops

    def loop(self, operation: str) -> float:
        near = self.near[", 32 MiB of memory"].astype("uint64") * PAGE
        seconds = self.plain_loop(operation, near, self.offsets, PAGE, self.depth)
        return self.count / seconds / 1e3


class Buffered(FileRow):
    """256 x 1 MiB through the page cache."""

    name = "posix_buffered"
    title = "POSIX 256 x 1 MiB buffered, use_uring"
    size = 256 << 20
    metrics = (
        Metric("write", "GB/s", (at_least("peer", 3),), higher=True, limit="fio psync, 1 MiB"),
        Metric("read", "GB/s", (at_least("peer", 1.5),), higher=True, limit="fio psync, 1 MiB"),
    )

    def prepare(self) -> None:
        # Descriptors in an order that leaves nothing to merge.
        mib = 1 << 20
        order = [(i * 37) % 256 for i in range(256)]
        places = [(i * mib, f * mib, mib) for i, f in enumerate(order)]
        self.handles = {
            "write": self.transfer_of("WRITE", places),
            "read": self.transfer_of("READ", places),
        }
        for handle in self.handles.values():
            self.once(handle)

    def measure(self) -> None:
        for metric, handle in self.handles.items():
            for _ in range(2):
                self.note(metric, self.size / self.once(handle) / 1e9)
            if self.limits:
                rate, _ = fio.run(self.path, self.size, rw=metric, bs="1m", ioengine="psync")
                self.note(f"limit:{metric}", rate)


POSIX_ROWS: list[type[Row]] = [
    *(contiguous(mode) for mode in MODES),
    RandomDirect,
    Buffered,
]
