"""Both ends of the rows of LIBFABRIC: an agent with lane fabric, one with lane stream, and the
plain loop of yardstick_fabric.c, over the same memory.

As a program it is the far end: fabric_ends.py PROVIDER DEVICE BYTES. It answers each line of JSON
on standard input with one on standard output, and polls for one of the three between them.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import select
import sys
from typing import Any

from ends import as_line
from rows_base import finish

SILENT_FOR = 3600  # who is not measured is stopped, which must not look like a silent peer
FAR_KEY, NEAR_KEY = 0x6E69786C, 0x6E69786D


def library() -> str:
    return os.environ.get("NIXL_LIBFABRIC_LIBRARY") or "libfabric.so.1"


def full_name(provider: str) -> str:
    return {"tcp": "tcp;ofi_rxm", "verbs": "verbs;ofi_rxm"}.get(provider, provider)


class Plain:
    """The loop without NIXL."""

    def __init__(self, provider: str, device: str, memory: Any, key: int) -> None:
        self.calls = ctypes.CDLL(os.environ["NIXL_YARDSTICK"])
        place, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64
        self.calls.fabric_open.argtypes = [*[ctypes.c_char_p] * 3, place, size, number]
        self.calls.fabric_open.restype = place
        where = (memory.ctypes.data, memory.nbytes, key)
        names = (library(), full_name(provider), device)
        self.own = self.calls.fabric_open(*[name.encode() for name in names], *where)
        if not self.own:
            raise RuntimeError(f"libfabric gives no endpoint of {provider}, or has no headers here")
        self.calls.fabric_name.argtypes = [place, place, size]
        self.calls.fabric_name.restype = ctypes.c_long
        self.calls.fabric_key.argtypes = self.calls.fabric_base.argtypes = [place]
        self.calls.fabric_key.restype = self.calls.fabric_base.restype = number
        self.calls.fabric_connect.argtypes = [place, ctypes.c_char_p, number, number]
        self.calls.fabric_serve.argtypes = [place, ctypes.c_double]
        self.calls.fabric_move.argtypes = [place, ctypes.c_int, size, size]
        self.calls.fabric_move.restype = ctypes.c_double

    def invitation(self) -> list[Any]:
        name = ctypes.create_string_buffer(256)
        length = self.calls.fabric_name(self.own, name, 256)
        words = self.calls.fabric_base(self.own), self.calls.fabric_key(self.own)
        return [base64.b64encode(name.raw[:length]).decode(), *words]

    def connect(self, invitation: list[Any]) -> None:
        name, base, key = invitation
        if self.calls.fabric_connect(self.own, base64.b64decode(name) + b"\0", base, key):
            raise RuntimeError("libfabric does not take the far address")

    def serve(self) -> None:
        self.calls.fabric_serve(self.own, 0.001)

    def move(self, read: bool, size: int, piece: int) -> float:
        seconds = self.calls.fabric_move(self.own, read, size, piece)
        if seconds < 0:
            raise RuntimeError(f"the plain loop: {os.strerror(int(-seconds))}")
        return float(seconds)


class Ends:
    """What each process has."""

    def __init__(self, name: str, provider: str, device: str, nbytes: int, key: int) -> None:
        import numpy as np
        from nixl._api import nixl_agent, nixl_agent_config

        self.memory = np.random.default_rng(key).integers(0, 256, nbytes, dtype=np.uint8)
        params = {"provider": provider} | ({"device_list": device} if device else {})
        kinds = {
            "fabric": {"backends": ["LIBFABRIC"], "backend_params": {"LIBFABRIC": params}},
            "stream": {"backends": ["UCX"]},
        }
        self.agents = {}
        for lane, options in kinds.items():
            config = nixl_agent_config(lanes=lane, peer_timeout=SILENT_FOR, **options)
            agent = nixl_agent(f"{name}-{lane}", config)
            agent.register_memory([(self.memory.ctypes.data, nbytes, 0, "")], "DRAM")
            self.agents[lane] = agent
        self.plain = Plain(provider, device, self.memory, key)

    def invitation(self) -> dict[str, Any]:
        blobs = {lane: agent.get_agent_metadata() for lane, agent in self.agents.items()}
        return {
            "metadata": {lane: base64.b64encode(blob).decode() for lane, blob in blobs.items()},
            "address": self.memory.ctypes.data,
            "plain": self.plain.invitation(),
        }

    def know(self, invitation: dict[str, Any]) -> None:
        self.address = invitation["address"]
        self.others = {}
        for lane, blob in invitation["metadata"].items():
            name = self.agents[lane].add_remote_agent(base64.b64decode(blob))
            self.others[lane] = name.decode() if isinstance(name, bytes) else name

    def prepare(self, lane: str, operation: str, size: int) -> Any:
        agent = self.agents[lane]
        here = agent.get_xfer_descs([(self.memory.ctypes.data, size, 0)], "DRAM")
        there = agent.get_xfer_descs([(self.address, size, 0)], "DRAM")
        return agent.initialize_xfer(operation, here, there, self.others[lane])

    def move(self, lane: str, handle: Any) -> None:
        finish(self.agents[lane], handle, self.agents[lane].transfer(handle))


def main() -> int:
    import numpy as np

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    provider, device, nbytes = sys.argv[1:4]
    ends = Ends("far", provider, device, int(nbytes), FAR_KEY)
    print(as_line(ends.invitation() | {"pid": os.getpid()}), file=answers, end="", flush=True)
    lines = os.fdopen(0, "rb", buffering=0)
    polled = "fabric"
    while True:
        if polled == "plain":
            ends.plain.serve()
        else:
            for _ in range(1000):
                ends.agents[polled].get_new_notifs()
        if not select.select([lines], [], [], 0)[0]:
            continue
        line = lines.readline()
        if not line:
            return 0
        message, answer = json.loads(line), {}
        if message["do"] == "know":
            ends.know(message)
        elif message["do"] == "poll":
            polled = message["what"]
        elif message["do"] == "sum":
            answer["sum"] = int(ends.memory.view(np.uint64).sum())
        elif message["do"] == "stay":
            os.sched_setaffinity(0, [message["core"]])  # this thread
        print(as_line(answer), file=answers, end="", flush=True)


if __name__ == "__main__":
    os._exit(main())
