"""Memory to objects of S3 and back through the OBJ backend.

    python benchmarks/storage/obj_s3.py --bucket_name my-bucket --region us-west-2 \\
        --buffer_sizes 1MB,16MB,256MB --num_objects 100

One iteration is one transfer of so many objects (several, where they need more memory than
`--memory`); times are of one object, so the iteration's divided by their number. The keys come from
the environment or AWS's files, as plugins/obj/README.md says; other parameters of the backend by
`--param KEY=VALUE`. The objects are called nixl-benchmark/N, and removed at the end.
"""

from __future__ import annotations

import argparse
import mmap
import pathlib
import sys
import time

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import Benchmark  # noqa: E402
from utils.config import make_parser, parse_size, settings_of  # noqa: E402
from utils.metrics import Result  # noqa: E402

PREFIX = "nixl-benchmark/"


class ObjS3(Benchmark):
    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(settings_of(options))
        self.options = options
        params = dict(word.split("=", 1) for word in options.param)
        params |= {"bucket": options.bucket_name}
        if options.region:
            params["region"] = options.region
        if options.endpoint:
            params["endpoint_override"] = options.endpoint
        self.agent = nixl_agent("objects", nixl_agent_config(backends=[]))
        self.agent.create_backend("OBJ", params)

    def head(self) -> dict[str, str]:
        return {
            "Backend": f"OBJ ({self.options.endpoint or 'AWS S3'})",
            "Memory Type": f"DRAM -> OBJ (bucket {self.options.bucket_name})",
            "Objects": str(self.options.num_objects),
        }

    def prepare(self, size: int) -> None:
        agent, count = self.agent, self.options.num_objects
        at_once = max(1, min(count, self.options.memory // size))
        self.memory = np.frombuffer(mmap.mmap(-1, at_once * size), dtype=np.uint8)
        self.memory[:] = np.random.default_rng(1).integers(0, 256, self.memory.size, np.uint8)
        base = self.memory.ctypes.data
        self.names = [f"{PREFIX}{n}" for n in range(count)]
        objects = [(0, size, n + 1, name) for n, name in enumerate(self.names)]
        self.kept = [
            agent.register_memory([self.memory]),
            agent.register_memory(objects, "OBJ"),
        ]
        self.batches = []
        for first in range(0, count, at_once):
            numbers = range(first, min(first + at_once, count))
            near = [(base + (n - first) * size, size, 0) for n in numbers]
            far = [(0, size, n + 1) for n in numbers]
            self.batches.append(
                (agent.get_xfer_descs(near, "DRAM"), agent.get_xfer_descs(far, "OBJ"))
            )
        self.handles = self.make("WRITE")
        self.go(self.handles)  # objects to read
        if self.settings.operation == "READ":
            self.release()
            self.handles = self.make("READ")

    def make(self, operation: str) -> list:
        return [
            self.agent.initialize_xfer(operation, near, far, self.agent.name)
            for near, far in self.batches
        ]

    def go(self, handles: list) -> None:
        for handle in handles:
            self.agent.transfer(handle)
            handle.wait()

    def release(self) -> None:
        for handle in self.handles:
            self.agent.release_xfer_handle(handle)

    def run_once(self) -> None:
        self.go(self.handles)

    def verify(self) -> bool:
        wanted = self.memory.copy()
        same = True
        for reader, (near, _) in zip(self.make("READ"), self.batches, strict=True):
            self.memory[:] = 0
            self.go([reader])
            moved = sum(near[i][1] for i in range(len(near)))
            same = same and bool((self.memory[:moved] == wanted[:moved]).all())
            self.agent.release_xfer_handle(reader)
        return same

    def finish(self) -> None:
        self.release()
        for descs in self.kept:
            self.agent.deregister_memory(descs)
        self.agent.remove_storage("OBJ", self.names)

    def measure(self, size: int) -> Result:
        start = time.perf_counter()
        result = super().measure(size)
        count = self.options.num_objects
        print(f"{size} bytes: {time.perf_counter() - start:.1f} s", file=sys.stderr)
        each = [seconds / count for seconds in result.seconds]
        return Result(size, each, result.cpu_percent, result.verified)


def main() -> int:
    parser = make_parser("objects through the OBJ backend", "1MB,16MB,256MB", 3)
    parser.set_defaults(warmup_iter=0)
    parser.add_argument("--bucket_name", required=True)
    parser.add_argument("--region", default="")
    parser.add_argument("--endpoint", default="", help="URL of the store; default: AWS S3")
    parser.add_argument("--num_objects", type=int, default=100)
    parser.add_argument("--memory", type=parse_size, default=1 << 30, help="at most, default 1GB")
    parser.add_argument("--param", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.num_objects < 1 or any("=" not in word for word in options.param):
        parser.error("--num_objects must be at least 1, and --param KEY=VALUE")
    return ObjS3(options).main()


if __name__ == "__main__":
    raise SystemExit(main())
