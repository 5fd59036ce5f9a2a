"""Many workers write into the memory of one aggregator: the guide's many-to-one pattern.

All agents live in this process. Each worker owns one row of the aggregator's buffer and announces
itself by a notification; the aggregator waits until all have come, in any order.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

WORKERS, VALUES = 4, 250_000


def main() -> int:
    config = nixl_agent_config(backends=["UCX"])
    with ExitStack() as stack:
        aggregator = stack.enter_context(nixl_agent("aggregator", config))
        rows = np.zeros((WORKERS, VALUES), np.float32)
        aggregator.register_memory(rows)
        metadata = aggregator.get_agent_metadata()

        worker_agents, worker_data, handles = [], [], []
        for worker_id in range(WORKERS):
            agent = stack.enter_context(nixl_agent(f"worker_{worker_id}", config))
            data = np.full(VALUES, worker_id + 1, np.float32)
            agent.register_memory(data)
            agent.add_remote_agent(metadata)
            worker_agents.append(agent)
            worker_data.append(data)

        for worker_id, agent in enumerate(worker_agents):
            handle = agent.initialize_xfer(
                "WRITE",
                agent.get_xfer_descs(worker_data[worker_id]),
                agent.get_xfer_descs(rows[worker_id]),
                "aggregator",
                f"worker_{worker_id}".encode(),
            )
            agent.transfer(handle)
            handles.append(handle)

        arrived = aggregator.wait_notifs("worker_", count=WORKERS, timeout=30)
        for sender, message in arrived:
            print(f"{sender}: {message.decode()}")
        for handle in handles:
            handle.wait(timeout=30)
        means = rows.mean(axis=1)
        print("means:", means.tolist())
        return 0 if (rows == np.arange(1, WORKERS + 1)[:, None]).all() else 1


if __name__ == "__main__":
    sys.exit(main())
