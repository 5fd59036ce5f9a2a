"""All-reduce: afterwards every agent holds the sum of all agents' vectors.

    python benchmarks/multi_node/all_reduce.py --ranks 4 --buffer_sizes 1MB,16MB

On several hosts: --mode target --ranks 4 --local_ranks 2 --ip ADDRESS on one of them, --mode
initiator --local_ranks 2 --target_ip ADDRESS on the others; or --etcd_endpoints and
--benchmark_group on all.

A ring over one-sided writes. The vector is cut into one part for each agent. First each part goes
round once and is added to at every stop (reduce-scatter): an agent writes into the inbox of its
right neighbour, and the notification that follows the data says which step it was. Then the
finished parts go round (all-gather), written where they belong. Nothing is copied on the way: an
inbox, once added to, is where the next write comes from.

Bandwidth is the vector's bytes by time; the bus bandwidth, 2 (n-1) / n of it, is what each link
moved. The numbers are whole, so that sums of float32 are exact, and every one is compared.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import run  # noqa: E402
from utils.config import make_parser  # noqa: E402
from utils.memory import make_memory  # noqa: E402
from utils.numbers import check_sizes, total, vector  # noqa: E402
from utils.rendezvous import add_network  # noqa: E402
from utils.team import STEP_SECONDS, Rank, add_team, run_team, slowest  # noqa: E402


class Ring(Rank):
    def offer(self, size: int) -> dict[str, Any]:
        count, ranks = size // 4, self.ranks
        # Part p is numbers[bounds[p] : bounds[p + 1]].
        self.bounds = [count * part // ranks for part in range(ranks + 1)]
        self.longest = max(b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False))
        slots = self.longest * (ranks - 1) * 4
        vmm = self.setting["vmm"]
        self.memories = [make_memory("DRAM", bytes_, vmm=vmm) for bytes_ in (size, size, slots)]
        self.regions = [memory.register(self.agent) for memory in self.memories]
        self.input, self.result, inbox = (m.array.view("f4") for m in self.memories)
        self.inbox = inbox.reshape(ranks - 1, self.longest)
        self.input[:] = vector(self.rank, 0, count)
        self.round = 0
        return {"result": self.memories[1].address, "inbox": self.memories[2].address}

    def connect(self, offers: Sequence[Mapping[str, Any]]) -> None:
        right = offers[(self.rank + 1) % self.ranks]
        self.left_name = offers[(self.rank - 1) % self.ranks]["agent"]
        self.reduces, self.gathers = [], []
        for step in range(self.ranks - 1):
            part = (self.rank - step) % self.ranks
            source = self.memories[0].address + 4 * self.bounds[part] if step == 0 else (
                self.inbox[step - 1].ctypes.data)  # fmt: skip
            there = right["inbox"] + 4 * self.longest * step
            self.reduces.append(self._write(source, there, part, right["agent"]))
            part = (self.rank + 1 - step) % self.ranks
            at = 4 * self.bounds[part]
            here = self.memories[1].address + at
            self.gathers.append(self._write(here, right["result"] + at, part, right["agent"]))

    def _write(self, here: int, there: int, part: int, peer: str) -> Any:
        length = 4 * (self.bounds[part + 1] - self.bounds[part])
        local = self.agent.get_xfer_descs([(here, length, 0)], "DRAM")
        remote = self.agent.get_xfer_descs([(there, length, 0)], "DRAM")
        return self.agent.initialize_xfer("WRITE", local, remote, peer)

    def step(self) -> None:
        agent, ranks, bounds = self.agent, self.ranks, self.bounds
        self.round += 1
        for step, write in enumerate(self.reduces):
            tag = f"reduce {self.round} {step}"
            agent.transfer(write, tag)
            agent.wait_notifs(tag, timeout=STEP_SECONDS, exact=True)
            part = (self.rank - step - 1) % ranks
            start, stop = bounds[part], bounds[part + 1]
            came = self.inbox[step, : stop - start]
            came += self.input[start:stop]
        self.result[start:stop] = came  # this part is complete, and ours to give on
        for step, write in enumerate(self.gathers):
            tag = f"gather {self.round} {step}"
            agent.transfer(write, tag)
            agent.wait_notifs(tag, timeout=STEP_SECONDS, exact=True)
        agent.wait_all([*self.reduces, *self.gathers], timeout=STEP_SECONDS)

    def renew(self) -> None:
        self.input[:] = vector(self.rank, 1, len(self.input))

    def compare(self) -> bool:
        return bool((self.result == total(self.ranks, 1, len(self.input))).all())

    def release(self) -> None:
        for write in (*self.reduces, *self.gathers):
            self.agent.release_xfer_handle(write)
        for region in self.regions:
            self.agent.deregister_memory(region)


def main() -> int:
    parser = make_parser("all-reduce in a ring", "64KB,1MB,16MB", 100, operations=())
    add_team(parser, ranks=4, most=8)
    add_network(parser)
    options = parser.parse_args()
    check_sizes(options.buffer_sizes, options.ranks)
    team = run_team(options, Ring, vmm=options.enable_vmm)
    if isinstance(team, int):
        return team
    share = 2 * (options.ranks - 1) / options.ranks

    def combine(size: int) -> Any:
        def of(answers: Sequence[Mapping[str, Any]], same: bool) -> Any:
            plain = slowest(size, answers, same)
            return slowest(size, answers, same, bus_gb_s=plain.bandwidth * share)

        return of

    head = {"Memory Type": "DRAM", "Operation": "all-reduce (ring, float32 sum)"}
    return team.run(head, combine)


if __name__ == "__main__":
    raise SystemExit(run(main))
