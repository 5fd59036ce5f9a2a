"""Memory of one process to memory of another, on one host or two; the initiator reports.

python benchmarks/multi_node/ucx_p2p.py --mode target --ip 127.0.0.1 --port 5555
python benchmarks/multi_node/ucx_p2p.py --mode initiator --target_ip 127.0.0.1 --port 5555

Without --mode it starts both sides on this host.
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.benchmark_base import Benchmark, move  # noqa: E402
from utils.config import Settings, make_parser, settings_of  # noqa: E402
from utils.exchange import Channel, dial, listen, pack, unpack  # noqa: E402
from utils.metrics import Result, report  # noqa: E402


def memory_of(kind: str, gpu: int, size: int) -> Any:
    """Bytes that are zero: a numpy array, or a torch tensor on the GPU."""
    if kind == "DRAM":
        return np.zeros(size, dtype=np.uint8)
    try:
        import torch
    except ImportError as error:
        raise SystemExit(f"memory type VRAM needs PyTorch: {error}") from error
    if not torch.cuda.is_available():
        raise SystemExit(f"memory type VRAM, GPU {gpu}: PyTorch finds no CUDA device here")
    if gpu >= torch.cuda.device_count():
        raise SystemExit(
            f"memory type VRAM: there is no GPU {gpu}; there are {torch.cuda.device_count()}"
        )
    return torch.zeros(size, dtype=torch.uint8, device=f"cuda:{gpu}")


def fill(memory: Any, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    if isinstance(memory, np.ndarray):
        memory[:] = data
    else:
        import torch

        memory.copy_(torch.from_numpy(data))
        torch.cuda.synchronize()


def checksum(memory: Any) -> int:
    return zlib.crc32(memory if isinstance(memory, np.ndarray) else memory.cpu().numpy())


def serve(options: argparse.Namespace) -> int:
    """The target: makes and registers memory as the initiator asks, until it leaves."""
    kind = options.target_mem
    memory_of(kind, options.gpu_id, 1)  # says what is missing before anybody connects
    with nixl_agent("target", nixl_agent_config(backends=["UCX"])) as agent:
        with listen(options.ip, options.port) as server:
            print(f"target: waiting at {options.ip} port {server.getsockname()[1]}", flush=True)
            channel = Channel(server.accept()[0])
        try:
            serve_one(agent, channel, kind, options.gpu_id)
        except Exception as error:
            channel.send(error=str(error))
            raise
        finally:
            channel.close()
    return 0


def serve_one(agent: Any, channel: Channel, kind: str, gpu: int) -> None:
    channel.send(memory=kind, gpu=gpu)
    while (ask := channel.receive())["do"] != "end":
        memory = memory_of(kind, gpu, ask["size"])
        if ask["operation"] == "READ":
            fill(memory, ask["size"])
        registered = agent.register_memory([memory])
        descriptors = agent.get_serialized_descs(registered.trim())
        channel.send(metadata=pack(agent.get_agent_metadata()), descriptors=pack(descriptors))
        channel.receive()  # the transfers are over
        channel.send(checksum=checksum(memory))
        channel.receive()  # the initiator has let go of it
        agent.deregister_memory(registered)
        channel.send(done=True)


class Initiator(Benchmark):
    def __init__(self, settings: Settings, options: argparse.Namespace) -> None:
        super().__init__(settings)
        self.kind, self.gpu_id = options.initiator_mem, options.gpu_id
        memory_of(self.kind, self.gpu_id, 1)
        self.agent = nixl_agent("initiator", nixl_agent_config(backends=["UCX"]))
        self.channel = dial(options.target_ip or options.ip, options.port, options.timeout)
        self.other = self.channel.receive()
        self.lane = ""

    def head(self) -> dict[str, str]:
        def name(kind: str, gpu: int) -> str:
            return f"VRAM (GPU {gpu})" if kind == "VRAM" else kind

        near, far = name(self.kind, self.gpu_id), name(self.other["memory"], self.other["gpu"])
        return {"Backend": f"UCX (lane {self.lane})", "Memory Type": f"{near} -> {far}, remote"}

    def prepare(self, size: int) -> None:
        operation = self.settings.operation
        self.memory = memory_of(self.kind, self.gpu_id, size)
        if operation == "WRITE":
            fill(self.memory, size)
        self.registered = self.agent.register_memory([self.memory])
        self.channel.send(do="prepare", size=size, operation=operation)
        answer = self.channel.receive()
        peer = self.agent.add_remote_agent(unpack(answer["metadata"]))
        remote = self.agent.deserialize_descs(unpack(answer["descriptors"]))
        local = self.agent.get_xfer_descs([self.memory])
        self.handle = self.agent.initialize_xfer(operation, local, remote, peer)
        self.lane = str(self.agent.explain(self.handle)["lane"])

    def run_once(self) -> None:
        move(self.agent, self.handle)

    def verify(self) -> bool:
        self.channel.send(do="verify")
        return bool(self.channel.receive()["checksum"] == checksum(self.memory))

    def finish(self) -> None:
        self.agent.release_xfer_handle(self.handle)
        self.agent.deregister_memory(self.registered)
        self.channel.send(do="release")
        self.channel.receive()

    def close(self) -> None:
        self.channel.send(do="end")
        self.channel.close()


def as_row(result: Result) -> dict[str, Any]:
    return {
        "size": result.size,
        "bandwidth_gb_s": result.bandwidth,
        "mean_us": result.mean,
        **{f"p{percent}_us": result.percentile(percent) for percent in (50, 95, 99)},
        "operations_per_s": result.operations,
        "cpu_percent": result.cpu_percent,
        "verified": result.verified,
    }


def show(form: str, head: dict[str, str], results: list[Result]) -> None:
    rows = [as_row(result) for result in results]
    if form == "json":
        print(json.dumps({"head": head, "results": rows}, indent=2))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print(report(head, results))


def initiate(options: argparse.Namespace) -> int:
    options.verify_data = True  # the target's answer is part of every size's exchange
    settings = settings_of(options)
    run = Initiator(settings, options)
    results = [run.measure(size) for size in settings.sizes]
    run.close()
    show(options.format, run.head() | {"Operation": settings.operation}, results)
    return 1 if any(not result.verified for result in results) else 0


def both(options: argparse.Namespace) -> int:
    """Starts the target as a process of its own and is the initiator."""
    words = ["--mode", "target", "--ip", options.ip, "--port", "0"]
    words += ["--target_mem", options.target_mem, "--gpu_id", str(options.gpu_id)]
    command = [sys.executable, __file__, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as target:
        try:
            assert target.stdout is not None
            line = target.stdout.readline()
            if not line:
                raise SystemExit("the target ended before it listened; its cause stands above")
            options.target_ip, options.port = options.ip, int(line.split()[-1])
            status = initiate(options)
            return status or target.wait(timeout=30)
        finally:
            target.kill()


def main() -> int:
    parser = make_parser("the default backend between two processes", "4KB,64KB,1MB,64MB", 1000)
    parser.add_argument("--mode", choices=("target", "initiator"))
    parser.add_argument("--ip", default="127.0.0.1", help="where the target listens")
    parser.add_argument("--target_ip", help="where the initiator finds it; default --ip")
    parser.add_argument("--port", type=int, default=5555)
    kinds = ("DRAM", "VRAM")
    parser.add_argument("--memory_type", type=str.upper, choices=kinds, default="DRAM")
    for side in ("initiator", "target"):
        parser.add_argument(f"--{side}_mem", type=str.upper, choices=kinds)
    parser.add_argument("--gpu_id", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for the target")
    parser.add_argument("--etcd_endpoints", help="find each other by etcd (not built yet)")
    parser.add_argument("--benchmark_group", help="the name both sides share in etcd")
    options = parser.parse_args()
    if options.etcd_endpoints or options.benchmark_group:
        raise SystemExit(
            "--etcd_endpoints, --benchmark_group: this build has no metadata store for etcd; start "
            "one side with --mode target --ip ADDRESS, the other with --mode initiator --target_ip "
            "ADDRESS"
        )
    options.initiator_mem = options.initiator_mem or options.memory_type
    options.target_mem = options.target_mem or options.memory_type
    return {"target": serve, "initiator": initiate, None: both}[options.mode](options)


if __name__ == "__main__":
    raise SystemExit(main())
