"""A process of the tests of GPUNETIO: an agent with GPU memory of the stand-ins, as far.py
is one with memory of the host. `array` is the GPU's memory as the host sees it."""

from __future__ import annotations

import ctypes
import os

import nixl
import numpy as np
from obey import obey

GPU_BIT = 1 << 62


def standin() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ["NIXL_DOCA_LIBRARY"])
    library.docaStandinFigure.restype = ctypes.c_uint64
    return library


def make(name, size, gpu, options):
    memory = nixl.alloc(size, device=f"cuda:{gpu}")
    there = (ctypes.c_ubyte * size).from_address(memory.address & ~GPU_BIT)
    array = np.frombuffer(there, np.uint8)
    array[:] = 0
    agent = nixl.nixl_agent(name, nixl.nixl_agent_config(**options))
    registered = agent.register_memory([(memory.address, size, gpu, "")], "VRAM")

    def prepare(operation, peer, base, peer_gpu, pieces, notif=b""):
        here = [(memory.address + own, length, gpu) for own, _, length in pieces]
        far = [(base + other, length, peer_gpu) for _, other, length in pieces]
        descs = agent.get_xfer_descs
        return agent.initialize_xfer(
            operation, descs(here, "VRAM"), descs(far, "VRAM"), peer, notif
        )

    def outcome(handle, timeout=60.0):
        try:
            return handle.wait(timeout)
        except nixl.nixlError as error:
            return f"{type(error).__name__} {error}"

    return agent, memory.address, {**globals(), **locals()}


obey(make)
