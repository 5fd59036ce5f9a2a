"""The other process of the tests: an agent with memory of a GPU (or of the host), told what to do
by lines of JSON."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import sys

import gpu_support
import nixl
from nixl._api import nixl_agent, nixl_agent_config


class Served:
    """One agent and its memory."""

    def __init__(self, kind: str, size: int) -> None:
        self.agent = nixl_agent(f"far-{os.getpid()}", nixl_agent_config(backends=["UCX"]))
        self.kind, self.size = kind, size
        if kind == "alloc":
            self.memory = nixl.alloc(size, device="cuda:0")
            self.address = self.memory.address
        elif kind == "host":
            self.memory = ctypes.create_string_buffer(size)
            self.address = ctypes.addressof(self.memory)
        else:
            self.memory = gpu_support.GpuMemory(size)
            self.address = self.memory.address
        self.register()

    def register(self) -> None:
        kind = "DRAM" if self.kind == "host" else "VRAM"
        self.registered = self.agent.register_memory([(self.address, self.size, 0, "")], kind)

    def do(self, command: str, *arguments) -> object:
        if command == "metadata":
            return base64.b64encode(self.agent.get_agent_metadata()).decode()
        if command == "set":
            data = gpu_support.pattern(self.size, arguments[0])
            source = ctypes.create_string_buffer(data, len(data))
            gpu_support.copy(self.address, ctypes.addressof(source), self.size)
        if command == "hash":
            start, size = arguments
            out = ctypes.create_string_buffer(size)
            gpu_support.copy(ctypes.addressof(out), self.address + start, size)
            return hashlib.sha256(out.raw).hexdigest()
        if command == "deregister":
            self.agent.deregister_memory(self.registered)
        if command == "notifs":
            notifs = self.agent.get_new_notifs()
            return [message.decode() for all in notifs.values() for message in all]
        return None


def main() -> None:
    served = Served(sys.argv[1], int(sys.argv[2]))
    print(json.dumps([served.agent.name, served.address]), flush=True)
    for line in sys.stdin:
        print(json.dumps(served.do(*json.loads(line))), flush=True)
    served.agent.close()


if __name__ == "__main__":
    main()
