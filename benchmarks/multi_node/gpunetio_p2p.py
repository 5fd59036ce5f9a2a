"""GPU memory to GPU memory of another process by transfers that the GPU starts (needs DOCA).

    python benchmarks/multi_node/gpunetio_p2p.py --gpu_devices 0,1 \\
        --buffer_sizes 1MB,16MB,256MB --etcd_endpoints http://etcd-server:2379

on both hosts; or --mode target and --mode initiator as in ucx_p2p.py; or neither, on one host.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import run  # noqa: E402
from utils.config import make_parser  # noqa: E402
from utils.p2p import add_p2p, run_p2p  # noqa: E402
from utils.rendezvous import add_network  # noqa: E402


def main() -> int:
    parser = make_parser("GPU to GPU through DOCA GPUNetIO", "64KB,1MB,16MB,256MB", 1000)
    parser.set_defaults(backend="GPUNETIO")
    add_p2p(parser, "VRAM")
    add_network(parser)
    return run_p2p(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(run(main))
