"""GPU memory to a file and back through GPU Direct Storage.

    python benchmarks/single_node/gds_storage.py --file_path /mnt/nvme/test.dat \\
        --buffer_size 1GB --direct_io

The file is overwritten where it exists; else it is made, and removed at the end.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import main_of, run  # noqa: E402
from utils.config import add_storage, make_parser  # noqa: E402
from utils.storage import FileBenchmark, add_gds, gds_parameters  # noqa: E402


def main() -> int:
    parser = make_parser("files and GPU memory through GDS", "64KB,1MB,16MB,256MB", 100)
    add_gds(parser)
    add_storage(parser, "VRAM")
    return main_of(
        lambda options, settings: FileBenchmark(
            options, settings, options.backend, gds_parameters(options)
        ),
        parser,
    )()


if __name__ == "__main__":
    raise SystemExit(run(main))
