"""The other process of a fault test: an agent with memory. Started by faults_support.Far."""

from __future__ import annotations

import os  # noqa: F401: tests' orders use it
import threading

import nixl
import numpy as np
from obey import obey


def when_touched(array, what, every: int = 4096) -> None:
    """Calls `what` in a thread as soon as one of these bytes is another than now."""
    before = array[::every].copy()

    def watch() -> None:
        while (array[::every] == before).all():
            pass
        what()

    threading.Thread(target=watch, daemon=True).start()


def make(name, size, shareable, options):
    array = np.frombuffer(nixl.alloc(size), np.uint8) if shareable else np.zeros(size, np.uint8)
    agent = nixl.nixl_agent(name, nixl.nixl_agent_config(**options))
    registered = agent.register_memory(array)
    names = {**globals(), "array": array, "agent": agent, "registered": registered}
    return agent, array.ctypes.data, names


obey(make)
