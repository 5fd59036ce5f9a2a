"""One agent writes the same weights to many others: the guide's one-to-many pattern.

All agents live in this process. The source is registered and prepared once; each target is a
transfer of its own, all in progress together.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

TARGETS = 4


def main() -> int:
    config = nixl_agent_config(backends=["UCX"])
    with ExitStack() as stack:
        source = stack.enter_context(nixl_agent("source", config))
        weights = np.random.default_rng(5).standard_normal(2_000_000)
        source.register_memory(weights)
        local = source.prep_xfer_dlist("", weights)

        copies, agents, handles = [], [], []
        for number in range(TARGETS):
            agent = stack.enter_context(nixl_agent(f"target_{number}", config))
            copy = np.zeros_like(weights)
            agent.register_memory(copy)
            name = source.add_remote_agent(agent.get_agent_metadata())
            remote = source.prep_xfer_dlist(name, source.get_xfer_descs(copy))
            handle = source.make_prepped_xfer("WRITE", local, [0], remote, [0], b"weights")
            source.transfer(handle)
            copies.append(copy)
            agents.append(agent)
            handles.append(handle)

        # Whoever ends first is looked at first.
        waiting = list(handles)
        while waiting:
            ended = source.wait_any(waiting, timeout=30)
            waiting.remove(ended)
            figures = source.get_xfer_telemetry(ended)
            number = handles.index(ended)
            print(f"target_{number}: {figures.totalBytes} bytes in {figures.xferDuration} us")
        for agent in agents:
            agent.wait_notifs(b"weights", timeout=30)
        return 0 if all((copy == weights).all() for copy in copies) else 1


if __name__ == "__main__":
    sys.exit(main())
