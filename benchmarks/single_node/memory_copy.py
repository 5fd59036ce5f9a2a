"""Memory to memory without any library: the baseline of the other benchmarks.

python benchmarks/single_node/memory_copy.py --buffer_sizes 4KB,64KB,1MB,64MB --iterations 1000
"""

from __future__ import annotations

import ctypes
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import Benchmark, main_of, pieces, run  # noqa: E402
from utils.config import make_parser  # noqa: E402
from utils.memory import make_memory  # noqa: E402


class MemoryCopy(Benchmark):
    def head(self) -> dict[str, str]:
        return {"Backend": "none (memcpy)", "Memory Type": "DRAM -> DRAM"}

    def prepare(self, size: int) -> None:
        vmm = self.options.enable_vmm
        source, sink = make_memory("DRAM", size, vmm=vmm), make_memory("DRAM", size, vmm=vmm)
        if self.settings.operation == "READ":  # the other way round
            source, sink = sink, source
        source.fill(size)
        self.source, self.sink = source, sink
        parts = self.settings.batch
        froms = pieces(source.address, size, parts, 0)
        tos = pieces(sink.address, size, parts, 0)
        self.copies = [(to, at, n) for (at, n, _), (to, _, _) in zip(froms, tos, strict=True)]

    def run_once(self) -> None:
        for to, at, length in self.copies:
            ctypes.memmove(to, at, length)

    def verify(self) -> bool:
        return self.sink.holds(self.sink.size)

    def finish(self) -> None:
        self.source = self.sink = None


def main() -> int:
    parser = make_parser("memcpy of one thread", "4KB,64KB,1MB,64MB", 1000, agents=False)
    return main_of(lambda options, settings: MemoryCopy(settings, options), parser)()


if __name__ == "__main__":
    raise SystemExit(run(main))
