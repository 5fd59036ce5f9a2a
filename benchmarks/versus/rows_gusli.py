"""Rows of the GUSLI backend: blocks at random places of a loop device, beside fio's io_uring.

The device lies over a file of the scratch folder (losetup --direct-io=on, which needs root). fio
moves blocks of the same size at as many a time, over the same device, for 0.4 s.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from typing import Any

import fio
from rows_base import Metric, Row, at_least, finish, quick
from rows_posix import address_of

DEVICE = 256 << 20
SIZES = {"4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20}
DEPTHS = (1, 64)
SECONDS = 0.02 if quick() else 0.4


def losetup(*words: str) -> str:
    done = subprocess.run(["losetup", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"losetup {' '.join(words)}: {done.stderr.strip()} (needs root)")
    return done.stdout.strip()


def metrics() -> tuple[Metric, ...]:
    found = []
    for size in SIZES:
        for depth in DEPTHS:
            for operation in ("read", "write"):
                text = f"fio io_uring, depth {depth}"
                target = (at_least("limit", 0.95),)
                name = f"{operation} {size}, depth {depth}"
                found.append(Metric(name, "GB/s", target, higher=True, limit=text))
    return tuple(found)


class Blocks(Row):
    """One block after the other, or 64 at a time: transfers that nothing joins."""

    name = "gusli_blocks"
    title = "GUSLI blocks at random places of a loop device"
    sides = ("ours",)
    metrics = metrics()

    def setup(self) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        path = os.path.join(self.scratch, "disk")
        with open(path, "wb") as file:  # blocks on disk, so that no side pays for allocating them
            for _ in range(DEVICE >> 20):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
        self.device = losetup("--direct-io=on", "--find", "--show", path)
        self.memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.memory[:] = bytes(64 << 20)
        self.base = address_of(self.memory)
        self.agent = nixl_agent("blocks", nixl_agent_config(backends=[]))
        devices = f"version=1\n11 K W D {self.device} sec=0x7\n"
        parameters = {"config_file": devices, "max_num_simultaneous_requests": "64"}
        self.agent.create_backend("GUSLI", parameters)
        self.agent.register_memory([(self.base, 64 << 20, 0, "")], "DRAM")
        self.agent.register_memory([(0, DEVICE, 11, "")], "BLOCK")
        self.handles = {
            (operation, size, depth): self.transfers(operation, SIZES[size], depth)
            for operation in ("read", "write")
            for size in SIZES
            for depth in DEPTHS
        }

    def transfers(self, operation: str, size: int, depth: int) -> list[Any]:
        """One transfer of many blocks, or many of one."""
        import numpy as np

        order = np.random.default_rng(7).permutation(DEVICE // size)
        count = min(1024, (64 << 20) // size)
        far = [(int(place) * size, size, 11) for place in order[:count]]
        near = [(self.base + i * size, size, 0) for i in range(count)]
        step = 1 if depth == 1 else count
        agent, made = self.agent, []
        for at in range(0, min(count, 64 if depth == 1 else count), step):
            made.append(
                agent.initialize_xfer(
                    operation.upper(),
                    agent.get_xfer_descs(near[at : at + step], "DRAM"),
                    agent.get_xfer_descs(far[at : at + step], "BLOCK"),
                    agent.name,
                )
            )
        return [(handle, step * size) for handle in made]

    def measure(self) -> None:
        for (operation, size, depth), handles in self.handles.items():
            name = f"{operation} {size}, depth {depth}"
            moved, start = 0, time.perf_counter()
            while (spent := time.perf_counter() - start) < SECONDS:
                for handle, nbytes in handles:
                    finish(self.agent, handle, self.agent.transfer(handle))
                    moved += nbytes
            self.note(name, moved / spent / 1e9 if moved else 0.0)
            if fio.available():
                rate, _ = fio.run(
                    self.device,
                    DEVICE,
                    milliseconds=int(SECONDS * 1000),
                    rw=f"rand{operation}",
                    bs=SIZES[size],
                    iodepth=depth,
                    direct=1,
                    ioengine="io_uring",
                )
                self.note(f"limit:{name}", rate)

    def close(self) -> None:
        losetup("-d", self.device)


GUSLI_ROWS: list[type[Row]] = [Blocks]
