"""KV caches in memory of GPUs, for ranks of disaggregated serving; as a program, a decode rank.

    gpu_kv.py BOOTSTRAP_PORT ROOM PAGES...

asks for the room, says "asked", and once it is there prints a digest of its pages and ends.
"""

from __future__ import annotations

import hashlib
import sys
import time
from typing import Any

import gpu_support
import numpy as np
from nixl.disaggregation import conn

LAYERS, PAGES, TOKENS, HEADS, WIDTH = 2, 12, 4, 4, 64
PATIENCE = 60.0


class Cache:
    """K of all layers, then V; `kind` VRAM: of that GPU."""

    def __init__(self, heads: int = HEADS, kind: str = "VRAM", device: int = 0) -> None:
        self.shape = (PAGES, TOKENS, heads, WIDTH)
        size = int(np.prod(self.shape))
        self.aux = np.zeros((4, 64), np.uint8)
        if kind == "VRAM":
            self.parts: list[Any] = [gpu_support.GpuMemory(size, device) for _ in range(2 * LAYERS)]
            self.pointers = [part.address for part in self.parts]
        else:
            self.parts = [np.zeros(self.shape, np.uint8) for _ in range(2 * LAYERS)]
            self.pointers = [part.ctypes.data for part in self.parts]
        self.kind, self.size, self.device = kind, size, device

    def set(self, content: list[np.ndarray]) -> None:
        for part, values in zip(self.parts, content, strict=True):
            if self.kind == "VRAM":
                part.set(np.ascontiguousarray(values).tobytes())
            else:
                part[...] = values

    def get(self) -> list[np.ndarray]:
        if self.kind != "VRAM":
            return self.parts
        return [np.frombuffer(part.get(), np.uint8).reshape(self.shape) for part in self.parts]

    def free(self) -> None:
        if self.kind == "VRAM":
            for part in self.parts:
                part.free()

    def rank(self, mode: str, port: int, rank: int = 0, tp_size: int = 1) -> Any:
        """A manager, which is not told what kind of memory it is."""
        args = conn.KVArgs()
        args.engine_rank, args.page_size, args.gpu_id = rank, TOKENS, self.device
        args.total_kv_head_num = HEADS
        args.kv_data_ptrs = self.pointers
        args.kv_data_lens = [self.size] * len(self.parts)
        args.kv_item_lens = [self.size // PAGES] * len(self.parts)
        args.aux_data_ptrs, args.aux_data_lens = [self.aux.ctypes.data], [self.aux.nbytes]
        args.aux_item_lens = [self.aux[0].nbytes]
        server = conn.ServerArgs(
            tp_size=tp_size, host="127.0.0.1", disaggregation_bootstrap_port=port
        )
        return conn.NixlKVManager(args, conn.DisaggregationMode[mode.upper()], server)


def content(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    shape = (PAGES, TOKENS, HEADS, WIDTH)
    return [random.integers(1, 255, shape, np.uint8) for _ in range(2 * LAYERS)]


def digest(parts: list[np.ndarray], pages: list[int]) -> str:
    return hashlib.sha256(b"".join(part[pages].tobytes() for part in parts)).hexdigest()


def until(*ends: Any) -> None:
    limit = time.monotonic() + PATIENCE
    while any(end.poll() != conn.KVPoll.Success for end in ends):
        for end in ends:
            end.failure_exception()
        assert time.monotonic() < limit, [end.poll() for end in ends]
        time.sleep(0.001)  # sleeps: a scheduler's other work


def main() -> None:
    port, room = int(sys.argv[1]), int(sys.argv[2])
    pages = [int(word) for word in sys.argv[3:]]
    cache = Cache()
    with cache.rank("decode", port) as manager:
        receiver = conn.NixlKVReceiver(manager, f"127.0.0.1:{port}", room)
        receiver.init(np.array(pages, np.int32), 0)
        print("asked", flush=True)
        until(receiver)
        print(digest(cache.get(), pages), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
