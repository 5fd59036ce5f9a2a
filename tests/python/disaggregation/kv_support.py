"""Ranks of small servers with caches in NumPy, whose every byte tells where it belongs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from nixl.disaggregation import conn
from nixl.disaggregation.settings import Settings

KVPoll = conn.KVPoll
PATIENCE = 60.0


class Cache:
    """K and V (or one buffer, MLA) of some layers, the heads of one rank."""

    def __init__(
        self,
        pages: int = 32,
        layers: int = 3,
        heads: int = 4,
        page_size: int = 4,
        dim: int = 8,
        mla: bool = False,
        aux_slots: int = 8,
        dtype: type = np.uint8,
    ) -> None:
        shape = (pages, page_size, dim) if mla else (pages, page_size, heads, dim)
        self.kv = [np.zeros(shape, dtype) for _ in range(layers if mla else 2 * layers)]
        self.aux = [np.zeros((aux_slots, 16), np.uint8), np.zeros((aux_slots, 64), np.uint8)]
        self.heads, self.page_size, self.layers, self.mla = heads, page_size, layers, mla

    def fill(self, seed: int) -> None:
        """By what all ranks agree on: a value for each (buffer, page, token, head, byte)."""
        random = np.random.default_rng(seed)
        for part in (*self.kv, *self.aux):
            part[...] = random.integers(1, 255, part.shape)

    def args(self, **more: Any) -> Any:
        fields = {
            "engine_rank": 0,
            "kv_data_ptrs": [part.ctypes.data for part in self.kv],
            "kv_data_lens": [part.nbytes for part in self.kv],
            "kv_item_lens": [part[0].nbytes for part in self.kv],
            "aux_data_ptrs": [part.ctypes.data for part in self.aux],
            "aux_data_lens": [part.nbytes for part in self.aux],
            "aux_item_lens": [part[0].nbytes for part in self.aux],
            "kv_head_num": self.heads,
            "page_size": self.page_size,
            "gpu_id": 0,
            "prefill_start_layer": 0,
        } | more
        args = conn.KVArgs()
        for name, value in fields.items():
            setattr(args, name, value)
        return args


def patient(**more: Any) -> Settings:
    return Settings(**({"bootstrap_timeout": PATIENCE, "waiting_timeout": PATIENCE} | more))


class Place:
    """A bootstrap server and the ranks of a test; closes them."""

    def __init__(self) -> None:
        self.server = conn.NixlKVBootstrapServer("127.0.0.1", 0)
        self.managers: list[Any] = []

    @property
    def address(self) -> str:
        return self.server.address

    def rank(
        self, mode: str, cache: Cache, rank: int = 0, settings: Any = None, **more: Any
    ) -> Any:
        sizes = {
            "tp_size": 1,
            "dp_size": 1,
            "pp_size": 1,
            "enable_dp_attention": False,
            "host": "127.0.0.1",
            "disaggregation_bootstrap_port": self.server.port,
        }
        server = conn.ServerArgs(**{k: more.pop(k, v) for k, v in sizes.items()})
        args = cache.args(engine_rank=rank, **more)
        kind = conn.DisaggregationMode[mode.upper()]
        made = conn.NixlKVManager(args, kind, server, cache.mla, settings=settings or patient())
        made.cache = cache  # which must stay as long as it is registered
        self.managers.append(made)
        return made

    def close(self) -> None:
        for manager in self.managers:
            manager.close()
        self.server.close()


def until(*ends: Any, wanted: int = KVPoll.Success, others: Any = (), seconds: float = PATIENCE):
    """Polls rooms, as a scheduler does, until all are as wanted."""
    limit = time.monotonic() + seconds
    while True:
        states = [end.poll() for end in ends]
        for other in others:
            other.poll()
        if all(state == wanted for state in states):
            return
        for end, state in zip(ends, states, strict=True):
            if state == KVPoll.Failed and wanted != KVPoll.Failed:
                end.failure_exception()
            assert state != KVPoll.Success or wanted == KVPoll.Success, states
        assert time.monotonic() < limit, f"{states} after {seconds} s"
        time.sleep(0.0005)  # sleeps: a scheduler's other work


def why(end: Any) -> str:
    until(end, wanted=KVPoll.Failed)
    try:
        end.failure_exception()
    except conn.KVTransferError as error:
        return str(error)
    raise AssertionError("no failure_exception")
