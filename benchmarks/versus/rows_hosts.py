"""Rows between two hosts, which are two network namespaces: blocks of every size, and scattered."""

from __future__ import annotations

from typing import Any

from hosts import addresses, far_prefix
from limits import READ, SCATTERED, Iperf, PlainSender, scattered_places
from rows_base import Metric, Row, Target, at_least, at_most, quick
from rows_network import LARGE, PIECE, TwoProcesses

BLOCK = 4096
BLOCKS = 100 if quick() else 5000
CONNECTIONS = 2  # as many as ours opens for these sizes
SIZES = {"64 B": 64, "4 KiB": BLOCK, "64 KiB": 64 << 10, "1 MiB": 1 << 20, "64 MiB": LARGE}
ROUNDS = {"64 B": 200, "4 KiB": 200, "64 KiB": 100, "1 MiB": 30, "64 MiB": 5}
SCATTER = "4 KiB x 5,000 scattered"
SENDER = "plain vectored sender"
ECHO = "echo, the same threads"


def metrics_of() -> tuple[Metric, ...]:
    made = []
    for operation in ("WRITE", "READ"):
        for size in SIZES:
            name = f"{size} {operation}"
            if size == "64 MiB":
                target: tuple[Target, ...] = (at_least("limit", 0.9),)
                made.append(Metric(name, "GB/s", target, True, "iperf3", SENDER))
            elif size == "64 B":
                made.append(Metric(name, "us", (at_most("limit", 1.25),), limit=ECHO))
                made.append(Metric(f"{name}, p99", "us", limit=ECHO))
            elif size == "4 KiB":
                made.append(Metric(name, "us", limit=ECHO))
            else:
                made.append(Metric(name, "us", second=SENDER))
        target = (at_least("limit", 0.75),)
        made.append(Metric(f"{SCATTER} {operation}", "GB/s", target, True, "iperf3", SENDER))
    return tuple(made)


class TwoHosts(TwoProcesses):
    name = "hosts_moves"
    title = "two hosts"
    hosts = True
    sides = ("ours", "peer", "mooncake")
    metrics = metrics_of()

    def room(self) -> int:
        return max(LARGE, 4 * BLOCKS * BLOCK)

    def prepare(self) -> None:
        self.handles = {}
        near = scattered_places(self.source.ctypes.data, BLOCKS, BLOCK, 3)
        far = scattered_places(self.address, BLOCKS, BLOCK, 4)
        for operation in ("WRITE", "READ"):
            for size, nbytes in SIZES.items():
                self.handles[f"{size} {operation}"] = self.transfer(operation, nbytes)
            scattered = self.end.prepare(operation, near, far, BLOCK)
            self.handles[f"{SCATTER} {operation}"] = scattered
        self.check_bytes()
        lane = self.tell_lane(self.handles["64 MiB WRITE"])
        if lane and not lane.startswith("stream"):
            raise RuntimeError(f"two hosts, and yet lane {lane}")
        self.scattered = near
        if self.ours:
            address = addresses()[1]
            self.sender = PlainSender(far_prefix(), address, self.size, BLOCKS, BLOCK)
            self.iperf = Iperf(far_prefix(), address)

    def close(self) -> None:
        super().close()
        if self.ours:
            self.sender.close()
            self.iperf.close()

    def measure(self) -> None:
        for operation in ("WRITE", "READ"):
            rate = 0.0
            if self.ours:
                rate = self.iperf.rate(operation == "READ", CONNECTIONS, 0.1 if quick() else 1)
            for size, nbytes in SIZES.items():
                name = f"{size} {operation}"
                rounds = 3 if quick() else ROUNDS[size]
                spent = [self.move(self.handles[name]) for _ in range(rounds)]
                self.take(name, nbytes, spent, "", size == "64 MiB")
                if self.ours:
                    self.limits_of(name, nbytes, rounds, rate)
            name = f"{SCATTER} {operation}"
            for _ in range(5):
                self.take(name, BLOCKS * BLOCK, [self.move(self.handles[name])], "", True)
                if self.ours:
                    kind = SCATTERED | (READ if operation == "READ" else 0)
                    spent = [self.sender.move(kind, self.scattered, BLOCK)]
                    self.take(name, BLOCKS * BLOCK, spent, "second:", True)
            if rate:
                self.note(f"limit:{name}", rate)

    def limits_of(self, name: str, nbytes: int, rounds: int, rate: float) -> None:
        kind = READ if name.endswith("READ") else 0
        large = name.startswith("64 MiB")
        if nbytes <= BLOCK:
            spent = self.sender.echo(kind, self.source.ctypes.data, nbytes, rounds)
            return self.take(name, nbytes, spent, "limit:", False)
        places = self.pieces(nbytes)
        size = min(nbytes, PIECE)
        spent = [self.sender.move(kind, places, size) for _ in range(rounds)]
        self.take(name, nbytes, spent, "second:", large)
        if large and rate:
            self.note(f"limit:{name}", rate)

    def pieces(self, nbytes: int) -> Any:
        import numpy as np

        size = min(nbytes, PIECE)
        steps = np.arange(nbytes // size, dtype=np.uint64) * np.uint64(size)
        return steps + np.uint64(self.source.ctypes.data)

    def take(self, name: str, nbytes: int, spent: list[float], kind: str, rate: bool) -> None:
        for seconds in spent:
            self.note(f"{kind}{name}", nbytes / seconds / 1e9 if rate else seconds * 1e6)
        if name.startswith("64 B "):
            self.note(f"{kind}{name}, p99", sorted(spent)[len(spent) * 99 // 100] * 1e6)


HOST_ROWS: list[type[Row]] = [TwoHosts]
