"""Many agents in a few processes that fetch each other's metadata by address: how long until each
knows all, what travels, what it takes in memory, and what one change costs.

    python benchmarks/scale/agents_direct.py --agents 1000 --processes 4 --peers 50

Each agent fetches the next `--peers` agents (default: all others). docs/metadata.md has figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

REGIONS = 8  # of each agent


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def say(**what) -> None:
    print(json.dumps(what), flush=True)


def worker(first: int, count: int, peers: int) -> None:
    """`count` agents; does what the parent says, a line at a time."""
    import numpy as np
    from nixl import nixl_agent, nixl_agent_config

    room = np.zeros(4096 * (REGIONS + 1), np.uint8)
    entries = [(room.ctypes.data + 4096 * i, 4096 - i, 0, "") for i in range(REGIONS)]
    config = nixl_agent_config(
        enable_listen=True, listen_port=0, listen_host="127.0.0.1", peer_timeout=3600
    )
    agents = []
    for number in range(first, first + count):
        agents.append(nixl_agent(f"agent{number}", config))
        agents[-1].register_memory(entries, "DRAM")
    say(ports=[agent.listen_port for agent in agents])
    ports = json.loads(sys.stdin.readline())
    total = len(ports)
    before, start = resident(), time.monotonic()
    missing = []
    for at, agent in enumerate(agents):
        for step in range(1, peers + 1):
            other = (first + at + step) % total
            agent.fetch_remote_metadata(f"agent{other}", "127.0.0.1", ports[other])
            missing.append((agent, f"agent{other}"))
    while missing:
        missing = [pair for pair in missing if not pair[0].check_remote_metadata(pair[1])]
        time.sleep(0.005)
    say(
        known=time.monotonic() - start,
        resident=resident() - before,
        threads=threads(),
        descriptors=descriptors(),
        bytes=sum(agent.stats()["exchange_bytes_in"] for agent in agents),
        connections=sum(agent.stats()["exchange_connections"] for agent in agents),
    )
    changed = room.ctypes.data + 4096 * REGIONS
    for line in sys.stdin:
        words = line.split()
        if words[0] == "change":
            agents[0].register_memory([(changed, 77, 0, "")], "DRAM")
            say(address=changed, at=time.time())
        elif words[0] == "see":
            wanted = agents[-1].get_xfer_descs([(int(words[2]), 77, 0)], "DRAM")
            followers = [agent for agent in agents if words[1] in agent.peers()]
            while not all(one.check_remote_metadata(words[1], wanted) for one in followers):
                time.sleep(0.0002)
            received = sum(one.stats()["exchange_bytes_in"] for one in agents)
            say(at=time.time(), followers=len(followers), bytes=received)
        else:
            break
    start = time.monotonic()
    for agent in agents:
        agent.close()
    say(closed=time.monotonic() - start)


class Worker:
    def __init__(self, *words: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, words: str) -> None:
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a process has ended: {self.process.wait()}")
        return json.loads(line)


def measure(total: int, processes: int, peers: int) -> None:
    share = total // processes
    total = share * processes
    workers = [Worker(i * share, share, peers) for i in range(processes)]
    ports = [port for one in workers for port in one.answer()["ports"]]
    for one in workers:
        one.ask(json.dumps(ports))
    results = [one.answer() for one in workers]
    pairs = total * peers
    known = max(r["known"] for r in results)
    received = sum(r["bytes"] for r in results)
    memory = sum(r["resident"] for r in results)
    print(f"{total} agents in {processes} processes, {REGIONS} regions each, {peers} peers each")
    print(f"  each knows its peers after            {known:8.2f} s, {pairs / known:.0f} fetches/s")
    print(f"  read, bytes a fetch                   {received / pairs:8.0f}")
    print(f"  resident memory, bytes a peer         {memory / pairs:8.0f}")
    print(
        f"  threads an agent                      {sum(r['threads'] for r in results) / total:8.1f}"
    )
    print(f"  connections kept an agent             "
          f"{sum(r['connections'] for r in results) / total:8.1f}")  # fmt: skip
    print(f"  descriptors a process                 {max(r['descriptors'] for r in results):8d}")
    workers[0].ask("change")
    change = workers[0].answer()
    for one in workers:
        one.ask(f"see agent0 {change['address']}")
    seen = [one.answer() for one in workers]
    followers = sum(one["followers"] for one in seen)
    cost = sum(one["bytes"] for one in seen) - received
    print(f"  one change at {followers:4d} followers after     "
          f"{(max(one['at'] for one in seen) - change['at']) * 1e3:8.1f} ms")  # fmt: skip
    print(f"  it costs, bytes a follower            {cost / max(followers, 1):8.0f}")
    for one in workers:
        one.ask("end")
    print(f"  all closed after                      "
          f"{max(one.answer()['closed'] for one in workers):8.2f} s")  # fmt: skip
    for one in workers:
        one.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--peers", type=int, default=0, help="0: all others")
    parser.add_argument("--worker", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
    else:
        peers = options.peers or options.agents - 1
        measure(options.agents, options.processes, min(peers, options.agents - 1))


if __name__ == "__main__":
    main()
