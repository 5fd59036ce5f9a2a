"""Host pools of SGLang as rows of memory: zero-copy where a page is a few contiguous ranges, by a
registered bounce buffer otherwise. Set and get may run on two threads; each has its own bounce."""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import Any

import numpy as np

from .transfers import Mover

logger = logging.getLogger("nixl.hicache")

ZERO_COPY_LAYOUTS = ("page_first", "page_first_direct")
BOUNCE_BYTES = 64 << 20
BOUNCE_PAGES = 128


def index_array(indices: Any) -> np.ndarray:
    """Host indices as int64, without a copy where torch holds them so."""
    if isinstance(indices, np.ndarray):
        return indices.astype(np.int64, copy=False)
    if hasattr(indices, "data_ptr"):
        flat = indices.detach()
        if flat.device.type == "cpu" and flat.is_contiguous() and flat.element_size() == 8:
            count = flat.numel()
            raw = (ctypes.c_char * (count * 8)).from_address(flat.data_ptr()) if count else b""
            return np.frombuffer(raw, dtype=np.int64, count=count)
        return np.array(flat.tolist(), dtype=np.int64)
    return np.array(indices, dtype=np.int64)


def part_names(pool_name: str | None, parts: int) -> tuple[str, ...]:
    """How SGLang's own connector names the parts of a page, so that files can be exchanged."""
    if pool_name in (None, "kv"):
        return ("_k", "_v")[:parts] if parts <= 2 else tuple(f"_{i}" for i in range(parts))
    if parts == 1:
        return (f"_{pool_name}",)
    if pool_name == "mamba":
        return (f"_{pool_name}_temporal", *(f"_{pool_name}_conv_{i}" for i in range(parts - 1)))
    if parts == 2:
        return (f"_{pool_name}_k", f"_{pool_name}_v")
    return tuple(f"_{pool_name}_{i}" for i in range(parts))


class _Geometry:
    """Addresses of a page as base + index * step for each part, learned from the pool itself."""

    def __init__(self, pool: Any, page_size: int):
        self.pool = pool
        self.page_size = page_size
        size = int(getattr(pool, "logical_size", 0) or getattr(pool, "size", 0) or 0)
        pages = max(1, size // page_size)
        probes = sorted({0, min(1, pages - 1), pages // 2, pages - 1})
        seen = [self._ask(page * page_size) for page in probes]
        self.addresses, self.sizes = seen[0]
        self.steps = np.zeros_like(self.addresses)
        if len(probes) > 1:
            first = probes[1] * page_size
            self.steps = (seen[1][0] - self.addresses) // np.uint64(first)
        self.linear = all(
            np.array_equal(sizes, self.sizes)
            and np.array_equal(addresses, self._at(np.array([page * page_size]))[0])
            for page, (addresses, sizes) in zip(probes, seen, strict=True)
        )
        self._spot = 0

    def _ask(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        pointers, sizes = self.pool.get_page_buffer_meta(
            torch.arange(start, start + self.page_size, dtype=torch.int64)
        )
        return np.array(pointers, dtype=np.uint64), np.array(sizes, dtype=np.uint64)

    def _at(self, starts: np.ndarray) -> np.ndarray:
        return self.addresses + starts.astype(np.uint64)[:, None] * self.steps

    def rows(self, indices: Any, starts: np.ndarray) -> np.ndarray:
        """Rows of all pages. One page of each call is checked against the pool's own answer."""
        if self.linear and len(starts):
            addresses = self._at(starts)
            self._spot = (self._spot + 1) % len(starts)
            told, _ = self._ask(int(starts[self._spot]))
            if np.array_equal(told, addresses[self._spot]):
                return self._table(addresses.reshape(-1), np.tile(self.sizes, len(starts)))
            logger.warning("host pool: page addresses are not regular; asking for each page")
            self.linear = False
        pointers, sizes = self.pool.get_page_buffer_meta(indices)
        return self._table(np.array(pointers, dtype=np.uint64), np.array(sizes, dtype=np.uint64))

    @staticmethod
    def _table(addresses: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        out = np.zeros((len(addresses), 3), dtype=np.uint64)
        out[:, 0] = addresses
        out[:, 1] = sizes
        return out


class _Bounce:
    """One direction's page-aligned buffer of a few pages."""

    def __init__(self, mover: Mover, page_bytes: int, dtype: Any):
        import torch

        self.pages = max(1, min(BOUNCE_PAGES, BOUNCE_BYTES // max(1, page_bytes)))
        self.page_bytes = page_bytes
        stride = -(-page_bytes // 4096) * 4096
        memory = torch.empty(self.pages * stride + 4096, dtype=torch.uint8)
        start = -memory.data_ptr() % 4096
        self.memory = memory
        views = memory[start : start + self.pages * stride].view(self.pages, stride)
        self.views = [views[i][:page_bytes].view(dtype) for i in range(self.pages)]
        base = memory.data_ptr() + start
        mover.register_host([(base, self.pages * stride)])
        self.table = np.zeros((self.pages, 3), dtype=np.uint64)
        self.table[:, 0] = base + np.arange(self.pages, dtype=np.uint64) * np.uint64(stride)
        self.table[:, 1] = page_bytes
        self.lock = threading.Lock()


class HostPool:
    """A registered host pool: how its pages are stored and fetched."""

    def __init__(self, pool: Any, name: str | None, mover: Mover):
        self.pool = pool
        self.name = None if name is None else str(name)
        self.page_size = int(getattr(pool, "page_size", 1) or 1)
        self.layout = str(getattr(pool, "layout", ""))
        self.geometry: _Geometry | None = None
        self.anchor = self.name is None and getattr(pool, "kv_buffer", None) is None
        buffers = self._buffers()
        if self.anchor:
            self._set_up_anchor(mover)
        elif buffers and self._zero_copy(mover, buffers):
            self.names = part_names(self.name, len(self.geometry.sizes))
            self.block_bytes = int(self.geometry.sizes.max())
        else:
            sample = pool.get_dummy_flat_data_page()
            page_bytes = sample.numel() * sample.element_size()
            self.block_bytes = page_bytes
            self.names = ("",) if self.name is None else (f"_{self.name}",)
            self.bounce = {d: _Bounce(mover, page_bytes, sample.dtype) for d in ("set", "get")}
        self.per = len(self.names)

    def _set_up_anchor(self, mover: Mover) -> None:
        # No bytes of its own: a one-byte marker tells that the page's other pools are there.
        self.marker = np.ones(4096, dtype=np.uint8)
        mover.register_host([(self.marker.ctypes.data, 4096)])
        self.names = ("",)
        self.block_bytes = 1

    def _buffers(self) -> list[Any]:
        if self.name is None:
            buffer = getattr(self.pool, "kv_buffer", None)
            if self.layout not in ZERO_COPY_LAYOUTS or buffer is None:
                return []
            return list(buffer) if isinstance(buffer, (list, tuple)) else [buffer]
        if not hasattr(self.pool, "get_page_buffer_meta"):
            return []
        ask = getattr(self.pool, "get_hybrid_pool_buffer", None)
        return [b for b in (ask() if ask else []) if b is not None]

    def _zero_copy(self, mover: Mover, buffers: list[Any]) -> bool:
        try:
            self.geometry = _Geometry(self.pool, self.page_size)
        except Exception as error:
            logger.info("host pool %s: no zero copy: %s", self.name or "kv", error)
            self.geometry = None
            return False
        mover.register_host([(b.data_ptr(), b.numel() * b.element_size()) for b in buffers])
        return True

    @property
    def zero_copy(self) -> bool:
        return self.geometry is not None

    @property
    def format_tag(self) -> str:
        """Tells apart pages whose bytes are in another order or type, for the packed layout."""
        own = getattr(self.pool, "storage_format_tag", None)
        dtype = str(getattr(self.pool, "dtype", "")).replace("torch.", "")
        kind = "anchor" if self.anchor else f"{self.layout}.{dtype}"
        return f".{kind}.{own}" if own else f".{kind}"

    def starts(self, keys: list[str], indices: Any) -> np.ndarray | None:
        """The first index of each page, or None where keys and indices do not fit."""
        count = 0 if indices is None else len(indices)
        if count != len(keys) * self.page_size:
            logger.error(
                "pool %s: %d keys of %d indices each need %d indices, got %d", self.name or "kv",
                len(keys), self.page_size, len(keys) * self.page_size, count,
            )  # fmt: skip
            return None
        return index_array(indices)[:: self.page_size]

    def put(self, blocks: Any, keys: list[str], suffix: str, indices: Any) -> list[bool]:
        starts = self.starts(keys, indices)
        if starts is None or not keys:
            return [False] * len(keys)
        if self.anchor:
            return blocks.put(keys, suffix, self._marks(len(keys)), 1, names=self.names)
        if self.geometry is not None:
            rows = self.geometry.rows(indices, starts)
            return blocks.put(keys, suffix, rows, self.per, names=self.names)
        done: list[bool] = []
        bounce = self.bounce["set"]
        with bounce.lock:
            for at in range(0, len(keys), bounce.pages):
                some = keys[at : at + bounce.pages]
                for index, start in enumerate(starts[at : at + bounce.pages]):
                    page = self.pool.get_data_page(int(start), flat=True)
                    bounce.views[index].copy_(page)
                rows = bounce.table[: len(some)].copy()
                done += blocks.put(some, suffix, rows, 1, names=self.names)
        return done

    def get(self, blocks: Any, keys: list[str], suffix: str, indices: Any) -> list[bool]:
        starts = self.starts(keys, indices)
        if starts is None or not keys:
            return [False] * len(keys)
        if self.anchor:
            return blocks.get(keys, suffix, self._marks(len(keys)), 1, names=self.names)
        if self.geometry is not None:
            rows = self.geometry.rows(indices, starts)
            return blocks.get(keys, suffix, rows, self.per, names=self.names)
        done: list[bool] = []
        bounce = self.bounce["get"]
        with bounce.lock:
            for at in range(0, len(keys), bounce.pages):
                some = keys[at : at + bounce.pages]
                rows = bounce.table[: len(some)].copy()
                ok = blocks.get(some, suffix, rows, 1, names=self.names)
                for index, start in enumerate(starts[at : at + bounce.pages]):
                    if ok[index]:
                        self.pool.set_from_flat_data_page(int(start), bounce.views[index])
                done += ok
        return done

    @property
    def sizes(self) -> list[int]:
        """The bytes of each part of a page."""
        if self.geometry is not None:
            return self.geometry.sizes.tolist()
        return [self.block_bytes] * self.per

    def _marks(self, count: int) -> np.ndarray:
        rows = np.zeros((count, 3), dtype=np.uint64)
        rows[:, 0] = self.marker.ctypes.data
        rows[:, 1] = 1
        return rows

    def bytes_of(self, pages: int) -> int:
        if self.geometry is not None:
            return pages * int(self.geometry.sizes.sum())
        return pages * self.block_bytes
