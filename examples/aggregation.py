"""Gradients of several workers are read and summed by one agent: the guide's aggregation.

All agents live in this process. Workers say by notification that their gradient is ready; the
aggregator READs it (the worker takes no part), adds it up and lets the worker go on.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

WORKERS, VALUES, STEPS = 3, 100_000, 5


def main() -> int:
    config = nixl_agent_config(backends=["UCX"])
    with ExitStack() as stack:
        aggregator = stack.enter_context(nixl_agent("aggregator", config))
        inbox = np.zeros((WORKERS, VALUES))
        aggregator.register_memory(inbox)
        workers, gradients, reads = [], [], []
        for worker_id in range(WORKERS):
            name = f"worker_{worker_id}"
            worker = stack.enter_context(nixl_agent(name, config))
            gradient = np.zeros(VALUES)
            worker.register_memory(gradient)
            # Each knows the other: one reads memory, both send notifications.
            aggregator.add_remote_agent(worker.get_agent_metadata())
            worker.add_remote_agent(aggregator.get_agent_metadata())
            reads.append(
                aggregator.initialize_xfer(
                    "READ",
                    aggregator.get_xfer_descs(inbox[worker_id]),
                    aggregator.get_xfer_descs(gradient),
                    name,
                    b"taken",
                )
            )
            workers.append(worker)
            gradients.append(gradient)

        total = np.zeros(VALUES)
        for step in range(STEPS):
            for worker_id, worker in enumerate(workers):
                gradients[worker_id][:] = (step + 1) * (worker_id + 1)
                worker.send_notif("aggregator", b"gradient")
            for worker_id in range(WORKERS):
                while not aggregator.check_remote_xfer_done(f"worker_{worker_id}", b"gradient"):
                    pass
                aggregator.transfer(reads[worker_id])  # the same transfer, posted again
            aggregator.wait_all(reads, timeout=30)
            total += inbox.sum(axis=0)
            for worker in workers:
                worker.wait_notifs(b"taken", timeout=30)  # may overwrite its gradient now

        wanted = sum(range(1, STEPS + 1)) * sum(range(1, WORKERS + 1))
        print(f"sum of {STEPS} steps of {WORKERS} workers: {total[0]:.0f}, expected {wanted}")
        return 0 if (total == wanted).all() else 1


if __name__ == "__main__":
    sys.exit(main())
