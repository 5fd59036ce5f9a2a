"""Memory to a file and back through the POSIX backend.

    python benchmarks/single_node/posix_storage.py --file_path /mnt/storage/test.dat \\
        --api_type URING --buffer_sizes 4KB,64KB,1MB

The file is overwritten where it exists; else it is made, and removed at the end.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import main_of, run  # noqa: E402
from utils.config import Settings, add_storage, make_parser  # noqa: E402
from utils.storage import FileBenchmark  # noqa: E402

API_TYPES = {
    "AUTO": {},
    "AIO": {"use_aio": "true"},
    "URING": {"use_uring": "true"},
    "POSIXAIO": {"use_posix_aio": "true"},
}


class PosixStorage(FileBenchmark):
    def __init__(self, options: argparse.Namespace, settings: Settings) -> None:
        super().__init__(options, settings, "POSIX", API_TYPES[options.api_type])

    def mode(self) -> str:
        return f"{self.options.api_type}, {super().mode()}"


def main() -> int:
    parser = make_parser("files through the POSIX backend", "4KB,64KB,1MB", 100)
    parser.add_argument("--api_type", type=str.upper, choices=API_TYPES, default="AUTO",
                        help="the engine of files opened with --direct_io")  # fmt: skip
    add_storage(parser, "DRAM")
    return main_of(PosixStorage, parser)()


if __name__ == "__main__":
    raise SystemExit(run(main))
