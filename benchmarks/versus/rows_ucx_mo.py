"""The row of UCX_MO: two hosts with two cables, each slower than what the processors could move."""

from __future__ import annotations

import os
from typing import Any

from ends import Backend, make_end
from hosts import addresses
from rows_base import Metric, Row, at_least, at_most, quick
from rows_network import LARGE, TwoProcesses

ONE, TWO = "one device", "two devices"
OF_ONE = "our UCX, the same device"
TCP = {"lanes": "ucx", "UCX_TLS": "tcp"}
ENDS: dict[str, dict[str, Backend]] = {
    "ours": {
        ONE: ("UCX_MO", TCP | {"ucx_devices": "cable"}),
        TWO: ("UCX_MO", TCP | {"ucx_devices": "cable,cable1"}),
        OF_ONE: ("UCX", TCP | {"ucx_devices": "cable"}),
    },
    "peer": {ONE: ("UCX", {})},
}
SIZES = {"64 B": 64, "64 MiB": LARGE}
ROUNDS = {"64 B": 100, "64 MiB": 3}


def metrics_of() -> tuple[Metric, ...]:
    made = []
    for operation in ("WRITE", "READ"):
        small = (at_most("limit", 1.1),)
        one = (at_least("limit", 0.98), at_least("peer", 0.98))
        made.append(Metric(f"64 B {operation}, {ONE}", "us", small, limit=OF_ONE))
        made.append(Metric(f"64 MiB {operation}, {ONE}", "GB/s", one, True, OF_ONE))
        made.append(
            Metric(f"64 MiB {operation}, {TWO}", "GB/s", (at_least("limit", 1.8),), True, OF_ONE)
        )
    return tuple(made)


class SeveralEngines(TwoProcesses):
    name = "hosts_ucx_mo"
    title = "two hosts with two cables of 1 Gbit/s, UCX's tcp"
    hosts = True
    cables, rate = 2, "1gbit"
    metrics = metrics_of()

    def setup(self) -> None:
        import numpy as np

        if not self.ours:
            os.environ |= {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "cable"}
        self.size = self.room()
        self.source = np.random.default_rng(1).integers(0, 256, self.size, dtype=np.uint8)
        self.ends: dict[str, Any] = {}
        self.fars: dict[str, Any] = {}
        for name, backend in ENDS[self.side].items():
            self.far = self.fars[name] = self.make_far(f"far {name}", backend)
            near = (self.side, f"near {name}", self.source, addresses()[0], self.silent_for)
            self.end = self.ends[name] = make_end(*near, backend)
            self.end.set_metadata(self.far.invitation)
            self.far.ask(do="know", **self.end.invitation())
            self.address = self.far.address
            self.check_bytes()
        self.handles = {}
        for name in self.ends:
            self.use(name)
            for operation in ("WRITE", "READ"):
                for size, nbytes in SIZES.items():
                    handle = self.transfer(operation, nbytes)
                    self.handles[f"{size} {operation}, {name}"] = handle
        if self.ours:
            about = self.ends[TWO].agent.explain(self.handles[f"64 MiB WRITE, {TWO}"])
            self.facts["lane"] = f"{about['lane']}, {about['reason']}"

    def room(self) -> int:
        return LARGE

    def use(self, name: str) -> None:
        self.end, self.far = self.ends[name], self.fars[name]
        self.address = self.far.address

    def measure(self) -> None:
        for operation in ("WRITE", "READ"):
            for size, nbytes in SIZES.items():
                for name in self.ends:
                    self.use(name)
                    handle = self.handles[f"{size} {operation}, {name}"]
                    for _ in range(2 if quick() else ROUNDS[size]):
                        self.take(f"{size} {operation}", name, nbytes, self.move(handle))

    def take(self, what: str, name: str, nbytes: int, seconds: float) -> None:
        value = nbytes / seconds / 1e9 if nbytes >= LARGE else seconds * 1e6
        if name != OF_ONE:
            return self.note(f"{what}, {name}", value)
        for devices in (ONE, TWO) if nbytes >= LARGE else (ONE,):
            self.note(f"limit:{what}, {devices}", value)

    def close(self) -> None:
        for far in self.fars.values():
            far.close()


UCX_MO_ROWS: list[type[Row]] = [SeveralEngines]
