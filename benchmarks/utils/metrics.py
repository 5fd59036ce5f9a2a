"""What one size of a benchmark gives: bandwidth, latency percentiles, operations, processor."""

from __future__ import annotations

from dataclasses import dataclass

from .config import size_text


@dataclass(frozen=True)
class Result:
    size: int
    seconds: list[float]  # of each operation
    cpu_percent: float  # of one core
    verified: bool | None  # None: not asked for

    def percentile(self, percent: float) -> float:
        """Microseconds; nearest rank."""
        ranked = sorted(self.seconds)
        rank = max(0, -(-len(ranked) * percent // 100) - 1)
        return ranked[int(rank)] * 1e6

    @property
    def mean(self) -> float:
        return sum(self.seconds) / len(self.seconds) * 1e6

    @property
    def bandwidth(self) -> float:
        """GB/s."""
        return self.size * len(self.seconds) / sum(self.seconds) / 1e9

    @property
    def operations(self) -> float:
        """Per second."""
        return len(self.seconds) / sum(self.seconds)


COLUMNS = (
    "Buffer Size",
    "Bandwidth",
    "Latency (μs)",
    "P50 (μs)",
    "P95 (μs)",
    "P99 (μs)",
    "IOPS",
    "CPU",
    "Data",
)


def _cells(result: Result) -> tuple[str, ...]:
    data = {None: "-", True: "same", False: "DIFFERS"}[result.verified]
    return (
        size_text(result.size),
        f"{result.bandwidth:.3g} GB/s",
        f"{result.mean:.1f}",
        f"{result.percentile(50):.1f}",
        f"{result.percentile(95):.1f}",
        f"{result.percentile(99):.1f}",
        f"{result.operations:.0f}",
        f"{result.cpu_percent:.0f} %",
        data,
    )


def report(head: dict[str, str], results: list[Result]) -> str:
    lines = ["=== NIXL Benchmark Results ==="]
    lines += [f"{name}: {value}" for name, value in head.items()]
    table = [COLUMNS, *(_cells(result) for result in results)]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    shown = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
    rule = "|".join("-" * (w + (1 if i == 0 else 2)) for i, w in enumerate(widths))
    return "\n".join([*lines, "", shown[0].rstrip(), rule, *(s.rstrip() for s in shown[1:])])
