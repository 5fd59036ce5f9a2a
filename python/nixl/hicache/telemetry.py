"""Statistics of a connector as a file in the Prometheus text format, beside the agent's own
telemetry: NIXL_TELEMETRY_ENABLE and NIXL_TELEMETRY_DIR. Thread-safe."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from .config import truth

logger = logging.getLogger("nixl.hicache")

SECONDS = 5.0
_GAUGES = {"blocks", "live_bytes", "disk_bytes", "segments", "writers", "owned_writers"}


def render(stats: dict[str, Any], agent: str) -> str:
    """The text of all counters, gauges and latency histograms."""
    label = f'agent="{agent}",backend="{stats.get("backend", "")}"'
    lines = []
    for name, value in sorted(stats.items()):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        kind = "gauge" if name in _GAUGES else "counter"
        full = f"nixl_hicache_{name}" + ("" if kind == "gauge" else "_total")
        lines += [f"# TYPE {full} {kind}", f"{full}{{{label}}} {value}"]
    lines.append("# TYPE nixl_hicache_latency_seconds histogram")
    for operation, one in sorted(stats.get("latency", {}).items()):
        both = f'{label},operation="{operation}"'
        running = 0
        for bound, count in zip([*one["bounds_us"], None], one["counts"], strict=True):
            running += count
            edge = "+Inf" if bound is None else f"{bound / 1e6:g}"
            lines.append(f'nixl_hicache_latency_seconds_bucket{{{both},le="{edge}"}} {running}')
        total = one["mean_us"] * one["count"] / 1e6
        lines.append(f"nixl_hicache_latency_seconds_sum{{{both}}} {total:.6f}")
        lines.append(f"nixl_hicache_latency_seconds_count{{{both}}} {one['count']}")
    return "\n".join(lines) + "\n"


class Exporter:
    """Writes the file every few seconds of use, and at the end; does nothing unless enabled."""

    def __init__(self, agent: str, snapshot: Callable[[], dict[str, Any]]):
        on = truth(os.environ.get("NIXL_TELEMETRY_ENABLE", "")) is True
        folder = os.environ.get("NIXL_TELEMETRY_DIR", "").strip()
        self.path = os.path.join(folder, f"{agent}.prom") if on and folder else None
        self._agent = agent
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._next = 0.0

    def maybe(self) -> None:
        if self.path is not None and time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        if self.path is None:
            return
        with self._lock:
            self._next = time.monotonic() + SECONDS
            temporary = f"{self.path}.{os.getpid()}"
            try:
                with open(temporary, "w", encoding="utf-8") as file:
                    file.write(render(self._snapshot(), self._agent))
                os.replace(temporary, self.path)
            except OSError as error:
                logger.warning("telemetry: %s; no more of it", error)
                self.path = None
