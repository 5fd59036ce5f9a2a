"""Memory of one process to memory of another, on one host or two; the initiator reports.

python benchmarks/multi_node/ucx_p2p.py --mode target --ip 192.168.1.100 --port 5555
python benchmarks/multi_node/ucx_p2p.py --mode initiator --target_ip 192.168.1.100 --port 5555

or the same on both hosts:
python benchmarks/multi_node/ucx_p2p.py --etcd_endpoints http://etcd-server:2379 --benchmark_group a

Without --mode and --etcd_endpoints it starts both sides on this host. --backend measures another
network backend in the same way.
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
    parser = make_parser("a network backend between two processes", "4KB,64KB,1MB,64MB", 1000)
    parser.add_argument("--backend", default="UCX", help="the network backend, default UCX")
    add_p2p(parser, "DRAM")
    add_network(parser)
    return run_p2p(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(run(main))
