"""The base of single-node benchmarks: warm-up, timing, verification, the report."""

from __future__ import annotations

import time
from typing import Any

from .config import Settings
from .metrics import Result, report


class Benchmark:
    """A subclass prepares one size at a time and moves it once per call of run_once()."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def head(self) -> dict[str, str]:
        """What stands above the table."""
        raise NotImplementedError

    def prepare(self, size: int) -> None:
        raise NotImplementedError

    def run_once(self) -> None:
        raise NotImplementedError

    def verify(self) -> bool:
        """Whether source and destination hold the same bytes after the last run."""
        raise NotImplementedError

    def finish(self) -> None:
        """Releases what prepare() made."""

    def measure(self, size: int) -> Result:
        self.prepare(size)
        try:
            for _ in range(self.settings.warmup):
                self.run_once()
            seconds = []
            cpu, start = time.process_time(), time.perf_counter()
            for _ in range(self.settings.iterations):
                before = time.perf_counter()
                self.run_once()
                seconds.append(time.perf_counter() - before)
            spent = time.perf_counter() - start
            cpu_percent = (time.process_time() - cpu) / spent * 100
            same = self.verify() if self.settings.verify else None
        finally:
            self.finish()
        return Result(size, seconds, cpu_percent, same)

    def main(self) -> int:
        results = [self.measure(size) for size in self.settings.sizes]
        print(report(self.head() | {"Operation": self.settings.operation}, results))
        return 1 if any(result.verified is False for result in results) else 0


def move(agent: Any, handle: Any) -> None:
    """Posts and polls until the transfer has ended."""
    state = agent.transfer(handle)
    while state == "PROC":
        state = agent.check_xfer_state(handle)
    if state != "DONE":
        raise RuntimeError(f"the transfer ended as {state}")
