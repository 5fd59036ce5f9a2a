"""Counters and latency histograms of one connector. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Upper bounds of the latency buckets, in microseconds; the last one has none.
BOUNDS = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 500000, 1000000]


class Histogram:
    """Counts by duration; quantiles are upper bounds of their bucket."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0
        self.sum_us = 0.0
        self.max_us = 0.0

    def add(self, us: float) -> None:
        bucket = next((i for i, bound in enumerate(BOUNDS) if us <= bound), len(BOUNDS))
        self.counts[bucket] += 1
        self.total += 1
        self.sum_us += us
        self.max_us = max(self.max_us, us)

    def quantile(self, q: float) -> float:
        seen = 0
        for i, count in enumerate(self.counts):
            seen += count
            if seen >= q * self.total and count:
                return min(float(BOUNDS[i]), self.max_us) if i < len(BOUNDS) else self.max_us
        return 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "count": self.total,
            "mean_us": self.sum_us / self.total if self.total else 0.0,
            "p50_us": self.quantile(0.5),
            "p99_us": self.quantile(0.99),
            "max_us": self.max_us,
            "bounds_us": list(BOUNDS),
            "counts": list(self.counts),
        }


class Statistics:
    """What a connector did: by operation the calls, keys, bytes and latency."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, int] = {}
        self._latency: dict[str, Histogram] = {}
        #: (pages, GB/s) since the last time SGLang asked, by direction.
        self.recent: dict[str, list[tuple[int, float]]] = {"get": [], "set": []}

    def count(self, name: str, amount: int = 1) -> None:
        if amount:
            with self._lock:
                self._counters[name] = self._counters.get(name, 0) + amount

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            us = (time.perf_counter() - start) * 1e6
            with self._lock:
                self._latency.setdefault(operation, Histogram()).add(us)

    def moved(self, direction: str, pages: int, nbytes: int, seconds: float) -> None:
        self.count(f"{direction}_pages", pages)
        self.count(f"{direction}_bytes", nbytes)
        with self._lock:
            recent = self.recent[direction]
            if seconds > 0:
                recent.append((pages, nbytes / seconds / 1e9))
            del recent[:-4096]

    def take_recent(self) -> dict[str, list[tuple[int, float]]]:
        with self._lock:
            out, self.recent = self.recent, {"get": [], "set": []}
        return out

    def as_dict(self) -> dict[str, Any]:
        with self._lock:
            out: dict[str, Any] = dict(self._counters)
            out["latency"] = {name: h.as_dict() for name, h in self._latency.items()}
        for name in ("hits", "misses", "corrupt", "get_pages", "get_bytes", "set_pages",
                     "set_bytes", "set_failures"):  # fmt: skip
            out.setdefault(name, 0)
        return out


class HiCacheStats(dict):
    """get_stats(): a dictionary of everything, with the attributes that SGLang reads."""

    def __init__(self, figures: dict[str, Any], recent: dict[str, list[tuple[int, float]]]):
        super().__init__(figures)
        self.prefetch_pgs = [pages for pages, _ in recent["get"]]
        self.prefetch_bandwidth = [rate for _, rate in recent["get"]]
        self.backup_pgs = [pages for pages, _ in recent["set"]]
        self.backup_bandwidth = [rate for _, rate in recent["set"]]
