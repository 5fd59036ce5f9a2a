"""Rows of LIBFABRIC: two processes that poll, beside the plain loop of yardstick_fabric.c over the
same provider, and beside the lane stream. Over tcp on loopback, and between two hosts.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from ends import as_line
from fabric_ends import NEAR_KEY, Ends
from hosts import far_prefix
from rows_base import Metric, Row, at_least, at_most, quick

HERE = pathlib.Path(__file__).resolve().parent
LARGE = 1 << 20 if quick() else 64 << 20
SIZES = {"64 B": (64, 200), "64 KiB": (64 << 10, 100), "1 MiB": (1 << 20, 50), "64 MiB": (LARGE, 5)}
OPERATIONS = ("WRITE", "READ")


def metrics_of() -> tuple[Metric, ...]:
    made = []
    for operation in OPERATIONS:
        for size in SIZES:
            rate = size == "64 MiB"
            target = at_least("limit", 0.9) if rate else at_most("limit", 1 / 0.9)
            targets = (target,) if size != "64 B" else ()
            name, unit = f"{size} {operation}", "GB/s" if rate else "us"
            made.append(Metric(name, unit, targets, rate, "plain libfabric", "lane stream"))
    return tuple(made)


class Far:
    """The process of fabric_ends.py."""

    def __init__(self, *words: str) -> None:
        pipe = subprocess.PIPE
        command = [*far_prefix(), sys.executable, str(HERE / "fabric_ends.py"), *words]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.invitation = self.answer()

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the far process ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, **message: Any) -> dict[str, Any]:
        self.process.stdin.write(as_line(message))
        self.process.stdin.flush()
        return self.answer()


class FabricRow(Row):
    sides = ("ours",)
    metrics = metrics_of()
    provider = "tcp"
    device = "lo"

    def setup(self) -> None:
        import numpy as np

        self.far = Far(self.provider, self.device, str(LARGE))
        self.ends = Ends("near", self.provider, self.device, LARGE, NEAR_KEY)
        self.ends.know(self.far.invitation)
        self.ends.plain.connect(self.far.invitation["plain"])
        self.far.ask(do="know", **self.ends.invitation())
        self.handles = {}
        for lane in self.ends.agents:
            self.far.ask(do="poll", what=lane)
            for operation in OPERATIONS:
                for size, (nbytes, _) in SIZES.items():
                    handle = self.ends.prepare(lane, operation, nbytes)
                    self.handles[lane, operation, size] = handle
            self.ends.memory[:] = np.random.default_rng().integers(0, 256, LARGE, dtype=np.uint8)
            self.ends.move(lane, self.handles[lane, "WRITE", "64 MiB"])
            if self.far.ask(do="sum")["sum"] != int(self.ends.memory.view(np.uint64).sum()):
                raise RuntimeError(f"{lane}: bytes differ")
        how = self.ends.agents["fabric"].explain(self.handles["fabric", "WRITE", "64 B"])
        self.facts["lane"] = f"{how['lane']}, {how['device']}; {how['reason']}"
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            self.far.ask(do="stay", core=cores[1])
            os.sched_setaffinity(0, cores[:1])  # this thread

    def measure(self) -> None:
        for operation in OPERATIONS:
            for size, (nbytes, posts) in SIZES.items():
                for kind, what in (("", "fabric"), ("limit:", "plain"), ("second:", "stream")):
                    self.far.ask(do="poll", what=what)
                    for _ in range(3 if quick() else posts):
                        seconds = self.once(what, operation, size, nbytes)
                        value = nbytes / seconds / 1e9 if size == "64 MiB" else seconds * 1e6
                        self.note(f"{kind}{size} {operation}", value)

    def once(self, what: str, operation: str, size: str, nbytes: int) -> float:
        if what == "plain":
            return self.ends.plain.move(operation == "READ", nbytes, nbytes)
        start = time.perf_counter()
        self.ends.move(what, self.handles[what, operation, size])
        return time.perf_counter() - start

    def close(self) -> None:
        self.far.process.kill()
        self.far.process.wait()


class FabricTcp(FabricRow):
    name = "fabric_tcp"
    title = "LIBFABRIC, tcp over loopback, both ends polling"


class FabricHosts(FabricRow):
    name = "hosts_fabric"
    title = "LIBFABRIC, tcp between two hosts, both ends polling"
    hosts = True
    device = "cable"

    def setup(self) -> None:
        look = ["cat", "/sys/class/net/cable/operstate"]
        for prefix in ([], far_prefix()):  # the system takes a while to see the carrier
            while subprocess.check_output([*prefix, *look]) != b"up\n":
                time.sleep(0.01)
        super().setup()


FABRIC_ROWS: list[type[Row]] = [FabricTcp, FabricHosts]
