"""Rows in memory: transfers in one process, preparing, registering, agents."""

from __future__ import annotations

import os
import pathlib
import time
from typing import Any

from rows_base import Metric, Row, at_most, finish, make_pair, timed, yardstick

BLOCKS = 10_000


class Scattered(Row):
    """Random blocks from one agent's memory to another's, each at a random place."""

    name = "scattered"
    title = "two agents in one process, random 1 KiB x 10,000"
    size = 1024
    metrics = (
        Metric(
            "post + wait",
            "us/block",
            (at_most("limit", 2), at_most("peer", 0.05)),
            limit="memcpy loop",
        ),
        Metric("transfer() alone", "ms", (at_most("value", 1),)),
        Metric("post + wait, whole", "ms", (at_most("limit", 1.1),), limit="done inside post"),
        Metric("post + handle.wait()", "ms"),
    )

    def setup(self) -> None:
        import numpy as np

        rng = np.random.default_rng(1)
        total = 4 * BLOCKS * self.size
        pair = self.pair = make_pair(total)
        self.left = rng.permutation(4 * BLOCKS)[:BLOCKS].astype(np.int32)
        self.right = rng.permutation(4 * BLOCKS)[:BLOCKS].astype(np.int32)
        self.handle = self.prepare(pair)
        source, sink = pair.source.ctypes.data, pair.sink.ctypes.data
        self.to = sink + self.right.astype(np.uint64) * self.size
        self.origin = source + self.left.astype(np.uint64) * self.size
        if self.ours:
            self.library = yardstick()
            self.inline_pair = make_pair(total, {"inline_budget_us": "1000000"})
            self.inline = self.prepare(self.inline_pair)
            self.facts["lane"] = str(pair.left.explain(self.handle)["lane"])
        finish(pair.left, self.handle, pair.left.transfer(self.handle))
        chosen = pair.source.reshape(-1, self.size)[self.left]
        if not (pair.sink.reshape(-1, self.size)[self.right] == chosen).all():
            raise RuntimeError("bytes differ")

    def prepare(self, pair: Any) -> Any:
        import numpy as np

        def rows(base: int) -> Any:
            out = np.zeros((4 * BLOCKS, 3), dtype=np.uint64)
            out[:, 0] = base + np.arange(4 * BLOCKS, dtype=np.uint64) * self.size
            out[:, 1] = self.size
            return out

        left, right = pair.left, pair.right
        near = left.prep_xfer_dlist("", rows(pair.source.ctypes.data), "DRAM")
        far = left.prep_xfer_dlist(right.name, rows(pair.sink.ctypes.data), "DRAM")
        return left.make_prepped_xfer("WRITE", near, self.left, far, self.right)

    def measure(self) -> None:
        left = self.pair.left
        for _ in range(5):
            start = time.perf_counter()
            state = left.transfer(self.handle)
            posted = time.perf_counter() - start
            finish(left, self.handle, state)
            whole = time.perf_counter() - start
            self.note("post + wait", whole / BLOCKS * 1e6)
            self.note("transfer() alone", posted * 1e3)
            self.note("post + wait, whole", whole * 1e3)
            if not self.ours:
                continue
            start = time.perf_counter()
            if left.transfer(self.handle) == "PROC":
                self.handle.wait()
            self.note("post + handle.wait()", (time.perf_counter() - start) * 1e3)
            agent = self.inline_pair.left
            spent, _ = timed(
                lambda: finish(agent, self.inline, agent.transfer(self.inline))  # noqa: B023
            )
            self.note("limit:post + wait, whole", spent * 1e3)
            spent, _ = timed(
                lambda: self.library.copy_blocks(
                    self.to.ctypes.data, self.origin.ctypes.data, BLOCKS, self.size
                )
            )
            self.note("limit:post + wait", spent / BLOCKS * 1e6)


class Prepare(Row):
    """prep_xfer_dlist of 200,000 blocks given as an Nx3 array."""

    name = "prepare"
    title = "prepare 200,000 blocks from an Nx3 array"
    count = 200_000
    metrics = (
        Metric("local, regular", "ms", (at_most("value", 0.6),), limit="reading the array"),
        Metric("remote, regular", "ms", (at_most("value", 0.6),)),
        Metric("local, irregular", "ms", (at_most("value", 3),)),
        Metric("remote, irregular", "ms", (at_most("value", 3),)),
    )

    def setup(self) -> None:
        import numpy as np

        size = 256
        self.pair = make_pair(self.count * size)
        order = np.random.default_rng(2).permutation(self.count).astype(np.uint64)
        self.arrays = {}
        for where, base in (
            ("local", self.pair.source.ctypes.data),
            ("remote", self.pair.sink.ctypes.data),
        ):
            regular = np.zeros((self.count, 3), dtype=np.uint64)
            regular[:, 0] = base + np.arange(self.count, dtype=np.uint64) * size
            regular[:, 1] = size
            irregular = regular.copy()
            irregular[:, 0] = base + order * size
            self.arrays[f"{where}, regular"] = regular
            self.arrays[f"{where}, irregular"] = irregular
        if self.ours:
            self.library = yardstick()

    def measure(self) -> None:
        left, right = self.pair.left, self.pair.right
        for metric, array in self.arrays.items():
            name = "" if metric.startswith("local") else right.name
            for _ in range(3):
                spent, handle = timed(lambda: left.prep_xfer_dlist(name, array, "DRAM"))  # noqa
                self.note(metric, spent * 1e3)
                left.release_dlist_handle(handle)
        if self.ours:
            array = self.arrays["local, regular"]
            spent, _ = timed(lambda: self.library.sum_words(array.ctypes.data, array.size))
            self.note("limit:local, regular", spent * 1e3)


class MakePrepped(Row):
    """make_prepped_xfer of some of 200,000 prepared blocks."""

    name = "make_prepped"
    title = "make_prepped_xfer"
    count, size = 200_000, 256
    metrics = (
        Metric("10,000 indices, int32 array", "us", (at_most("value", 100),)),
        Metric("10,000 indices, list", "us", (at_most("value", 250),)),
        Metric("100 indices, int32 array", "us", (at_most("peer", 0.8),)),
        Metric("100 indices, list", "us", (at_most("peer", 0.8),)),
        Metric("1 index, int32 array", "us", (at_most("peer", 1),)),
        Metric("1 index, list", "us", (at_most("peer", 1),)),
    )

    def setup(self) -> None:
        import numpy as np

        pair = self.pair = make_pair(self.count * self.size)
        rng = np.random.default_rng(3)
        pair.source[:] = rng.integers(0, 256, pair.source.nbytes, dtype=np.uint8)
        self.sides = []
        for name, memory in (("", pair.source), (pair.right.name, pair.sink)):
            rows = np.zeros((self.count, 3), dtype=np.uint64)
            steps = np.arange(self.count, dtype=np.uint64) * self.size
            rows[:, 0], rows[:, 1] = memory.ctypes.data + steps, self.size
            self.sides.append(pair.left.prep_xfer_dlist(name, rows, "DRAM"))
        self.indices = {}
        for number, text in ((BLOCKS, "10,000 indices"), (100, "100 indices"), (1, "1 index")):
            a, b = (rng.permutation(self.count)[:number].astype(np.int32) for _ in range(2))
            self.indices[f"{text}, int32 array"] = (a, b)
            self.indices[f"{text}, list"] = (a.tolist(), b.tolist())
        for metric, chosen in self.indices.items():
            self.check_bytes(metric, *chosen)

    def make(self, a: Any, b: Any) -> Any:
        near, far = self.sides
        return self.pair.left.make_prepped_xfer("WRITE", near, a, far, b)

    def check_bytes(self, metric: str, a: Any, b: Any) -> None:
        left = self.pair.left
        self.pair.sink[:] = 0
        handle = self.make(a, b)
        finish(left, handle, left.transfer(handle))
        left.release_xfer_handle(handle)
        blocks = self.pair.source.reshape(-1, self.size), self.pair.sink.reshape(-1, self.size)
        if not (blocks[1][b] == blocks[0][a]).all():
            raise RuntimeError(f"{metric}: bytes differ")

    def measure(self) -> None:
        for metric, (a, b) in self.indices.items():
            for _ in range(5 if len(a) == BLOCKS else 200):
                spent, handle = timed(lambda: self.make(a, b))  # noqa: B023
                self.note(metric, spent * 1e6)
                self.pair.left.release_xfer_handle(handle)


class Tuples(Row):
    """get_xfer_descs of 200,000 Python tuples."""

    name = "tuples"
    title = "get_xfer_descs of 200,000 tuples"
    metrics = (Metric("get_xfer_descs", "ms", (at_most("peer", 1),)),)

    def setup(self) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        self.agent = nixl_agent("tuples", nixl_agent_config(backends=[]))
        self.tuples = [(0x7F00_0000_0000 + i * 4096, 4096, 0) for i in range(200_000)]

    def measure(self) -> None:
        for _ in range(3):
            spent, _ = timed(lambda: self.agent.get_xfer_descs(self.tuples, "DRAM"))
            self.note("get_xfer_descs", spent * 1e3)


class Register(Row):
    """10,000 regions: registering them, the metadata blob, adding it at a peer."""

    name = "register"
    title = "10,000 regions"
    metrics = (
        Metric("register_memory", "ms", (at_most("value", 10),)),
        Metric("get_agent_metadata", "ms"),
        Metric("metadata, random", "bytes/region", (at_most("value", 24),)),
        Metric("metadata, regular", "bytes", (at_most("value", 1024),)),
        Metric("add_remote_agent", "ms", (at_most("value", 5),)),
        Metric("deregister_memory", "ms"),
    )

    def setup(self) -> None:
        import numpy as np
        from nixl._api import nixl_agent, nixl_agent_config

        page, pages = 4096, 40_000
        self.memory = np.zeros(pages * page, dtype=np.uint8)
        base = self.memory.ctypes.data
        rng = np.random.default_rng(4)
        places = np.sort(rng.permutation(pages)[:BLOCKS])
        sizes = rng.integers(1, page + 1, BLOCKS)
        starts = rng.integers(0, page, BLOCKS) % (page + 1 - sizes)
        self.random = [
            (int(base + p * page + at), int(n), 0, "")
            for p, at, n in zip(places, starts, sizes, strict=True)
        ]
        rng.shuffle(self.random)
        self.random = [tuple(int(x) for x in row[:3]) + ("",) for row in self.random]
        self.regular = [(base + i * page, page, 0, "") for i in range(BLOCKS)]
        self.agent = nixl_agent("regions", nixl_agent_config(backends=["UCX"]))
        self.peer = nixl_agent("peer", nixl_agent_config(backends=["UCX"]))

    def measure(self) -> None:
        agent, peer = self.agent, self.peer
        for kind, tuples in (("random", self.random), ("regular", self.regular)):
            descs = agent.get_reg_descs(tuples, "DRAM")
            spent, _ = timed(lambda: agent.register_memory(descs))  # noqa: B023
            self.note("register_memory", spent * 1e3)
            spent, blob = timed(agent.get_agent_metadata)
            self.note("get_agent_metadata", spent * 1e3)
            per = BLOCKS if kind == "random" else 1
            self.note(f"metadata, {kind}", len(blob) / per)
            spent, _ = timed(lambda: peer.add_remote_agent(blob))  # noqa: B023
            self.note("add_remote_agent", spent * 1e3)
            peer.remove_remote_agent(agent.name)
            spent, _ = timed(lambda: agent.deregister_memory(descs))  # noqa: B023
            self.note("deregister_memory", spent * 1e3)


class Create(Row):
    """An agent with its default backend: the first of a process, and the next."""

    name = "create"
    title = "agent with its default backend"
    fresh = True
    metrics = (
        Metric("first of a process", "ms", (at_most("value", 20),)),
        Metric("next", "ms", (at_most("value", 20),)),
        Metric("import nixl (numpy loaded)", "ms", (at_most("value", 100),)),
    )

    def setup(self) -> None:
        import numpy  # noqa: F401

        spent, _ = timed(lambda: __import__("nixl"))
        self.imported = spent * 1e3

    def measure(self) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        self.note("import nixl (numpy loaded)", self.imported)
        self.kept = []
        for index, metric in enumerate(("first of a process", "next", "next")):
            config = nixl_agent_config(backends=["UCX"])
            spent, agent = timed(lambda: nixl_agent(f"agent{index}", config))  # noqa: B023
            self.kept.append(agent)
            self.note(metric, spent * 1e3)


class Idle(Row):
    """What an agent with a progress thread costs while nothing happens."""

    name = "idle"
    title = "idle agent with a progress thread"
    metrics = (Metric("processor time", "% of a core", (at_most("value", 0.1),)),)

    def setup(self) -> None:
        from nixl._api import nixl_agent, nixl_agent_config

        config = nixl_agent_config(enable_prog_thread=True, backends=["UCX"])
        self.agent = nixl_agent("idle", config)
        time.sleep(0.2)

    def measure(self) -> None:
        before, start = time.process_time(), time.perf_counter()
        time.sleep(0.5)
        spent = time.process_time() - before
        self.note("processor time", spent / (time.perf_counter() - start) * 100)


class Size(Row):
    """What an installation takes on disk, without its dependencies."""

    name = "size"
    title = "installed size"
    fresh = True
    metrics = (Metric("on disk", "MB", (at_most("value", 10),)),)

    def measure(self) -> None:
        import importlib.metadata as metadata

        wheel = os.environ.get("NIXL_INSTALLED", "") if self.ours else ""
        if wheel:
            files = [p for p in pathlib.Path(wheel).rglob("*") if p.is_file()]
        else:
            files = []
            for name in ("nixl", "nixl-cu13") if not self.ours else ("nixl",):
                try:
                    owned = metadata.distribution(name).files or []
                except metadata.PackageNotFoundError:
                    continue
                files += [pathlib.Path(str(one.locate())) for one in owned]
        total = sum(p.stat().st_size for p in files if p.is_file() and not p.is_symlink())
        if total:
            self.note("on disk", total / 1e6)


MEMORY_ROWS: list[type[Row]] = [
    Scattered,
    Prepare,
    MakePrepped,
    Tuples,
    Register,
    Create,
    Idle,
    Size,
]
