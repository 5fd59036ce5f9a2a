"""Memory that benchmarks move: of the host or of a GPU, filled, compared and described alike."""

from __future__ import annotations

import mmap
import zlib
from typing import Any

import nixl
import numpy as np

from .benchmark_base import pieces
from .errors import Refused


def random_bytes(seed: int, size: int) -> np.ndarray:
    """The same for the same seed; no two 8-byte words alike, so that misplaced bytes are seen."""
    words = np.random.default_rng(seed).integers(0, 1 << 64, -(-size // 8), dtype=np.uint64)
    return words.view(np.uint8)[:size]


class Memory:
    """Bytes on pages of their own, zero at first. Subclasses: HostMemory, GpuMemory."""

    kind = "DRAM"
    device = 0
    address: int
    size: int

    def put(self, data: np.ndarray) -> None:
        raise NotImplementedError

    def get(self) -> np.ndarray:
        raise NotImplementedError

    def fill(self, seed: int) -> None:
        self.put(random_bytes(seed, self.size))

    def clear(self) -> None:
        self.put(np.zeros(self.size, dtype=np.uint8))

    def holds(self, seed: int) -> bool:
        return bool(np.array_equal(self.get(), random_bytes(seed, self.size)))

    def checksum(self) -> int:
        return zlib.crc32(self.get())

    def register(self, agent: Any) -> Any:
        return agent.register_memory([(self.address, self.size, self.device, "")], self.kind)

    def descriptors(self, agent: Any, count: int = 1) -> Any:
        """The whole as so many descriptors."""
        return agent.get_xfer_descs(pieces(self.address, self.size, count, self.device), self.kind)

    def close(self) -> None:
        pass

    @property
    def name(self) -> str:
        return f"VRAM (GPU {self.device})" if self.kind == "VRAM" else "DRAM"


class HostMemory(Memory):
    def __init__(self, size: int, shared: bool) -> None:
        self.size = size
        self._pages = nixl.alloc(size) if shared else mmap.mmap(-1, size)
        self.array = np.frombuffer(self._pages, dtype=np.uint8)
        self.array[:] = 0  # the pages are there before anything is measured
        self.address = self.array.ctypes.data

    def put(self, data: np.ndarray) -> None:
        self.array[:] = data

    def get(self) -> np.ndarray:
        return self.array


class GpuMemory(Memory):
    kind = "VRAM"

    def __init__(self, size: int, gpu: int, virtual: bool) -> None:
        from .cuda import Cuda

        self.size, self.device = size, gpu
        self._cuda = Cuda(gpu)
        self._length = 0
        if virtual:
            self.address, self._length = self._cuda.allocate_virtual(size)
        else:
            self.address = self._cuda.allocate(size)
        self.clear()

    def put(self, data: np.ndarray) -> None:
        self._cuda.write(self.address, data)

    def get(self) -> np.ndarray:
        return self._cuda.read(self.address, self.size)

    def close(self) -> None:
        if self._length:
            self._cuda.free_virtual(self.address, self._length)
        else:
            self._cuda.free(self.address)


def make_memory(kind: str, size: int, gpu: int = 0, vmm: bool = False) -> Memory:
    """DRAM or VRAM; vmm: nixl.alloc, or CUDA's virtual memory calls."""
    if kind == "VRAM":
        return GpuMemory(size, gpu, vmm)
    try:
        return HostMemory(size, vmm)
    except (OSError, MemoryError) as error:
        raise Refused(f"a buffer of {size} bytes: {error}") from error


def check_memory(kind: str, gpu: int) -> None:
    """Missing, where this machine has no such memory."""
    if kind == "VRAM":
        from .cuda import Cuda

        Cuda(gpu)


def usage_of(kind: str, gpu: int) -> Any:
    """What tells how busy the GPU is; None for host memory, and where nothing tells."""
    if kind != "VRAM":
        return None
    from .cuda import Nvml

    return Nvml.open(gpu)
