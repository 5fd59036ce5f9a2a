"""Two agents in two processes: one offers memory, the other writes into it and reads from it.

What travels between them ahead of the first transfer is bytes: the target's metadata and where its
memory is. Here a pipe carries them; a socket, a file or a key-value store would do as well.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.connection import Connection

import nixl
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

COUNT = 1 << 20


def target(pipe: Connection) -> None:
    """The process whose memory is used; it takes no part in the transfers."""
    with nixl_agent("target", nixl_agent_config(backends=["UCX"])) as agent:
        numbers = nixl.alloc_tensor(COUNT, "int64")
        registered = agent.register_memory(numbers)
        descriptors = agent.get_serialized_descs(registered.trim())
        pipe.send((agent.get_agent_metadata(), descriptors))
        ((sender, message),) = agent.wait_notifs("written", timeout=60)
        print(f"target: {message.decode()} by {sender}, sum {numbers.sum()}")
        numbers *= 2
        agent.send_notif(sender, "doubled")  # nobody told us of the sender but its own message
        pipe.recv()  # stays until the other side has read


def initiator(pipe: Connection) -> int:
    with nixl_agent("initiator", nixl_agent_config(backends=["UCX"])) as agent:
        numbers = nixl.alloc_tensor(COUNT, "int64")
        numbers[:] = np.arange(COUNT)
        agent.register_memory(numbers)
        metadata, descriptors = pipe.recv()
        peer = agent.add_remote_agent(metadata)
        local, remote = agent.get_xfer_descs(numbers), agent.deserialize_descs(descriptors)

        write = agent.initialize_xfer("WRITE", local, remote, peer, b"written")
        agent.transfer(write)
        write.wait(timeout=60)
        agent.wait_notifs("doubled", timeout=60)
        read = agent.initialize_xfer("READ", local, remote, peer)
        agent.transfer(read)
        read.wait(timeout=60)
        pipe.send("done")
        print(f"initiator: read back over lane {agent.explain(read)['lane']}")
        return 0 if (numbers == 2 * np.arange(COUNT)).all() else 1


def main() -> int:
    # A fresh interpreter, not a fork: agents do not survive one.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    status = initiator(ours)
    process.join(30)
    return status or int(process.exitcode != 0)


if __name__ == "__main__":
    sys.exit(main())
