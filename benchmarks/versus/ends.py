"""One end of a transfer between two processes, whoever moves it: ours and the published package by
the same interface, Mooncake's transfer engine over TCP.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from rows_base import finish

# Mooncake 0.3.13 takes 1,024 requests at a time; having refused more it fails what follows.
MOONCAKE_BATCH = 512


Backend = tuple[str, dict[str, str]]  # its name and parameters
UCX: Backend = ("UCX", {})


def make_agent(side: str, name: str, silent_for: float = 3600, backend: Backend = UCX) -> Any:
    """Whoever is not measured is stopped, which must not look like a peer that is silent."""
    from nixl._api import nixl_agent, nixl_agent_config

    more = {"peer_timeout": silent_for} if side == "ours" else {}
    kind, parameters = backend
    agent = nixl_agent(name, nixl_agent_config(backends=[] if parameters else [kind], **more))
    if parameters:
        agent.create_backend(kind, parameters)
    return agent


class NixlEnd:
    """An agent with one piece of memory."""

    def __init__(
        self, side: str, name: str, memory: Any, silent_for: float = 3600, backend: Backend = UCX
    ) -> None:
        self.agent = make_agent(side, name, silent_for, backend)
        self.memory = memory
        self.agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")

    def invitation(self) -> dict[str, Any]:
        return {
            "metadata": base64.b64encode(self.agent.get_agent_metadata()).decode(),
            "address": self.memory.ctypes.data,
        }

    def set_metadata(self, invitation: dict[str, Any]) -> None:
        name = self.agent.add_remote_agent(base64.b64decode(invitation["metadata"]))
        self.other = name.decode() if isinstance(name, bytes) else name

    def prepare(self, operation: str, near: Any, far: Any, size: int) -> Any:
        """Blocks of one size at the addresses of two arrays of uint64."""
        if len(near) == 1:
            here = self.agent.get_xfer_descs([(int(near[0]), size, 0)], "DRAM")
            there = self.agent.get_xfer_descs([(int(far[0]), size, 0)], "DRAM")
            return self.agent.initialize_xfer(operation, here, there, self.other)
        import numpy as np

        sides = []
        for name, places in (("", near), (self.other, far)):
            rows = np.zeros((len(places), 3), dtype=np.uint64)
            rows[:, 0], rows[:, 1] = places, size
            sides.append(self.agent.prep_xfer_dlist(name, rows, "DRAM"))
        order = np.arange(len(near), dtype=np.int32)
        return self.agent.make_prepped_xfer(operation, sides[0], order, sides[1], order)

    def move(self, handle: Any) -> None:
        """Posts, and polls as the established examples do."""
        finish(self.agent, handle, self.agent.transfer(handle))

    def path(self, handle: Any) -> str:
        about = self.agent.explain(handle)
        return f"{about['lane']}, {about['device']}" if about["device"] else str(about["lane"])


class MooncakeEnd:
    """Mooncake's engine; its calls return when the bytes are there."""

    def __init__(self, memory: Any, address: str) -> None:
        from mooncake.engine import TransferEngine

        self.engine, self.memory, self.host = TransferEngine(), memory, address
        if self.engine.initialize(address, "P2PHANDSHAKE", "tcp", ""):
            raise RuntimeError("Mooncake's engine does not start")
        if self.engine.register_memory(memory.ctypes.data, memory.nbytes):
            raise RuntimeError("Mooncake does not register the memory")

    def invitation(self) -> dict[str, Any]:
        name = f"{self.host}:{self.engine.get_rpc_port()}"
        return {"metadata": name, "address": self.memory.ctypes.data}

    def set_metadata(self, invitation: dict[str, Any]) -> None:
        self.other = invitation["metadata"]

    def prepare(self, operation: str, near: Any, far: Any, size: int) -> Any:
        kind = operation.lower()
        if len(near) == 1:
            call = getattr(self.engine, f"transfer_sync_{kind}")
            return call, [(self.other, int(near[0]), int(far[0]), size)]
        call = getattr(self.engine, f"batch_transfer_sync_{kind}")
        steps = []
        for at in range(0, len(near), MOONCAKE_BATCH):
            some = slice(at, at + MOONCAKE_BATCH)
            here, there = near[some].tolist(), far[some].tolist()
            steps.append((self.other, here, there, [size] * len(here)))
        return call, steps

    def move(self, handle: Any) -> None:
        call, steps = handle
        for step in steps:
            if call(*step):
                raise RuntimeError("Mooncake's transfer failed")


def make_end(
    side: str,
    name: str,
    memory: Any,
    address: str,
    silent_for: float = 3600,
    backend: Backend = UCX,
) -> Any:
    if side == "mooncake":
        return MooncakeEnd(memory, address)
    return NixlEnd(side, name, memory, silent_for, backend)


def as_line(message: dict[str, Any]) -> str:
    return json.dumps(message) + "\n"
