"""Rows of metadata fetched by address: from one agent of another process, and of many agents from
each other."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

from rows_base import Metric, Row, at_most, quick

CROWD = pathlib.Path(__file__).with_name("crowd.py")
AGENTS, PROCESSES = (6, 2) if quick() else (200, 8)
PATIENCE = 5 if quick() else 120  # seconds; what has not ended by then is noted as this
FETCHES = 2 if quick() else 5


class Crowd:
    """Agents in processes of their own."""

    def __init__(self, side: str, agents: int, processes: int, regions: int) -> None:
        self.processes = []
        share = agents // processes
        for first in range(0, agents, share):
            words = [side, first, share, regions, PATIENCE]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(CROWD), *map(str, words)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        ports = [port for told in self.answers() for port in told["ports"]]
        self.places = [[f"agent{number}", port] for number, port in enumerate(ports)]
        self.say(json.dumps(self.places))

    def say(self, line: str) -> None:
        for process in self.processes:
            process.stdin.write(line + "\n")
            process.stdin.flush()

    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(process.stdout.readline()) for process in self.processes]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


class Fetch(Row):
    """A new agent asks for it and polls, as the established examples do; then it forgets and asks
    again."""

    name = "exchange_fetch"
    title = "metadata of an agent with 1 region, by address"
    regions = 1
    metrics = (
        Metric("first fetch until it is known", "ms", (at_most("peer", 0.02), at_most("value", 2))),
        Metric("fetched again", "ms", (at_most("peer", 0.02), at_most("value", 2))),
    )

    def setup(self) -> None:
        self.crowd = Crowd(self.side, 1, 1, self.regions)
        self.kept: list[Any] = []

    def measure(self) -> None:
        import crowd

        port = self.crowd.places[0][1]
        own = crowd.free_ports(len(self.kept) + 1, 1)[0]
        agent = crowd.make(self.side, f"reader{len(self.kept)}", own)
        self.kept.append(agent)
        time.sleep(0.05)
        for number in range(FETCHES):
            start = time.perf_counter()
            agent.fetch_remote_metadata("agent0", "127.0.0.1", port)
            while not agent.check_remote_metadata("agent0"):
                if time.perf_counter() - start > PATIENCE:
                    raise RuntimeError("never came")
                time.sleep(0.00005)
            spent = (time.perf_counter() - start) * 1e3
            self.note(self.metrics[min(number, 1)].name, spent)
            agent.remove_remote_agent("agent0")

    def close(self) -> None:
        self.crowd.close()


class FetchMany(Fetch):
    name = "exchange_fetch_10000"
    title = "metadata of an agent with 10,000 regions, by address"
    regions = 100 if quick() else 10_000
    metrics = (
        Metric("first fetch until it is known", "ms", (at_most("peer", 0.02),)),
        Metric("fetched again", "ms", (at_most("peer", 0.02),)),
    )


class Mutual(Row):
    """Each fetches all others."""

    name = "exchange_mutual"
    title = f"{AGENTS} agents in {PROCESSES} processes learn of each other, by address"
    fresh = True
    most_rounds = 2
    metrics = (
        Metric("until all know all", "s", (at_most("peer", 0.05),)),
        Metric("of all pairs", "%", higher=True),
        Metric("threads an agent", ""),
        Metric("memory an agent", "MB"),
    )

    def setup(self) -> None:
        self.crowd = Crowd(self.side, AGENTS, PROCESSES, 1)

    def measure(self) -> None:
        self.crowd.say("round")
        told = self.crowd.answers()
        self.note("until all know all", max(one["seconds"] for one in told))
        pairs = sum(one["known"] for one in told)
        self.note("of all pairs", 100 * pairs / (AGENTS * (AGENTS - 1)))
        self.note("threads an agent", sum(one["threads"] for one in told) / AGENTS)
        self.note("memory an agent", sum(one["memory"] for one in told) / AGENTS / 1e6)

    def close(self) -> None:
        self.crowd.close()


EXCHANGE_ROWS: list[type[Row]] = [Fetch, FetchMany, Mutual]
