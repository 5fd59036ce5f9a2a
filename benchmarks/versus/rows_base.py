"""The parts every row is made of: metrics, targets, timing, the two agents of one process."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """What ours must reach: `factor` times another figure, or a plain value."""

    of: str  # "peer", "mooncake", "limit" or "value"
    factor: float
    text: str


@dataclass(frozen=True)
class Metric:
    name: str
    unit: str  # us, ms, GB/s, kIOPS, bytes, MB, %
    targets: tuple[Target, ...] = ()
    higher: bool = False  # whether more is better
    limit: str = ""  # what the limit's column shows
    second: str = ""  # another limit beside it: noted as "second:NAME"


def at_most(of: str, factor: float) -> Target:
    return Target(of, factor, f"<= {factor:g}" + ("" if of == "value" else f" x {of}"))


def at_least(of: str, factor: float) -> Target:
    return Target(of, factor, f">= {factor:g}" + ("" if of == "value" else f" x {of}"))


class Row:
    """One row. `side` is "ours", "peer" or "mooncake"; only "ours" measures the limit."""

    name = ""
    title = ""
    metrics: tuple[Metric, ...] = ()
    fresh = False  # a new process for every round
    hosts = False  # in two network namespaces, which need root
    cables, rate = 1, ""  # between them, and what each carries at most (as tc writes it)
    sides: tuple[str, ...] = ("ours", "peer")  # "mooncake": also beside Mooncake's engine
    most_rounds = 1000  # of rows whose rounds take long

    @classmethod
    def environment(cls) -> dict[str, str]:
        """What its processes need from their start."""
        return {}

    def __init__(self, side: str, scratch: str) -> None:
        self.side = side
        self.scratch = scratch
        self.facts: dict[str, str] = {}
        self.samples: dict[str, list[float]] = {}

    def setup(self) -> None:
        """Everything that is not measured."""

    def measure(self) -> None:
        """One round; calls note()."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing need be released: the process ends."""

    def round(self) -> dict[str, list[float]]:
        self.samples = {}
        self.measure()
        return self.samples

    def note(self, metric: str, value: float) -> None:
        self.samples.setdefault(metric, []).append(value)

    @property
    def ours(self) -> bool:
        return self.side == "ours"


def quick() -> bool:
    """Whether the row is only to be tried: small sizes, figures that say nothing."""
    return bool(os.environ.get("NIXL_VERSUS_QUICK"))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds a call took, and what it returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def finish(agent: Any, handle: Any, state: str) -> None:
    """Polls as the established examples do, until the transfer has ended."""
    while state == "PROC":
        state = agent.check_xfer_state(handle)
    if state != "DONE":
        raise RuntimeError(f"transfer ended as {state}")


def yardstick() -> Any:
    """The compiled yardstick.c."""
    library = ctypes.CDLL(os.environ["NIXL_YARDSTICK"])
    words = ctypes.c_void_p
    library.copy_blocks.argtypes = [words, words, ctypes.c_size_t, ctypes.c_size_t]
    library.copy_blocks.restype = None
    library.attach_blocks.argtypes = [
        ctypes.c_int,
        words,
        words,
        *[ctypes.c_size_t] * 2,
        ctypes.c_int,
    ]
    library.attach_blocks.restype = ctypes.c_size_t
    library.sum_words.argtypes = [words, ctypes.c_size_t]
    library.sum_words.restype = ctypes.c_uint64
    number = ctypes.c_size_t
    library.move_blocks.argtypes = [
        ctypes.c_int,
        ctypes.c_int,
        words,
        words,
        number,
        number,
        number,
    ]
    library.move_blocks.restype = ctypes.c_int
    return library


@dataclass
class Pair:
    """Two agents of this process that know each other's memory."""

    left: Any
    right: Any
    source: Any
    sink: Any
    registered: list[Any] = field(default_factory=list)


def make_pair(nbytes: int, backend_params: dict[str, str] | None = None) -> Pair:
    import numpy as np
    from nixl._api import nixl_agent, nixl_agent_config

    config = nixl_agent_config(backends=["UCX"] if backend_params is None else [])
    left = nixl_agent("left", config)
    right = nixl_agent("right", config)
    if backend_params is not None:
        left.create_backend("UCX", backend_params)
        right.create_backend("UCX", backend_params)
    source = np.ones(nbytes, dtype=np.uint8)
    sink = np.zeros(nbytes, dtype=np.uint8)
    pair = Pair(left, right, source, sink)
    for agent, memory in ((left, source), (right, sink)):
        entry = [(memory.ctypes.data, memory.nbytes, 0, "")]
        pair.registered.append(agent.register_memory(entry, "DRAM"))
    left.add_remote_agent(right.get_agent_metadata())
    return pair
