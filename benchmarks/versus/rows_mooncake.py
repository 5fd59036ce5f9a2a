"""The rows of MOONCAKE: the backend beside Mooncake's own Python calls, over the same engine by
tcp, with 64 B by our lane stream beside; between two processes and between two hosts.

Our agents use the library that NIXL_MOONCAKE_LIBRARY names, or the adapter that a build has made
for its tests, over the engine of the PyPI package in .venv.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from ends import Backend, make_end
from hosts import addresses
from rows_base import Metric, Row, at_least, at_most, quick, timed
from rows_network import LARGE, TwoProcesses

ROOT = pathlib.Path(__file__).resolve().parents[2]
BLOCK = 4096
BLOCKS = 100 if quick() else 5000
SCATTER = "4 KiB x 5,000 scattered"
SIZES = {"64 B": 64, "1 MiB": 1 << 20, "64 MiB": LARGE}
ROUNDS = {"64 B": 200, "1 MiB": 30, "64 MiB": 5}
STREAM: Backend = ("UCX", {"lanes": "stream"})
OF_STREAM = "our lane stream"


def metrics_of() -> tuple[Metric, ...]:
    made = []
    for operation in ("WRITE", "READ"):
        for size in SIZES:
            small = size == "64 B"
            target = at_least("mooncake", 1) if size == "64 MiB" else at_most("mooncake", 1)
            unit = "GB/s" if size == "64 MiB" else "us"
            limit = OF_STREAM if small else ""
            made.append(Metric(f"{size} {operation}", unit, (target,), size == "64 MiB", limit))
        made.append(Metric(f"{SCATTER} {operation}", "us/block", (at_most("mooncake", 1),)))
    return tuple(made)


class OverMooncake(TwoProcesses):
    """The near end polls; the far one sleeps, as the target of one-sided transfers may."""

    sides = ("ours", "mooncake")
    metrics = metrics_of()
    sizes = tuple(SIZES)

    @classmethod
    def environment(cls) -> dict[str, str]:
        # Not those of sanitizers' trees, which no other program can load.
        trees = [ROOT / "build" / name for name in ("bench", "release")]
        if given := os.environ.get("NIXL_BUILD_DIR"):
            trees.append(pathlib.Path(given).resolve())
        paths = [tree / "lib" / "standins" / "libmooncake_adapter.so" for tree in trees]
        built = sorted(filter(pathlib.Path.exists, paths), key=lambda path: path.stat().st_mtime)
        found = {"NIXL_MOONCAKE_LIBRARY": str(built[-1])} if built else {}
        return {"MC_LOG_LEVEL": "ERROR", **found} | {
            name: os.environ[name] for name in ("NIXL_MOONCAKE_LIBRARY",) if name in os.environ
        }

    def setup(self) -> None:
        import numpy as np

        self.polls = self.polls and self.ours  # Mooncake's engine serves by itself
        self.polls = self.polls and self.ours  # Mooncake's engine serves by itself
        self.size = self.room()
        self.source = np.random.default_rng(1).integers(0, 256, self.size, dtype=np.uint8)
        near, far = addresses()
        self.join("mooncake", near, far)
        self.fars, self.handles_of = [self.far], self.handles_by(self.end)
        if self.ours:
            own = self.far, self.end, self.address
            self.join("stream", near, far)
            self.fars.append(self.far)
            self.stream, self.stream_handles = self.end, self.handles_by(self.end)
            self.far, self.end, self.address = own

    def join(self, which: str, near: str, far: str) -> None:
        ours = {"lanes": "mooncake", "protocol": "tcp"}
        backends: list[Backend] = [
            ("MOONCAKE", ours | {"local_hostname": address}) for address in (near, far)
        ]
        if which == "stream":
            backends = [STREAM, STREAM]
        self.far = self.make_far(f"far {which}", backends[1])
        self.end = make_end(
            self.side, f"near {which}", self.source, near, self.silent_for, backends[0]
        )
        self.end.set_metadata(self.far.invitation)
        self.far.ask(do="know", **self.end.invitation())
        self.address = self.far.address
        self.check_bytes()
        if self.ours:
            lane = self.end.path(self.transfer("WRITE", 64))
            self.facts[which] = lane
            if not lane.startswith(which):
                raise RuntimeError(f"lane {lane}, not {which}")

    def handles_by(self, end: Any) -> dict[str, Any]:
        import numpy as np

        rng = np.random.default_rng(2)
        places = [
            rng.permutation(4 * BLOCKS)[:BLOCKS].astype(np.uint64) * np.uint64(BLOCK)
            for _ in range(2)
        ]
        near = places[0] + np.uint64(self.source.ctypes.data)
        far = places[1] + np.uint64(self.address)
        made = {}
        for operation in ("WRITE", "READ"):
            for size, nbytes in SIZES.items():
                made[f"{size} {operation}"] = self.transfer(operation, nbytes)
            made[f"{SCATTER} {operation}"] = end.prepare(operation, near, far, BLOCK)
        return made

    def room(self) -> int:
        return max(LARGE, 4 * BLOCKS * BLOCK)

    def close(self) -> None:
        for far in self.fars:
            far.close()

    def measure(self) -> None:
        for operation in ("WRITE", "READ"):
            for size in self.sizes:
                name, nbytes = f"{size} {operation}", SIZES[size]
                for _ in range(3 if quick() else ROUNDS[size]):
                    spent = self.move(self.handles_of[name])
                    rate = size == "64 MiB"
                    self.note(name, nbytes / spent / 1e9 if rate else spent * 1e6)
                if self.ours and size == "64 B":
                    for _ in range(3 if quick() else ROUNDS[size]):
                        spent, _ = timed(
                            lambda one=name: self.stream.move(self.stream_handles[one])
                        )
                        self.note(f"limit:{name}", spent * 1e6)
            name = f"{SCATTER} {operation}"
            for _ in range(3 if len(self.sizes) > 1 else 0):
                self.note(name, self.move(self.handles_of[name]) / BLOCKS * 1e6)


class PairMooncake(OverMooncake):
    name = "pair_mooncake"
    title = "two processes, MOONCAKE by tcp"


class PairMooncakePolling(PairMooncake):
    name = "pair_mooncake_polling"
    title = "two processes, both ends polling, MOONCAKE by tcp"
    polls = True
    sizes = ("64 B",)
    metrics = tuple(metric for metric in OverMooncake.metrics if metric.name.startswith("64 B"))


class HostsMooncake(OverMooncake):
    name = "hosts_mooncake"
    title = "two hosts, MOONCAKE by tcp"
    hosts = True


MOONCAKE_ROWS: list[type[Row]] = [PairMooncake, PairMooncakePolling, HostsMooncake]
