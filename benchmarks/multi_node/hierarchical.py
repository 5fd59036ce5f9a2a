"""Patterns among several processes of one host: who writes to or reads from whom, all at once.

python benchmarks/multi_node/hierarchical.py --pattern many_to_one --ranks 4
"""

from __future__ import annotations

import multiprocessing
import pathlib
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from nixl._api import nixl_agent, nixl_agent_config

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from utils.config import Settings, make_parser, settings_of  # noqa: E402
from utils.metrics import Result, report  # noqa: E402

PATTERNS = ("pairwise", "many_to_one", "one_to_many", "tp")


def targets_of(pattern: str, rank: int, ranks: int) -> list[int]:
    """To whom a rank writes, or from whom it reads; tp is every rank with every other."""
    if pattern == "pairwise":
        return [rank + 1] if rank % 2 == 0 and rank + 1 < ranks else []
    if pattern == "many_to_one":
        return [0] if rank else []
    if pattern == "one_to_many":
        return [] if rank else list(range(1, ranks))
    return [other for other in range(ranks) if other != rank]


def work(
    pipe: Connection, rank: int, ranks: int, size: int, operation: str, targets: list[int]
) -> None:
    """One rank. WRITE: into its own row of each target; READ: each target's bytes into the
    target's row here."""
    with nixl_agent(f"rank{rank}", nixl_agent_config(backends=["UCX"])) as agent:
        mine = expected(rank, size)
        rows = np.zeros((ranks, size), dtype=np.uint8)
        agent.register_memory([mine])
        agent.register_memory(rows)
        pipe.send((agent.get_agent_metadata(), rows.ctypes.data, mine.ctypes.data))
        others = pipe.recv()
        handles = []
        for target in targets:
            metadata, its_rows, its_own = others[target]
            peer = agent.add_remote_agent(metadata)
            write = operation == "WRITE"
            local = agent.get_xfer_descs([mine if write else rows[target]])
            place = its_rows + rank * size if write else its_own
            remote = agent.get_xfer_descs([(place, size, 0)], "DRAM")
            handles.append(agent.initialize_xfer(operation, local, remote, peer))
        pipe.send("ready")
        warmup, iterations = pipe.recv()
        for _ in range(warmup):
            step(agent, handles)
        seconds, cpu, start = [], time.process_time(), time.perf_counter()
        for _ in range(iterations if handles else 0):
            before = time.perf_counter()
            step(agent, handles)
            seconds.append(time.perf_counter() - before)
        spent = time.perf_counter() - start
        pipe.send((seconds, (time.process_time() - cpu) / spent * 100))
        filled = pipe.recv()
        pipe.send(all((rows[other] == expected(other, size)).all() for other in filled))
        pipe.recv()


def expected(rank: int, size: int) -> Any:
    return np.random.default_rng(rank).integers(0, 256, size, dtype=np.uint8)


def step(agent: Any, handles: list[Any]) -> None:
    """Posts to all targets, then waits for all."""
    for handle in handles:
        agent.transfer(handle)
    for handle in handles:
        handle.wait(timeout=60)


def measure(pattern: str, ranks: int, size: int, settings: Settings) -> Result:
    context = multiprocessing.get_context("spawn")
    edges = [targets_of(pattern, rank, ranks) for rank in range(ranks)]
    pipes, processes = [], []
    for rank in range(ranks):
        ours, theirs = context.Pipe()
        words = (theirs, rank, ranks, size, settings.operation, edges[rank])
        process = context.Process(target=work, args=words, daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    tell(pipes, [[pipe.recv() for pipe in pipes]] * ranks)
    for pipe in pipes:
        pipe.recv()
    tell(pipes, [(settings.warmup, settings.iterations)] * ranks)
    figures = [pipe.recv() for pipe in pipes]
    written = [[s for s in range(ranks) if rank in edges[s]] for rank in range(ranks)]
    tell(pipes, written if settings.operation == "WRITE" else edges)
    verdicts = [pipe.recv() for pipe in pipes]
    tell(pipes, ["end"] * ranks)
    for process in processes:
        process.join(30)
    # A step moves bytes between one rank and all of its targets.
    width = max(len(targets) for targets in edges)
    seconds = [one for spent, _ in figures for one in spent]
    cpu = [percent for spent, percent in figures if spent]  # of those that post
    return Result(size * width, seconds, sum(cpu) / len(cpu), all(verdicts))


def tell(pipes: list[Connection], messages: list[Any]) -> None:
    for pipe, message in zip(pipes, messages, strict=True):
        pipe.send(message)


def main() -> int:
    parser = make_parser("patterns among processes of one host", "64KB,1MB", 100)
    parser.add_argument("--pattern", choices=PATTERNS, default="many_to_one")
    parser.add_argument("--ranks", type=int, default=4)
    options = parser.parse_args()
    if options.ranks < 2:
        raise SystemExit("--ranks must be at least 2")
    settings = settings_of(options)
    results = [measure(options.pattern, options.ranks, size, settings) for size in settings.sizes]
    head = {"Backend": "UCX", "Pattern": f"{options.pattern}, {options.ranks} ranks, per initiator"}
    print(report(head | {"Operation": settings.operation}, results))
    return 1 if any(not result.verified for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
