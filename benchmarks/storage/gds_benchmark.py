"""GPU Direct Storage at length: operations, batches, and both of its backends.

    python benchmarks/storage/gds_benchmark.py --operation WRITE --file_path /mnt/nvme/test.dat \\
        --buffer_size 1GB --batch_size 128
    python benchmarks/storage/gds_benchmark.py --operation READ --file_path /mnt/nvme/test.dat \\
        --buffer_size 1GB --verify_data

The file is overwritten where it exists; else it is made, and removed at the end. --operation BOTH
measures WRITE and then READ, each with its own table and records.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import run  # noqa: E402
from utils.config import add_storage, at_least, make_parser, settings_of  # noqa: E402
from utils.storage import FileBenchmark, add_gds, gds_parameters  # noqa: E402


def measure(options: argparse.Namespace) -> int:
    parameters = gds_parameters(options)
    if options.max_request_size:
        parameters["max_request_size"] = str(options.max_request_size)
    if options.backend == "GDS_MT" and options.thread_count:
        parameters["thread_count"] = str(options.thread_count)
    benchmark = FileBenchmark(options, settings_of(options), options.backend, parameters)
    try:
        return benchmark.main()
    finally:
        benchmark.close()


def main() -> int:
    operations = ("WRITE", "READ", "BOTH")
    parser = make_parser("GDS at length", "64KB,1MB,16MB,256MB", 100, operations=operations)
    add_gds(parser)
    parser.add_argument("--max_request_size", type=at_least(1), help="bytes of one request")
    parser.add_argument("--thread_count", type=at_least(1), help="threads of GDS_MT")
    add_storage(parser, "VRAM")
    options = parser.parse_args()
    if options.operation != "BOTH":
        return measure(options)
    return max(measure(argparse.Namespace(**vars(options) | {"operation": operation}))
               for operation in ("WRITE", "READ"))  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run(main))
