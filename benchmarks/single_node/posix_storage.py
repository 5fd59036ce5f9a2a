"""Memory to a file and back through the POSIX backend.

    python benchmarks/single_node/posix_storage.py --file_path /mnt/storage/test.dat \\
        --api_type URING --buffer_sizes 4KB,64KB,1MB

The file is made where it is missing, and removed at the end only if this run made it.
"""

from __future__ import annotations

import argparse
import mmap
import os
import pathlib
import sys

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import Benchmark, move  # noqa: E402
from utils.config import make_parser, settings_of  # noqa: E402

API_TYPES = {
    "AUTO": {},
    "AIO": {"use_aio": "true"},
    "URING": {"use_uring": "true"},
    "POSIXAIO": {"use_posix_aio": "true"},
}


class PosixStorage(Benchmark):
    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(settings_of(options))
        self.options = options
        self.agent = nixl_agent("storage", nixl_agent_config(backends=[]))
        self.agent.create_backend("POSIX", API_TYPES[options.api_type])

    def head(self) -> dict[str, str]:
        path = "O_DIRECT" if self.options.direct_io else "page cache"
        return {
            "Backend": f"POSIX ({self.options.api_type}, {path})",
            "Memory Type": f"DRAM -> FILE ({self.options.file_path})",
        }

    def prepare(self, size: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | (os.O_DIRECT if self.options.direct_io else 0)
        self.fd = os.open(self.options.file_path, flags, 0o600)
        self.memory = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
        self.memory[:] = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
        agent = self.agent
        self.kept = [
            agent.register_memory([self.memory]),
            agent.register_memory([(0, size, self.fd, "")], "FILE"),
        ]
        self.near = agent.get_xfer_descs([self.memory])
        self.far = agent.get_xfer_descs([(0, size, self.fd)], "FILE")
        writer = agent.initialize_xfer("WRITE", self.near, self.far, agent.name)
        move(agent, writer)  # a file to read, and blocks that exist
        agent.release_xfer_handle(writer)
        self.handle = agent.initialize_xfer(
            self.settings.operation, self.near, self.far, agent.name
        )

    def run_once(self) -> None:
        move(self.agent, self.handle)

    def verify(self) -> bool:
        wanted = self.memory.copy()
        self.memory[:] = 0
        reader = self.agent.initialize_xfer("READ", self.near, self.far, self.agent.name)
        move(self.agent, reader)
        self.agent.release_xfer_handle(reader)
        return bool((self.memory == wanted).all())

    def finish(self) -> None:
        self.agent.release_xfer_handle(self.handle)
        for descs in self.kept:
            self.agent.deregister_memory(descs)
        os.close(self.fd)


def main() -> int:
    parser = make_parser("files through the POSIX backend", "4KB,64KB,1MB", 100)
    parser.add_argument("--file_path", required=True)
    parser.add_argument("--api_type", type=str.upper, choices=API_TYPES, default="AUTO")
    parser.add_argument("--direct_io", action="store_true")
    options = parser.parse_args()
    made = not os.path.exists(options.file_path)
    try:
        return PosixStorage(options).main()
    finally:
        if made and os.path.exists(options.file_path):
            os.unlink(options.file_path)


if __name__ == "__main__":
    raise SystemExit(main())
