"""Blocks in memory of a GPU, set and got, in a process of their own: a driver stays open until it
ends. `gpu_blocks.py FOLDER JSON-OF-THE-CONFIGURATION BACKEND:LAYOUT…`; NIXL_CUDA_LIBRARY names the
stand-in. A tensor here has what the connector asks of one of torch's."""

from __future__ import annotations

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "gpu"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gpu_support import GpuMemory  # noqa: E402
from nixl.hicache import HiCacheNixl  # noqa: E402


class GpuTensor:
    """Contiguous bytes of a GPU."""

    is_cuda = True
    dtype = torch.uint8

    def __init__(self, size: int, device: int = 0) -> None:
        self.memory = GpuMemory(size, device, 0xEE)
        self.shape = (size,)
        self.bounced = 0  # how often the host had a copy

    def detach(self) -> GpuTensor:
        return self

    contiguous = detach

    def is_contiguous(self) -> bool:
        return True

    def get_device(self) -> int:
        return self.memory.gpu

    def numel(self) -> int:
        return self.memory.size

    def element_size(self) -> int:
        return 1

    def data_ptr(self) -> int:
        return self.memory.address

    def cpu(self) -> torch.Tensor:
        self.bounced += 1
        return torch.from_numpy(np.frombuffer(self.memory.get(), np.uint8).copy())

    def copy_(self, source: torch.Tensor) -> GpuTensor:
        self.bounced += 1
        self.memory.set(source.numpy().tobytes())
        return self


def block(i: int, size: int) -> bytes:
    return np.random.default_rng(i).integers(0, 256, size, np.uint8).tobytes()


def check(layout: str, backend: str, folder: str, more: str) -> None:
    config = {**json.loads(more), "hicache": {"layout": layout}}
    connector = HiCacheNixl(folder, backend, config=config)
    count, size = 6, (1 << 18) + 4096
    sources = [GpuTensor(size, i % 2) for i in range(count)]
    for i, tensor in enumerate(sources):
        tensor.memory.set(block(i, size))
    keys = [f"gpu {i}" for i in range(count)]
    assert connector.batch_set(keys, sources)
    targets = [GpuTensor(size, (i + 1) % 2) for i in range(count)]
    missing = GpuTensor(size)
    found = connector.batch_get([*keys, "missing"], [*targets, missing])
    assert found[count] is None and missing.memory.get() == b"\xee" * size
    for i, tensor in enumerate(targets):
        assert found[i] is tensor
        assert tensor.memory.get() == block(i, size), i
    # Host and GPU, each from what the other stored, in one call.
    host = np.frombuffer(block(50, size), np.uint8).copy()
    assert connector.batch_set(["host", "gpu"], [host, sources[3]])
    back, other = np.zeros(size, np.uint8), GpuTensor(size)
    assert all(got is not None for got in connector.batch_get(["gpu", "host"], [back, other]))
    assert back.tobytes() == block(3, size) and other.memory.get() == host.tobytes()
    assert connector.set("one", sources[5])
    assert connector.get("one", missing) is missing and missing.memory.get() == block(5, size)
    straight = layout == "files"  # the backend moves it; else the connector copies to the host
    assert all((tensor.bounced == 0) == straight for tensor in [*sources, *targets])
    connector.close()


if __name__ == "__main__":
    place, configuration, *pairs = sys.argv[1:]
    for pair in pairs:
        backend, layout = pair.split(":")
        check(layout, backend, str(pathlib.Path(place) / pair.replace(":", "-")), configuration)
    print("passed")
