"""What one size of a benchmark gives: bandwidth, latency percentiles, operations, processor."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .config import size_text

# Kept in records, so that a report can draw how the latencies are distributed.
QUANTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.99, 100)


@dataclass(frozen=True)
class Result:
    size: int  # bytes moved by one transfer
    seconds: list[float]  # of each transfer
    cpu_percent: float  # of one core
    verified: bool | None  # None: not asked for
    batch: int = 1  # operations of one transfer
    cpu_seconds: float = 0.0  # spent by this process on all of them
    gpu_percent: float | None = None  # None: no GPU memory, or nothing that tells
    extra: Mapping[str, float] = field(default_factory=dict)  # columns of one program

    @cached_property
    def _ranked(self) -> list[float]:
        return sorted(self.seconds)

    def percentile(self, percent: float) -> float:
        """Microseconds; nearest rank."""
        ranked = self._ranked
        # In thousandths of a percent: 99.9 is no binary fraction.
        rank = -(-len(ranked) * round(percent * 1000) // 100_000) - 1
        return ranked[max(0, rank)] * 1e6

    @property
    def mean(self) -> float:
        return sum(self.seconds) / len(self.seconds) * 1e6

    @property
    def bandwidth(self) -> float:
        """GB/s, of 10⁹ bytes."""
        return self.size * len(self.seconds) / sum(self.seconds) / 1e9

    @property
    def operations(self) -> float:
        """Per second."""
        return self.batch * len(self.seconds) / sum(self.seconds)

    @property
    def cpu_per_gb(self) -> float:
        """Seconds of processor time for 10⁹ bytes."""
        return self.cpu_seconds / (self.size * len(self.seconds) / 1e9)


def as_row(result: Result) -> dict[str, Any]:
    """One flat line, as --format json and csv show it."""
    return {
        "size": result.size,
        "iterations": len(result.seconds),
        "bandwidth_gb_s": result.bandwidth,
        "mean_us": result.mean,
        "min_us": result.percentile(0),
        "p50_us": result.percentile(50),
        "p95_us": result.percentile(95),
        "p99_us": result.percentile(99),
        "p999_us": result.percentile(99.9),
        "max_us": result.percentile(100),
        "operations_per_s": result.operations,
        "cpu_percent": result.cpu_percent,
        "cpu_s_per_gb": result.cpu_per_gb,
        "gpu_percent": result.gpu_percent,
        "verified": result.verified,
        **result.extra,
    }


def quantiles(result: Result) -> list[tuple[float, float]]:
    """(percent, microseconds)."""
    return [(percent, result.percentile(percent)) for percent in QUANTILES]


class Meter:
    """Times transfers; counts the processor, and the GPU where one is named, between start and
    end. The processor time is that of all threads of this process."""

    def __init__(self, gpu: Any = None) -> None:
        self.seconds: list[float] = []
        self._gpu = gpu
        self._shares: list[float] = []
        self._ended = threading.Event()
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> Meter:
        if self._gpu is not None:
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        self._cpu, self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._start
        self.cpu_seconds = time.process_time() - self._cpu
        if self._sampler is not None:
            self._ended.set()
            self._sampler.join()

    def _sample(self) -> None:
        while True:
            last = self._ended.wait(0.1)
            self._shares.append(self._gpu.utilization())
            if last:
                return

    @property
    def cpu_percent(self) -> float:
        return self.cpu_seconds / self.wall * 100

    @property
    def gpu_percent(self) -> float | None:
        return sum(self._shares) / len(self._shares) if self._shares else None

    def result(self, size: int, verified: bool | None, batch: int = 1, **extra: float) -> Result:
        return Result(
            size, self.seconds, self.cpu_percent, verified, batch, self.cpu_seconds,
            self.gpu_percent, extra,
        )  # fmt: skip


def percent_text(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %"


def bandwidth_text(gb_s: float) -> str:
    for least, factor, unit in ((1e3, 1e-3, "TB"), (0.1, 1, "GB"), (1e-4, 1e3, "MB")):
        if gb_s >= least * (1 - 1e-9):
            return f"{gb_s * factor:.3g} {unit}/s"
    return f"{gb_s * 1e6:.3g} KB/s" if gb_s else "0"


def _cells(result: Result) -> dict[str, str]:
    cells = {
        "Buffer Size": size_text(result.size),
        "Bandwidth": bandwidth_text(result.bandwidth),
        "Latency (μs)": f"{result.mean:.1f}",
        "P50 (μs)": f"{result.percentile(50):.1f}",
        "P95 (μs)": f"{result.percentile(95):.1f}",
        "P99 (μs)": f"{result.percentile(99):.1f}",
        "P99.9 (μs)": f"{result.percentile(99.9):.1f}",
        "Max (μs)": f"{result.percentile(100):.1f}",
        "IOPS": f"{result.operations:.0f}",
        "CPU": percent_text(result.cpu_percent),
        "CPU s/GB": f"{result.cpu_per_gb:.3f}",
    }
    if result.gpu_percent is not None:
        cells["GPU"] = percent_text(result.gpu_percent)
    cells |= {EXTRA[name]: f"{value:.3g}" for name, value in result.extra.items()}
    cells["Data"] = {None: "-", True: "same", False: "DIFFERS"}[result.verified]
    return cells


# Columns that only some programs have: name in records → heading.
EXTRA = {
    "bus_gb_s": "Bus GB/s",
    "total_gb_s": "All GB/s",
    "target_cpu_percent": "Target CPU %",
}


def report(head: Mapping[str, str], results: list[Result]) -> str:
    """The guide's table."""
    lines = ["=== NIXL Benchmark Results ==="]
    lines += [f"{name}: {value}" for name, value in head.items()]
    cells = [_cells(result) for result in results]
    columns = list(cells[0])
    table = [columns, *([row[name] for name in columns] for row in cells)]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    shown = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
    rule = "|".join("-" * (w + (1 if i == 0 else 2)) for i, w in enumerate(widths))
    return "\n".join([*lines, "", shown[0].rstrip(), rule, *(s.rstrip() for s in shown[1:])])
