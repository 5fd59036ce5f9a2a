"""Communication of many agents: workers to node leaders to a root, and the guide's other patterns.

    python benchmarks/multi_node/hierarchical.py --ranks 6 --nodes 2
    python benchmarks/multi_node/hierarchical.py --pattern many_to_one --ranks 4

--pattern tree (the default): the workers of each node write their vectors to the node's leader,
who adds them up and writes the sum to the root; the root adds up the leaders' sums and writes the
result to them, and they to their workers. Every write tells its reader by notification. Afterwards
all agents hold the sum, of which every number is compared. A node is a host, or with --nodes a
share of the ranks.

pairwise, many_to_one, one_to_many, tp (every agent with every other): all initiators at once, each
posts to all of its targets and then waits for all; --operation READ pulls in place of pushing. The
bytes of the last step are new ones and are compared. Figures are those of one initiator, All GB/s
of all of them.

On several hosts as all_reduce.py.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import run  # noqa: E402
from utils.config import at_least, make_parser  # noqa: E402
from utils.errors import Refused  # noqa: E402
from utils.memory import make_memory, random_bytes  # noqa: E402
from utils.metrics import Result  # noqa: E402
from utils.numbers import check_sizes, total, vector  # noqa: E402
from utils.rendezvous import add_network  # noqa: E402
from utils.team import STEP_SECONDS, Rank, add_team, each, run_team, slowest  # noqa: E402

PATTERNS = ("tree", "pairwise", "many_to_one", "one_to_many", "tp")


def targets_of(pattern: str, rank: int, ranks: int) -> list[int]:
    """To whom a rank writes, or from whom it reads; tp is every rank with every other."""
    if pattern == "pairwise":
        return [rank + 1] if rank % 2 == 0 and rank + 1 < ranks else []
    if pattern == "many_to_one":
        return [0] if rank else []
    if pattern == "one_to_many":
        return [] if rank else list(range(1, ranks))
    return [other for other in range(ranks) if other != rank]


def nodes_of(hosts: Sequence[str], nodes: int) -> list[list[int]]:
    """The ranks of each node, its leader first; nodes 0: a node is a host, or a half of the only
    one."""
    ranks = len(hosts)
    if not nodes and len(set(hosts)) > 1:
        return [[r for r in range(ranks) if hosts[r] == host] for host in dict.fromkeys(hosts)]
    nodes = nodes or min(2, ranks)
    cuts = [ranks * node // nodes for node in range(nodes + 1)]
    return [list(range(a, b)) for a, b in zip(cuts, cuts[1:], strict=False)]


class Tree(Rank):
    def offer(self, size: int) -> dict[str, Any]:
        groups = nodes_of(self.setting["hosts"], self.setting["nodes"])
        own = next(group for group in groups if self.rank in group)
        self.leader, self.root = own[0], groups[0][0]
        # Whose vectors come here: the workers', and at the root the other leaders' too.
        self.below = own[1:] if self.rank == self.leader else []
        if self.rank == self.root:
            self.below = self.below + [group[0] for group in groups[1:]]
        self.above = self.leader if self.rank != self.leader else self.root
        self.size, self.round, vmm = size, 0, self.setting["vmm"]
        rows = size * max(1, len(self.below))
        self.memories = [make_memory("DRAM", bytes_, vmm=vmm) for bytes_ in (size, size, rows)]
        self.regions = [memory.register(self.agent) for memory in self.memories]
        self.input, self.result, inbox = (m.array.view("f4") for m in self.memories)
        self.inbox = inbox.reshape(-1, size // 4)
        self.input[:] = vector(self.rank, 0, size // 4)
        slots = {
            str(rank): self.memories[2].address + size * i for i, rank in enumerate(self.below)
        }
        return {"result": self.memories[1].address, "inbox": slots}

    def connect(self, offers: Sequence[Mapping[str, Any]]) -> None:
        self.up = None
        if self.rank != self.root:
            # A leader gives the sum of its node, which stands in its result until the root's comes.
            source = self.memories[1] if self.below else self.memories[0]
            there = offers[self.above]
            self.up = self._write(source.address, there["inbox"][str(self.rank)], there["agent"])
        result = self.memories[1].address
        self.down = [
            self._write(result, offers[rank]["result"], offers[rank]["agent"])
            for rank in self.below
        ]

    def _write(self, here: int, there: int, peer: str) -> Any:
        local = self.agent.get_xfer_descs([(here, self.size, 0)], "DRAM")
        remote = self.agent.get_xfer_descs([(there, self.size, 0)], "DRAM")
        return self.agent.initialize_xfer("WRITE", local, remote, peer)

    def step(self) -> None:
        agent = self.agent
        self.round += 1
        up, down = f"up {self.round}", f"down {self.round}"
        if self.below:
            agent.wait_notifs(up, len(self.below), timeout=STEP_SECONDS, exact=True)
            self.inbox.sum(axis=0, out=self.result)
            self.result += self.input
        if self.up is not None:
            agent.transfer(self.up, up)
            self.up.wait(timeout=STEP_SECONDS)
            agent.wait_notifs(down, timeout=STEP_SECONDS, exact=True)
        for write in self.down:
            agent.transfer(write, down)
        if self.down:
            agent.wait_all(self.down, timeout=STEP_SECONDS)

    def renew(self) -> None:
        self.input[:] = vector(self.rank, 1, len(self.input))

    def compare(self) -> bool:
        return bool((self.result == total(self.ranks, 1, len(self.input))).all())

    def release(self) -> None:
        for write in [*self.down, *([self.up] if self.up else [])]:
            self.agent.release_xfer_handle(write)
        for region in self.regions:
            self.agent.deregister_memory(region)


class Pattern(Rank):
    """WRITE: into its own row of each target. READ: each target's bytes into the target's row
    here."""

    def offer(self, size: int) -> dict[str, Any]:
        self.size, self.writes = size, self.setting["operation"] == "WRITE"
        vmm = self.setting["vmm"]
        self.mine = make_memory("DRAM", size, vmm=vmm)
        self.rows = make_memory("DRAM", size * self.ranks, vmm=vmm)
        self.regions = [memory.register(self.agent) for memory in (self.mine, self.rows)]
        self.mine.fill(self.rank)
        return {"mine": self.mine.address, "rows": self.rows.address}

    def connect(self, offers: Sequence[Mapping[str, Any]]) -> None:
        agent, size, pattern = self.agent, self.size, self.setting["pattern"]
        self.handles = []
        for target in targets_of(pattern, self.rank, self.ranks):
            there = offers[target]
            row = self.rows.address + target * size
            near = self.mine.address if self.writes else row
            far = there["rows"] + self.rank * size if self.writes else there["mine"]
            local = agent.get_xfer_descs([(near, size, 0)], "DRAM")
            remote = agent.get_xfer_descs([(far, size, 0)], "DRAM")
            operation = self.setting["operation"]
            self.handles.append(agent.initialize_xfer(operation, local, remote, there["agent"]))
        edges = [targets_of(pattern, rank, self.ranks) for rank in range(self.ranks)]
        # Whose bytes end up here.
        self.sources = [r for r in range(self.ranks) if self.rank in edges[r]]
        if not self.writes:
            self.sources = edges[self.rank]

    def active(self) -> bool:
        return bool(self.handles)

    def step(self) -> None:
        for handle in self.handles:
            self.agent.transfer(handle)
        if self.handles:
            self.agent.wait_all(self.handles, timeout=STEP_SECONDS)

    def renew(self) -> None:
        self.mine.fill(self.rank + self.ranks)

    def compare(self) -> bool:
        size = self.size
        rows = self.rows.array.reshape(self.ranks, size)
        return all(
            bool((rows[rank] == random_bytes(rank + self.ranks, size)).all())
            for rank in self.sources
        )

    def release(self) -> None:
        for handle in self.handles:
            self.agent.release_xfer_handle(handle)
        for region in self.regions:
            self.agent.deregister_memory(region)


def combine_pattern(pattern: str, size: int) -> Any:
    def of(answers: Sequence[Mapping[str, Any]], same: bool) -> Result:
        # A step moves bytes between one rank and all of its targets.
        ranks = len(answers)
        widths = [len(targets_of(pattern, rank, ranks)) for rank in range(ranks)]
        parts = zip(answers, widths, strict=True)
        rates = [
            size * width * len(one["seconds"]) / sum(one["seconds"]) / 1e9
            for one, width in parts
            if one["seconds"]
        ]
        return each(size * max(widths), answers, same, total_gb_s=sum(rates))

    return of


def combine_tree(size: int) -> Any:
    return lambda answers, same: slowest(size, answers, same)


def main() -> int:
    parser = make_parser("patterns among several agents", "64KB,1MB", 100)
    parser.add_argument("--pattern", choices=PATTERNS, default="tree")
    parser.add_argument("--nodes", type=at_least(0), default=0,
                        help="of tree: default one a host, or 2 on a single one")  # fmt: skip
    add_team(parser, ranks=4, most=1000)
    add_network(parser)
    options = parser.parse_args()
    tree = options.pattern == "tree"
    if options.batch_size > 1:
        raise Refused("--batch_size: these programs move one descriptor in each transfer")
    if tree:
        check_sizes(options.buffer_sizes)
        if options.operation == "READ":
            raise Refused("--operation READ: the tree is made of WRITEs; other patterns can")
    if options.nodes > options.ranks:
        raise Refused(f"--nodes {options.nodes} is more than --ranks {options.ranks}")
    setting = {"pattern": options.pattern, "nodes": options.nodes, "vmm": options.enable_vmm}
    team = run_team(options, Tree if tree else Pattern, **setting)
    if isinstance(team, int):
        return team
    if tree:
        sizes = [len(group) for group in nodes_of(team.hosts, options.nodes)]
        shape = f"tree, nodes of {' + '.join(map(str, sizes))} ranks"
        return team.run({"Pattern": shape, "Operation": "WRITE (float32 sum)"}, combine_tree)
    head = {"Pattern": f"{options.pattern}, per initiator", "Operation": options.operation}
    return team.run(head, lambda size: combine_pattern(options.pattern, size))


if __name__ == "__main__":
    raise SystemExit(run(main))
