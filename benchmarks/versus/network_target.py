"""The far end of the rows between two processes: memory that the row writes to and reads from.

Started by rows_network.py under the same interpreter, with a JSON object: side, name, memory
("private" or "shared"), bytes, address, polls, silent_for, backend. Answers each line on standard
input with one on standard output, and ends with its input. With `polls` it looks for notifications
all the time and sends each back; otherwise it sleeps, as the target of one-sided transfers may.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import sys
from typing import Any

import numpy as np
from ends import as_line, make_end


def make_memory(side: str, kind: str, nbytes: int) -> Any:
    """Private memory, or memory of a file in memory: ours by nixl.alloc, which peers may map."""
    if kind == "private":
        return np.zeros(nbytes, dtype=np.uint8)
    if side == "ours":
        import nixl

        return np.frombuffer(nixl.alloc(nbytes), dtype=np.uint8)
    file = os.memfd_create("versus")
    os.ftruncate(file, nbytes)
    return np.frombuffer(mmap.mmap(file, nbytes, mmap.MAP_SHARED), dtype=np.uint8)


def answer_of(end: Any, message: dict[str, Any]) -> dict[str, Any]:
    if message["do"] == "know":
        end.set_metadata(message)
        return {"known": True}
    if message["do"] == "sum":
        return {"sum": int(end.memory.view(np.uint64).sum())}
    if message["do"] == "stay":
        os.sched_setaffinity(0, [message["core"]])  # this thread
        return {"stays": True}
    raise ValueError(f"no such request: {message}")


def send_back(agent: Any) -> None:
    for name, messages in agent.get_new_notifs().items():
        for message in messages:
            agent.send_notif(name, message)


def main() -> int:
    words = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    memory = make_memory(words["side"], words["memory"], words["bytes"])
    memory[:] = 0
    silent = words["silent_for"]
    backend = words["backend"]
    end = make_end(words["side"], words["name"], memory, words["address"], silent, backend)
    print(as_line(end.invitation() | {"pid": os.getpid()}), file=answers, end="", flush=True)
    lines = os.fdopen(0, "rb", buffering=0)
    polls = 0
    while True:
        if words["polls"]:
            send_back(end.agent)
            polls += 1
            if polls % 1000 or not select.select([lines], [], [], 0)[0]:
                continue
        line = lines.readline()
        if not line:
            return 0
        print(as_line(answer_of(end, json.loads(line))), file=answers, end="", flush=True)


if __name__ == "__main__":
    os._exit(main())
