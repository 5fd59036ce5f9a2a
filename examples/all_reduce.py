"""All-reduce in a ring: afterwards every agent holds the sum of all agents' vectors.

All agents live in this process and take turns. The vector is cut into one part for each agent. Each
part goes round once and is added to at every stop (reduce-scatter), then the finished parts go
round (all-gather). An agent only ever writes to its right neighbour, and waits for the notification
that follows the data of its left one. benchmarks/multi_node/all_reduce.py does the same with
processes.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config, nixl_xfer_handle

AGENTS, PART = 4, 50_000  # the vector has AGENTS * PART numbers
TIMEOUT = 30


class Member:
    """One agent, its vector, and where the left neighbour writes."""

    def __init__(self, stack: ExitStack, index: int) -> None:
        config = nixl_agent_config(backends=["UCX"])
        self.agent = stack.enter_context(nixl_agent(f"member_{index}", config))
        self.index = index
        self.parts = np.full((AGENTS, PART), index + 1.0) * np.arange(1, AGENTS + 1)[:, None]
        self.inbox = np.zeros((AGENTS - 1, PART))  # one place for each step: nobody waits for room
        self.agent.register_memory([self.parts, self.inbox])
        self.sent: list[nixl_xfer_handle] = []

    def send(self, right: Member, source: np.ndarray, place: np.ndarray, tag: str) -> None:
        near, far = self.agent.get_xfer_descs([source]), self.agent.get_xfer_descs([place])
        handle = self.agent.initialize_xfer("WRITE", near, far, right.agent.name, tag.encode())
        self.agent.transfer(handle)
        self.sent.append(handle)


def all_reduce(ring: list[Member]) -> None:
    for step in range(AGENTS - 1):
        for member in ring:
            part = (member.index - step) % AGENTS
            right = ring[(member.index + 1) % AGENTS]
            member.send(right, member.parts[part], right.inbox[step], f"reduce {step}")
        for member in ring:
            member.agent.wait_notifs(f"reduce {step}", timeout=TIMEOUT)
            member.parts[(member.index - step - 1) % AGENTS] += member.inbox[step]
    for step in range(AGENTS - 1):
        for member in ring:
            part = (member.index + 1 - step) % AGENTS  # complete, and written where it belongs
            right = ring[(member.index + 1) % AGENTS]
            member.send(right, member.parts[part], right.parts[part], f"gather {step}")
        for member in ring:
            member.agent.wait_notifs(f"gather {step}", timeout=TIMEOUT)
    for member in ring:
        member.agent.wait_all(member.sent, timeout=TIMEOUT)


def main() -> int:
    with ExitStack() as stack:
        ring = [Member(stack, index) for index in range(AGENTS)]
        for member in ring:
            right = ring[(member.index + 1) % AGENTS]
            member.agent.add_remote_agent(right.agent.get_agent_metadata())
        all_reduce(ring)
        wanted = sum(range(1, AGENTS + 1)) * np.arange(1, AGENTS + 1)[:, None]
        correct = [bool((member.parts == wanted).all()) for member in ring]
        print(f"sum of {AGENTS} vectors of {AGENTS * PART} numbers at each agent: {correct}")
        return 0 if all(correct) else 1


if __name__ == "__main__":
    sys.exit(main())
