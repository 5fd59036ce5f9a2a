"""Memory of one process to memory of another, on one host or two; the initiator reports.

The target makes and registers memory as the initiator asks, over a channel (exchange.py), and takes
no part in the transfers.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from .benchmark_base import Benchmark, add_backend, make_agent, move
from .config import Settings, add_memory, parse_numbers, settings_of
from .exchange import Channel, pack, unpack
from .memory import check_memory, make_memory, usage_of
from .output import check_paths
from .rendezvous import Target, direct_dial, direct_target, meet, uses_etcd


def add_p2p(parser: argparse.ArgumentParser, memory: str) -> None:
    add_memory(parser, memory)
    kinds = ("DRAM", "VRAM")
    for side in ("initiator", "target"):
        parser.add_argument(f"--{side}_mem", type=str.upper, choices=kinds,
                            help="in place of --memory_type")  # fmt: skip
    parser.add_argument("--gpu_devices", type=parse_numbers, metavar="N[,N]",
                        help="the initiator's GPU and the target's")  # fmt: skip


def memory_of(options: argparse.Namespace, side: str) -> tuple[str, int]:
    """(memory type, GPU) of one side."""
    kind = getattr(options, f"{side}_mem") or options.memory_type
    gpus = options.gpu_devices or (options.gpu_id,)
    return kind, gpus[0] if side == "initiator" else gpus[-1]


def serve(options: argparse.Namespace, target: Target | None = None) -> int:
    """The target's side, until the initiator leaves."""
    kind, gpu = memory_of(options, "target")
    with make_agent("target", options, passive=True) as agent:
        # Says what is missing before anybody connects.
        add_backend(agent, options.backend, options)
        check_memory(kind, gpu)
        target = target or direct_target(options)
        try:
            channel = target.accept()
        finally:
            target.close()
        try:
            _serve_one(agent, channel, options, kind, gpu)
        except Exception as error:
            with contextlib.suppress(RuntimeError):
                channel.send(error=str(error) or type(error).__name__)
            raise
        finally:
            channel.close()
    return 0


def _serve_one(
    agent: Any, channel: Channel, options: argparse.Namespace, kind: str, gpu: int
) -> None:
    channel.send(memory=kind, gpu=gpu)
    while (ask := channel.receive())["do"] != "end":
        memory = make_memory(kind, ask["size"], gpu, options.enable_vmm)
        registered = memory.register(agent)
        if ask["operation"] == "READ":
            memory.fill(ask["size"])
        descriptors = agent.get_serialized_descs(memory.descriptors(agent, ask["batch"]))
        channel.send(metadata=pack(agent.get_agent_metadata()), descriptors=pack(descriptors))
        cpu, start = time.process_time(), time.perf_counter()
        do = channel.receive()  # the measured transfers are over
        percent = (time.process_time() - cpu) / (time.perf_counter() - start) * 100
        while do["do"] != "release":
            if do["do"] == "fill":
                memory.fill(do["seed"])
                channel.send(done=True)
            elif do["do"] == "compare":
                channel.send(same=memory.holds(do["seed"]))
            else:
                channel.send(cpu_percent=percent)
            do = channel.receive()
        agent.deregister_memory(registered)
        memory.close()
        channel.send(done=True)


def _place(kind: str, gpu: int, *notes: str) -> str:
    """As the guide writes it: VRAM (GPU 0, Remote)."""
    notes = (f"GPU {gpu}", *notes) if kind == "VRAM" else notes
    return f"{kind} ({', '.join(notes)})" if notes else kind


class Initiator(Benchmark):
    def __init__(self, settings: Settings, options: argparse.Namespace,
                 channel: Channel | None = None) -> None:  # fmt: skip
        super().__init__(settings, options)
        self.kind, self.device = memory_of(options, "initiator")
        self.agent = make_agent("initiator", options)
        add_backend(self.agent, options.backend, options)
        check_memory(self.kind, self.device)
        self.channel = channel or direct_dial(options)
        self.other = self.channel.receive()
        self.lane = ""

    def head(self) -> dict[str, str]:
        lane = f" (lane {self.lane})" if self.lane else ""
        near = _place(self.kind, self.device)
        far = _place(self.other["memory"], self.other["gpu"], "Remote")
        return {"Backend": f"{self.options.backend}{lane}", "Memory Type": f"{near} -> {far}"}

    def gpu(self) -> object:
        return usage_of(self.kind, self.device)

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        self.channel.send(do=do, **words)
        return self.channel.receive()

    def prepare(self, size: int) -> None:
        self.releases = contextlib.ExitStack()
        keep, agent, settings = self.releases.callback, self.agent, self.settings
        self.memory = make_memory(self.kind, size, self.device, self.options.enable_vmm)
        keep(self.memory.close)
        keep(agent.deregister_memory, self.memory.register(agent))
        if settings.operation == "WRITE":
            self.memory.fill(size)
        local = self.memory.descriptors(agent, settings.batch)
        there = self.ask("prepare", size=size, operation=settings.operation, batch=settings.batch)
        keep(self.ask, "release")
        peer = agent.add_remote_agent(unpack(there["metadata"]))
        remote = agent.deserialize_descs(unpack(there["descriptors"]))
        self.handle = agent.initialize_xfer(settings.operation, local, remote, peer)
        keep(agent.release_xfer_handle, self.handle)
        self.lane = str(agent.explain(self.handle).get("lane") or "")

    def run_once(self) -> None:
        move(self.agent, self.handle)

    def extra(self) -> Mapping[str, float]:
        return {"target_cpu_percent": self.ask("figures")["cpu_percent"]}

    def verify(self) -> bool:
        """Once more, with bytes that were not there before."""
        self.ask("figures")  # the measured part is over
        seed = self.memory.size + 1
        if self.settings.operation == "WRITE":
            self.memory.fill(seed)
            self.run_once()
            return bool(self.ask("compare", seed=seed)["same"])
        self.ask("fill", seed=seed)
        self.run_once()
        return self.memory.holds(seed)

    def finish(self) -> None:
        self.releases.close()

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.channel.send(do="end")
        self.channel.close()
        self.agent.close()


def initiate(options: argparse.Namespace, channel: Channel | None = None) -> int:
    options.verify_data = True  # two processes: whether bytes arrived is worth its moment
    run = Initiator(settings_of(options), options, channel)
    try:
        return run.main()
    finally:
        run.close()


def both(options: argparse.Namespace) -> int:
    """Starts the target as a process of its own and is the initiator."""
    options.ip = options.ip or "127.0.0.1"
    words = [*sys.argv[1:], "--mode", "target", "--ip", options.ip, "--port", "0"]
    command = [sys.executable, sys.argv[0], *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as target:
        try:
            assert target.stdout is not None
            line = target.stdout.readline()
            if not line:
                return target.wait(timeout=30) or 1  # its cause stands above
            options.target_ip, options.port = options.ip, int(line.split()[-1])
            status = initiate(options)
            return status or target.wait(timeout=30)
        finally:
            target.kill()


def run_p2p(options: argparse.Namespace) -> int:
    etcd = uses_etcd(options)
    check_paths(options)
    # Ahead of the rendezvous: whoever lacks something must not let the other side wait.
    with make_agent("check", options) as agent:
        add_backend(agent, options.backend, options)
    if etcd:
        sides = {memory_of(options, side) for side in ("initiator", "target")}
        if len(sides) == 1:
            check_memory(*sides.pop())
        found = meet(options)
        return serve(options, found) if isinstance(found, Target) else initiate(options, found)
    return {"target": serve, "initiator": initiate, None: both}[options.mode](options)
