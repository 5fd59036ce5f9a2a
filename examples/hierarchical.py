"""Sums in a hierarchy: workers write to the leader of their node, leaders to a root, and back.

All agents live in this process and take turns; a real node's worker and leader would share a host,
so that only the leaders' sums cross the network. benchmarks/multi_node/hierarchical.py does the
same with processes and hosts.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

NODES, WORKERS, VALUES = 2, 3, 100_000
TIMEOUT = 30


class Member:
    """One agent with its values; those below it write into rows of its inbox."""

    def __init__(self, stack: ExitStack, name: str, value: float, below: list[Member]) -> None:
        config = nixl_agent_config(backends=["UCX"])
        self.agent = stack.enter_context(nixl_agent(name, config))
        self.values = np.full(VALUES, float(value))
        self.inbox = np.zeros((max(1, len(below)), VALUES))
        self.agent.register_memory([self.values, self.inbox])
        self.below = below
        for member in below:  # they write up, we write down
            member.agent.add_remote_agent(self.agent.get_agent_metadata())
            self.agent.add_remote_agent(member.agent.get_agent_metadata())

    def write(self, source: np.ndarray, to: Member, place: np.ndarray, tag: bytes) -> None:
        near, far = self.agent.get_xfer_descs([source]), self.agent.get_xfer_descs([place])
        handle = self.agent.initialize_xfer("WRITE", near, far, to.agent.name, tag)
        self.agent.transfer(handle)
        handle.wait(timeout=TIMEOUT)

    def gather(self) -> None:
        """Everybody below writes its values; the sum is ours."""
        for row, member in zip(self.inbox, self.below, strict=True):
            member.write(member.values, self, row, b"up")
        self.agent.wait_notifs("up", count=len(self.below), timeout=TIMEOUT)
        self.values += self.inbox.sum(axis=0)

    def spread(self) -> None:
        for member in self.below:
            self.write(self.values, member, member.values, b"down")
            member.agent.wait_notifs("down", timeout=TIMEOUT)


def main() -> int:
    with ExitStack() as stack:
        leaders, workers = [], []
        for node in range(NODES):
            mine = [
                Member(stack, f"worker_{node}_{index}", index + 1, []) for index in range(WORKERS)
            ]
            leaders.append(Member(stack, f"leader_{node}", 10, mine))
            workers += mine
        root = Member(stack, "root", 100, leaders)

        for leader in leaders:
            leader.gather()
        root.gather()
        root.spread()
        for leader in leaders:
            leader.spread()

        wanted = 100 + NODES * (10 + sum(range(1, WORKERS + 1)))
        everybody = [root, *leaders, *workers]
        right = sum(bool((member.values == wanted).all()) for member in everybody)
        print(f"{right} of {len(everybody)} agents hold the sum, {wanted}")
        return 0 if right == len(everybody) else 1


if __name__ == "__main__":
    sys.exit(main())
