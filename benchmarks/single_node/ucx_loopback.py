"""Memory of one agent to memory of another through a network backend, in one process.

python benchmarks/single_node/ucx_loopback.py --buffer_sizes 4KB,64KB,1MB,64MB --iterations 1000
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import (  # noqa: E402
    Benchmark,
    add_backend,
    main_of,
    make_agent,
    move,
    run,
)
from utils.config import Settings, add_memory, make_parser  # noqa: E402
from utils.memory import check_memory, make_memory, usage_of  # noqa: E402


class UcxLoopback(Benchmark):
    def __init__(self, options: argparse.Namespace, settings: Settings) -> None:
        super().__init__(settings, options)
        check_memory(options.memory_type, options.gpu_id)
        self.left = make_agent("initiator", options)
        self.right = make_agent("target", options)
        for agent in (self.left, self.right):
            add_backend(agent, options.backend, options)
        self.lane = ""

    def head(self) -> dict[str, str]:
        kind = self.near.name
        return {
            "Backend": self.options.backend + (f" (lane {self.lane})" if self.lane else ""),
            "Memory Type": f"{kind} -> {kind} (one process)",
        }

    def gpu(self) -> object:
        return usage_of(self.options.memory_type, self.options.gpu_id)

    def prepare(self, size: int) -> None:
        self.releases = contextlib.ExitStack()
        keep = self.releases.callback
        options = self.options
        kind = (options.memory_type, size, options.gpu_id, options.enable_vmm)
        self.near, self.far = make_memory(*kind), make_memory(*kind)
        for memory, agent in ((self.near, self.left), (self.far, self.right)):
            keep(memory.close)
            keep(agent.deregister_memory, memory.register(agent))
        writes = self.settings.operation == "WRITE"
        (self.near if writes else self.far).fill(size)
        self.left.add_remote_agent(self.right.get_agent_metadata())
        batch = self.settings.batch
        self.handle = self.left.initialize_xfer(
            self.settings.operation,
            self.near.descriptors(self.left, batch),
            self.far.descriptors(self.left, batch),
            "target",
        )
        keep(self.left.release_xfer_handle, self.handle)
        self.lane = str(self.left.explain(self.handle).get("lane") or "")

    def run_once(self) -> None:
        move(self.left, self.handle)

    def verify(self) -> bool:
        """Once more, with bytes that were not there before."""
        writes = self.settings.operation == "WRITE"
        (self.near if writes else self.far).fill(self.near.size + 1)
        self.run_once()
        return (self.far if writes else self.near).holds(self.near.size + 1)

    def finish(self) -> None:
        self.releases.close()

    def close(self) -> None:
        self.left.close()
        self.right.close()


def main() -> int:
    parser = make_parser("a network backend in one process", "4KB,64KB,1MB,64MB", 1000)
    parser.add_argument("--backend", default="UCX", help="the network backend, default UCX")
    add_memory(parser, "DRAM")
    return main_of(UcxLoopback, parser)()


if __name__ == "__main__":
    raise SystemExit(run(main))
