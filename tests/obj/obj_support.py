"""What the tests of the OBJ backend share: parameters, moving bytes between memory and keys."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

import nixl
import numpy as np
from weed import ACCESS, BUCKET, SECRET

_numbers = itertools.count(1)


def parameters(endpoint: str, **more: str) -> dict[str, str]:
    given = {
        "endpoint_override": endpoint,
        "region": "us-east-1",
        "bucket": BUCKET,
        "access_key": ACCESS,
        "secret_key": SECRET,
        "retry_delay": "10ms",
    }
    return {**given, **more}


class Objects:
    """An agent with the OBJ backend, and memory to and from keys."""

    def __init__(self, endpoint: str, **more: str) -> None:
        name = f"obj-{os.getpid()}-{next(_numbers)}"
        self.agent = nixl.nixl_agent(name, nixl.nixl_agent_config(backends=[]))
        try:
            self.agent.create_backend("OBJ", parameters(endpoint, **more))
        except Exception:
            self.agent.close()
            raise

    def close(self) -> None:
        self.agent.close()

    @contextlib.contextmanager
    def transfer(self, op: str, memory: np.ndarray, pieces: list[tuple]) -> Iterator:
        """`pieces`: (key, offset, size, place in memory)."""
        base = memory.ctypes.data
        ids = {key: number for number, key in enumerate(dict.fromkeys(p[0] for p in pieces), 1)}
        ends = {key: max(p[1] + p[2] for p in pieces if p[0] == key) for key in ids}
        regs = [(0, ends[key], number, key) for key, number in ids.items()]
        with (
            self.agent.register_memory([(base, memory.nbytes, 0, "")], "DRAM"),
            self.agent.register_memory(regs, "OBJ"),
        ):
            local = self.agent.get_xfer_descs([(base + p[3], p[2], 0) for p in pieces], "DRAM")
            remote = self.agent.get_xfer_descs([(p[1], p[2], ids[p[0]]) for p in pieces], "OBJ")
            handle = self.agent.initialize_xfer(op, local, remote, self.agent.name)
            try:
                yield handle
            finally:
                handle.release()

    def run(self, op: str, memory: np.ndarray, pieces: list[tuple], timeout: float = 60) -> None:
        with self.transfer(op, memory, pieces) as handle:
            self.agent.transfer(handle)
            assert handle.wait(timeout) == "DONE"

    def put(self, key: str, data: bytes) -> None:
        self.run("WRITE", np.frombuffer(data, np.uint8).copy(), [(key, 0, len(data), 0)])

    def get(self, key: str, size: int, offset: int = 0) -> bytes:
        memory = np.full(size, 0xEE, np.uint8)
        self.run("READ", memory, [(key, offset, size, 0)])
        return memory.tobytes()

    def query(self, *keys: str) -> list[dict[str, str] | None]:
        return self.agent.query_memory([(0, 0, i, key) for i, key in enumerate(keys)], "OBJ", "OBJ")


def pattern(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()
