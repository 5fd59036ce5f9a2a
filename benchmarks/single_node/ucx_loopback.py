"""Memory of one agent to memory of another through the default backend, in one process.

python benchmarks/single_node/ucx_loopback.py --buffer_sizes 4KB,64KB,1MB,64MB --iterations 1000
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import Benchmark, move  # noqa: E402
from utils.config import Settings, make_parser, settings_of  # noqa: E402


class UcxLoopback(Benchmark):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        config = nixl_agent_config(backends=["UCX"])
        self.left = nixl_agent("initiator", config)
        self.right = nixl_agent("target", config)
        self.lane = ""

    def head(self) -> dict[str, str]:
        return {"Backend": f"UCX (lane {self.lane})", "Memory Type": "DRAM -> DRAM (one process)"}

    def prepare(self, size: int) -> None:
        self.mine = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
        self.theirs = np.zeros(size, dtype=np.uint8)
        if self.settings.operation == "READ":
            self.theirs[:] = self.mine
            self.mine = np.zeros(size, dtype=np.uint8)
        self.kept = [
            (self.left, self.left.register_memory([self.mine])),
            (self.right, self.right.register_memory([self.theirs])),
        ]
        self.left.add_remote_agent(self.right.get_agent_metadata())
        self.handle = self.left.initialize_xfer(
            self.settings.operation,
            self.left.get_xfer_descs([self.mine]),
            self.left.get_xfer_descs([self.theirs]),
            "target",
        )
        self.lane = self.left.explain(self.handle)["lane"]

    def run_once(self) -> None:
        move(self.left, self.handle)

    def verify(self) -> bool:
        return bool((self.mine == self.theirs).all())

    def finish(self) -> None:
        self.left.release_xfer_handle(self.handle)
        for agent, descs in self.kept:
            agent.deregister_memory(descs)


def main() -> int:
    options = make_parser("the default backend, locally", "4KB,64KB,1MB,64MB", 1000).parse_args()
    return UcxLoopback(settings_of(options)).main()


if __name__ == "__main__":
    raise SystemExit(main())
