"""Memory to a file or a block device and back, through one storage backend.

What lies in the file before the measuring, and what is compared after it, goes by plain reads and
writes of the system: a backend that loses bytes the same way twice is found out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
from collections.abc import Mapping
from typing import Any

import numpy as np

from .benchmark_base import Benchmark, add_backend, make_agent, move, pieces
from .config import Settings
from .errors import Refused
from .memory import check_memory, make_memory, random_bytes, usage_of

_CHUNK = 64 << 20


def read_plain(path: str, size: int, offset: int = 0) -> np.ndarray:
    """Through the page cache; shorter where the file is."""
    return np.fromfile(path, dtype=np.uint8, count=size, offset=offset)


def write_plain(path: str, data: np.ndarray, offset: int = 0) -> None:
    """Creates the file; ends when the bytes are on the device."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        view, at = memoryview(data), 0
        while at < len(view):
            at += os.pwrite(fd, view[at : at + _CHUNK], offset + at)
        os.fdatasync(fd)
    finally:
        os.close(fd)


class StorageBenchmark(Benchmark):
    """Subclasses say where the bytes lie (open_place) and what that is called (place_name)."""

    kind = "FILE"

    def __init__(
        self,
        options: argparse.Namespace,
        settings: Settings,
        backend: str,
        parameters: Mapping[str, str],
    ) -> None:
        super().__init__(settings, options)
        self.backend = backend
        self.agent = make_agent("storage", options)
        add_backend(self.agent, backend, options, parameters)
        check_memory(options.memory_type, options.gpu_id)
        if options.memory_type == "VRAM":
            able = self.agent.get_backend_mem_types(backend)
            if not any("VRAM" in one for one in able):
                raise Refused(f"backend {backend} takes no VRAM here, only: {', '.join(able)}")

    def open_place(self, size: int, keep: contextlib.ExitStack) -> tuple[int, int]:
        """(offset, device id) of so many bytes; keep.callback for what is to be undone."""
        raise NotImplementedError

    def place_name(self) -> str:
        raise NotImplementedError

    def mode(self) -> str:
        """What stands behind the backend's name."""
        return ""

    def load(self, data: np.ndarray) -> None:
        """Puts bytes into the place without the backend."""
        raise NotImplementedError

    def fetch(self, size: int) -> np.ndarray:
        raise NotImplementedError

    def head(self) -> dict[str, str]:
        near, far = self.memory.name, f"{self.kind} ({self.place_name()})"
        if self.settings.operation == "READ":
            near, far = far, near
        mode = self.mode()
        return {
            "Backend": f"{self.backend} ({mode})" if mode else self.backend,
            "Memory Type": f"{near} -> {far}",
        }

    def gpu(self) -> object:
        return usage_of(self.options.memory_type, self.options.gpu_id)

    def prepare(self, size: int) -> None:
        self.releases = contextlib.ExitStack()
        keep, agent, options = self.releases.callback, self.agent, self.options
        self.prepare_place(size)
        offset, device = self.open_place(size, self.releases)
        self.memory = make_memory(options.memory_type, size, options.gpu_id, options.enable_vmm)
        keep(self.memory.close)
        keep(agent.deregister_memory, self.memory.register(agent))
        keep(agent.deregister_memory,
             agent.register_memory([(offset, size, device, "")], self.kind))  # fmt: skip
        if self.settings.operation == "WRITE":
            self.memory.fill(size)  # only now: some backends replace the pages they register
        batch = self.settings.batch
        self.handle = agent.initialize_xfer(
            self.settings.operation,
            self.memory.descriptors(agent, batch),
            agent.get_xfer_descs(pieces(offset, size, batch, device), self.kind),
            agent.name,
        )
        keep(agent.release_xfer_handle, self.handle)

    def prepare_place(self, size: int) -> None:
        """Something to read, or blocks that exist; not what a WRITE will write."""
        self.load(random_bytes(size + 1, size))

    def run_once(self) -> None:
        move(self.agent, self.handle)

    def verify(self) -> bool:
        """Once more with bytes that were not there before, compared with what the system reads."""
        size = self.memory.size
        if self.settings.operation == "WRITE":
            self.memory.fill(size + 2)
            self.run_once()
            return bool(np.array_equal(self.fetch(size), random_bytes(size + 2, size)))
        self.memory.clear()
        self.run_once()
        return bool(np.array_equal(self.fetch(size), self.memory.get()))

    def finish(self) -> None:
        self.releases.close()

    def close(self) -> None:
        self.agent.close()


class FileBenchmark(StorageBenchmark):
    """The options are those of config.add_storage."""

    def __init__(self, options: argparse.Namespace, settings: Settings, backend: str,
                 parameters: Mapping[str, str]) -> None:  # fmt: skip
        self.path = options.file_path
        self.made = not os.path.lexists(self.path)
        if not self.made and not stat.S_ISREG(os.stat(self.path).st_mode):
            raise Refused(f"--file_path {self.path}: is no regular file")
        super().__init__(options, settings, backend, parameters)
        folder = os.path.dirname(self.path) or "."
        if not os.path.isdir(folder):
            raise Refused(f"--file_path {self.path}: there is no folder {folder}")

    def mode(self) -> str:
        return "O_DIRECT" if self.options.direct_io else "page cache"

    def place_name(self) -> str:
        return str(self.path)

    def load(self, data: np.ndarray) -> None:
        write_plain(self.path, data)

    def fetch(self, size: int) -> np.ndarray:
        return read_plain(self.path, size)

    def open_place(self, size: int, keep: contextlib.ExitStack) -> tuple[int, int]:
        direct = self.options.direct_io
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
        except OSError as error:
            why = "; its file system may not do O_DIRECT" if direct else ""
            raise Refused(f"--file_path {self.path}: {error.strerror}{why}") from error
        keep.callback(os.close, fd)
        return 0, fd

    def close(self) -> None:
        super().close()
        if self.made:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


def gds_parameters(options: argparse.Namespace) -> dict[str, str]:
    """Those options of add_gds that were given, by the backend's names."""
    given: dict[str, Any] = {
        "batch_pool_size": options.gds_batch_pool_size,
        "batch_limit": options.gds_batch_limit,
    }
    return {name: str(value) for name, value in given.items() if value is not None}


def add_gds(parser: argparse.ArgumentParser) -> None:
    from .config import at_least

    add = parser.add_argument_group("GPU Direct Storage").add_argument
    add("--backend", type=str.upper, choices=("GDS", "GDS_MT"), default="GDS",
        help="GDS: batches; GDS_MT: threads")  # fmt: skip
    add("--gds_batch_pool_size", type=at_least(1), help="batches made ahead")
    add("--gds_batch_limit", type=at_least(1), help="requests of one batch")
