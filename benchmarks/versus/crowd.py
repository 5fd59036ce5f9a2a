"""Some of many agents that learn of each other through their listeners.

Started by rows_exchange.py, under the interpreter of one side: crowd.py SIDE FIRST COUNT REGIONS.
Writes {"ports": [...]} and reads all places, [[name, port], ...]; then for each line "round": every
agent forgets and fetches every other one, and {"seconds", "known", "threads", "memory"} is written.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time


def free_ports(first: int, count: int) -> list[int]:
    """Below those that the system gives to whoever connects or asks for any: these are taken in the
    moment between finding them free and listening there. No two processes look at the same."""
    found: list[int] = []
    for port in range(10_000 + 60 * first, 10_000 + 60 * (first + count)):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports")


def make(side: str, name: str, port: int):
    from nixl._api import nixl_agent, nixl_agent_config

    more = {"listen_host": "127.0.0.1", "peer_timeout": 600} if side == "ours" else {}
    # A port that was free a moment ago may be somebody's now; ours lets the system choose.
    port = 0 if side == "ours" else port
    return nixl_agent(name, nixl_agent_config(False, True, port, backends=["UCX"], **more))


def status(word: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(word))


def learn(agents: list, places: list, patience: float) -> tuple[float, int]:
    """Seconds until every agent knew every other one, and how many that were."""
    start = time.perf_counter()
    missing = []
    for agent in agents:
        for name, port in places:
            if name != agent.name:
                agent.fetch_remote_metadata(name, "127.0.0.1", port)
                missing.append((agent, name))
    wanted = len(missing)
    while missing and time.perf_counter() - start < patience:
        # The newest first, and no further: asking after thousands again and again would take the
        # processors from those who answer.
        while missing and known(*missing[-1]):
            missing.pop()
        time.sleep(0.002)
    left = sum(not known(agent, name) for agent, name in missing)
    return time.perf_counter() - start, wanted - left


def known(agent, name: str) -> bool:
    return agent.check_remote_metadata(name)


def main() -> None:
    side, first, count, regions, patience = sys.argv[1], *map(int, sys.argv[2:6])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import numpy as np

    memory = np.zeros(max(regions, 1) * 64, np.uint8)
    agents, ports = [], free_ports(first, count)
    for number, port in enumerate(ports):
        agents.append(make(side, f"agent{first + number}", port))
        rows = [(memory.ctypes.data + 64 * i, 64, 0, "") for i in range(regions)]
        if rows:
            agents[-1].register_memory(rows, "DRAM")
    if side == "ours":
        ports = [agent.listen_port for agent in agents]
    print(json.dumps({"ports": ports}), file=answers, flush=True)
    places = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        if line.strip() != "round":
            break
        for agent in agents:
            for name, _ in places:
                if name != agent.name and known(agent, name):
                    agent.remove_remote_agent(name)
        seconds, reached = learn(agents, places, float(patience))
        told = {"seconds": seconds, "known": reached, "threads": status("Threads")}
        told["memory"] = status("VmRSS") << 10
        print(json.dumps(told), file=answers, flush=True)
    answers.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
