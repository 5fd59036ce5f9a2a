"""Memory to memory without any library: the baseline of the other benchmarks.

python benchmarks/single_node/memory_copy.py --buffer_sizes 4KB,64KB,1MB,64MB --iterations 1000
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import Benchmark  # noqa: E402
from utils.config import make_parser, settings_of  # noqa: E402


class MemoryCopy(Benchmark):
    def head(self) -> dict[str, str]:
        return {"Backend": "none (memcpy)", "Memory Type": "DRAM -> DRAM"}

    def prepare(self, size: int) -> None:
        self.source = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
        self.sink = np.zeros(size, dtype=np.uint8)

    def run_once(self) -> None:
        np.copyto(self.sink, self.source)

    def verify(self) -> bool:
        return bool((self.source == self.sink).all())


def main() -> int:
    options = make_parser("memcpy of one thread", "4KB,64KB,1MB,64MB", 1000).parse_args()
    return MemoryCopy(settings_of(options)).main()


if __name__ == "__main__":
    raise SystemExit(main())
