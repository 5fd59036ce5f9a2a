"""Rows of GDS and GDS_MT: host memory and one file, beside a loop of cuFile's calls.

The file is on tmpfs, where cuFile needs no udev. Where the kernel has no /proc/modules, for which
cuFile's driver would look for ever, all sides are shown an empty one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pathlib
import subprocess
import sysconfig
import tempfile
import time
from typing import Any

from rows_base import Metric, Row, at_least, finish, quick
from rows_posix import address_of

SHIM = pathlib.Path(__file__).resolve().parents[2] / "testing" / "standins" / "proc_modules.c"
# Blocks of a transfer, and the bytes of each.
SHAPES = {"4 KiB": (256, 4096), "64 KiB": (256, 1 << 16), "1 MiB": (64, 1 << 20)}


def library() -> str:
    """The libcufile that ours opens."""
    if named := os.environ.get("NIXL_CUFILE_LIBRARY"):
        return named
    site = pathlib.Path(sysconfig.get_path("platlib"))
    found = [str(p) for p in site.glob("nvidia/cu*/lib/libcufile.so.0")]
    return found[0] if found else "libcufile.so.0"


class GdsRow(Row):
    """Blocks in a random order, so that none are neighbours."""

    backend = "GDS"
    threads = 1

    @classmethod
    def environment(cls) -> dict[str, str]:
        made = {"NIXL_CUFILE_LIBRARY": library(), "CUFILE_LOGFILE_PATH": "/dev/null"}
        if not os.path.exists("/proc/modules"):
            shim = os.path.join(tempfile.gettempdir(), f"nixl_proc_modules_{os.getuid()}.so")
            subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", shim, SHIM, "-ldl"], check=True)
            made["LD_PRELOAD"] = shim
        return made

    def setup(self) -> None:
        import numpy as np
        from nixl._api import nixl_agent, nixl_agent_config

        self.size = max(count * size for count, size in SHAPES.values())
        self.path = f"/dev/shm/nixl_versus_{os.getpid()}"
        with open(self.path, "wb") as file:
            file.write(os.urandom(1 << 20) * (self.size >> 20))
        self.fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
        self.memory = mmap.mmap(-1, self.size)
        self.memory[:] = os.urandom(1 << 20) * (self.size >> 20)
        self.base = address_of(self.memory)
        self.agent = nixl_agent("files", nixl_agent_config(backends=[]))
        self.agent.create_backend(self.backend, {})
        self.agent.register_memory([(self.base, self.size, 0, "")], "DRAM")
        self.agent.register_memory([(0, self.size, self.fd, "")], "FILE")
        self.handles: dict[tuple[str, str], Any] = {}
        self.offsets: dict[str, Any] = {}
        for shape, (count, size) in SHAPES.items():
            order = np.random.default_rng(1).permutation(count).astype(np.uint64)
            self.offsets[shape] = order * np.uint64(size)
            places = [int(at) for at in self.offsets[shape]]
            near = self.agent.get_xfer_descs([(self.base + at, size, 0) for at in places], "DRAM")
            far = self.agent.get_xfer_descs([(at, size, self.fd) for at in places], "FILE")
            for operation in ("write", "read"):
                self.handles[operation, shape] = self.agent.initialize_xfer(
                    operation.upper(), near, far, self.agent.name
                )
        if self.ours:
            self.loop = ctypes.CDLL(os.environ["NIXL_YARDSTICK"])
            self.loop.cufile_open.restype = ctypes.c_void_p
            self.own_fd = os.open(self.path, os.O_RDWR | os.O_DIRECT)
            self.handle = self.loop.cufile_open(library().encode(), self.own_fd)
            if not self.handle:
                raise RuntimeError(f"cuFile refuses {self.path}")

    def plain(self, operation: str, shape: str) -> float:
        count, size = SHAPES[shape]
        start = time.perf_counter()
        failed = self.loop.cufile_blocks(
            library().encode(),
            ctypes.c_void_p(self.handle),
            int(operation == "write"),
            ctypes.c_void_p(self.base),
            ctypes.c_void_p(self.offsets[shape].ctypes.data),
            ctypes.c_size_t(count),
            ctypes.c_size_t(size),
            self.threads,
        )
        if failed:
            raise RuntimeError("the plain loop fell short")
        return time.perf_counter() - start

    def measure(self) -> None:
        for (operation, shape), handle in self.handles.items():
            count, size = SHAPES[shape]
            metric = f"{operation}, {shape}"
            for _ in range(1 if quick() else 5):
                start = time.perf_counter()
                finish(self.agent, handle, self.agent.transfer(handle))
                self.note(metric, count * size / (time.perf_counter() - start) / 1e9)
                if self.ours:
                    seconds = self.plain(operation, shape)
                    self.note(f"limit:{metric}", count * size / seconds / 1e9)

    def close(self) -> None:
        os.unlink(self.path)


def row(backend: str, threads: int) -> type[Row]:
    target = (at_least("limit", 0.95),)
    text = f"{threads} thread{'s' * (threads > 1)} of cuFile calls"
    metrics = tuple(
        Metric(f"{operation}, {shape}", "GB/s", target, higher=True, limit=text)
        for shape in SHAPES
        for operation in ("write", "read")
    )
    return type(
        f"Row_{backend}",
        (GdsRow,),
        {
            "name": backend.lower(),
            "title": f"{backend}, host memory, tmpfs",
            "backend": backend,
            "threads": threads,
            "metrics": metrics,
        },
    )


GDS_ROWS = [row("GDS", 1), row("GDS_MT", 4)]
