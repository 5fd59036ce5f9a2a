"""What tests of the Python package share besides fixtures: memory, a pair of agents, polling."""

from __future__ import annotations

import ctypes
import time

import nixl
from nixl._api import nixl_agent


class Memory:
    """Memory from malloc, by address, with its content as bytes."""

    def __init__(self, size: int, fill: int = 0) -> None:
        self.size = size
        self.address = nixl.malloc_passthru(size)
        self._array = (ctypes.c_ubyte * size).from_address(self.address)
        ctypes.memset(self.address, fill, size)

    def get(self, start: int = 0, size: int | None = None) -> bytes:
        stop = self.size if size is None else start + size
        return bytes(self._array[start:stop])

    def set(self, data: bytes, start: int = 0) -> None:
        self._array[start : start + len(data)] = data


class Pair:
    """Two agents that know each other, each with registered memory."""

    def __init__(self, make_agent, memory, size: int = 65536, **options) -> None:
        self.size = size
        self.near = make_agent("near", **options)
        self.far = make_agent("far", **options)
        self.near_memory = memory(size, 0x11)
        self.far_memory = memory(size, 0x22)
        self.near_reg = self.near.register_memory([(self.near_memory.address, size, 0, "")], "DRAM")
        self.far_reg = self.far.register_memory([(self.far_memory.address, size, 0, "")], "DRAM")
        self.near.add_remote_agent(self.far.get_agent_metadata())
        self.far.add_remote_agent(self.near.get_agent_metadata())

    def descs(self, *ranges: tuple[int, int]):
        """The same (offset, size) on both sides."""
        near = [(self.near_memory.address + at, size, 0) for at, size in ranges]
        far = [(self.far_memory.address + at, size, 0) for at, size in ranges]
        return self.near.get_xfer_descs(near, "DRAM"), self.near.get_xfer_descs(far, "DRAM")

    def write(self, *ranges: tuple[int, int], notif: bytes = b"", operation: str = "WRITE"):
        """A prepared transfer from near to far."""
        local, remote = self.descs(*ranges)
        return self.near.initialize_xfer(operation, local, remote, self.far.name, notif)


def finish(agent: nixl_agent, handle, seconds: float = 20) -> str:
    """Polls a transfer to its end, as clients do."""
    end = time.monotonic() + seconds
    state = agent.check_xfer_state(handle)
    while state == "PROC" and time.monotonic() < end:
        state = agent.check_xfer_state(handle)
    return state
