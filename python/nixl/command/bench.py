"""nixl bench: how fast two processes of this host move bytes, by every lane there is.

Each size is written (or read) again and again for a while; the bytes are compared afterwards. The
whole suite, for other hosts, GPUs, files and objects, is in the source's folder benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

SIZES = "64,4K,64K,1M,64M"
LANES = ("host", "stream")


def size_of(word: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMG]?)(?:i?B)?", word.strip(), re.IGNORECASE)
    if not found or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{word!r} is no size, such as 4096, 4K, 1M")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[found[2].upper()]


def sizes_of(words: str) -> list[int]:
    return [size_of(word) for word in words.split(",")]


def seconds_of(word: str) -> float:
    seconds = float(word)
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{word}: must be more than 0 and at most 3600 seconds")
    return seconds


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nixl bench", description=__doc__)
    parser.add_argument(
        "--sizes", type=sizes_of, default=SIZES, help=f"bytes of a transfer ({SIZES})"
    )
    parser.add_argument("--operation", choices=["WRITE", "READ"], default="WRITE")
    parser.add_argument("--lanes", default=",".join(LANES), help="lanes to try (host,stream)")
    parser.add_argument("--seconds", type=seconds_of, default=0.5, help="for each size (0.5)")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each size")
    return parser.parse_args(arguments)


def agent_with(name: str, lane: str, size: int) -> tuple[Any, Any]:
    import nixl

    config = nixl.nixl_agent_config(lanes=lane)
    agent = nixl.nixl_agent(name, config)
    memory = nixl.alloc(size)
    agent.register_memory([(memory.address, size, 0, "")], "DRAM")
    return agent, memory


def far_side(pipe: Connection, lane: str, size: int) -> None:
    """Gives its memory away until it is told to end; answers with what lies in it."""
    try:
        agent, memory = agent_with("bench-far", lane, size)
        memory[:] = b"\x5a" * size
        pipe.send((agent.get_agent_metadata(), memory.address))
        while (asked := pipe.recv()) is not None:
            pipe.send(memory[:asked])
        agent.close()
    except EOFError:
        pass  # the other side has ended
    except Exception as error:
        pipe.send(error if isinstance(error, RuntimeError) else RuntimeError(str(error)))


def answer(pipe: Connection) -> Any:
    told = pipe.recv()
    if isinstance(told, Exception):
        raise told
    return told


def measure(agent: Any, near: int, far: int, size: int, options: argparse.Namespace) -> list[float]:
    """Seconds of each transfer of one size."""
    handle = agent.initialize_xfer(
        options.operation,
        agent.get_xfer_descs([(near, size, 0)], "DRAM"),
        agent.get_xfer_descs([(far, size, 0)], "DRAM"),
        "bench-far",
    )
    took: list[float] = []
    try:
        end = time.perf_counter() + options.seconds
        while not took or time.perf_counter() < end:
            start = time.perf_counter()
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            took.append(time.perf_counter() - start)
            if state != "DONE":
                raise RuntimeError(f"a transfer ended as {state}: {handle.error}")
    finally:
        handle.release()
    return took[len(took) // 10 :]  # the first warm up


def run_lane(lane: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    most = max(options.sizes)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=far_side, args=(there, lane, most), daemon=True)
    process.start()
    there.close()
    rows = []
    try:
        agent, memory = agent_with("bench-near", lane, most)
        with agent:
            metadata, far = answer(here)
            agent.add_remote_agent(metadata)
            for size in options.sizes:
                memory[:size] = (b"\xa5" if options.operation == "WRITE" else b"\0") * size
                took = measure(agent, memory.address, far, size, options)
                here.send(size)
                if answer(here) != memory[:size]:
                    raise RuntimeError(f"{size} bytes by lane {lane}: they differ at both ends")
                took.sort()
                middle = statistics.median(took)
                p99 = took[min(len(took) - 1, int(len(took) * 0.99))]
                rows.append(
                    {
                        "lane": lane,
                        "operation": options.operation,
                        "bytes": size,
                        "transfers": len(took),
                        "p50_us": middle * 1e6,
                        "p99_us": p99 * 1e6,
                        "gb_per_s": size / middle / 1e9,
                    }
                )
        here.send(None)
    finally:
        here.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
    return rows


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if isinstance(options.sizes, str):
        options.sizes = sizes_of(options.sizes)
    status = 0
    if not options.json:
        print(f"{'lane':<8} {'':<5} {'bytes':>11} {'p50, us':>10} {'p99, us':>10} {'GB/s':>8}")
    for lane in options.lanes.split(","):
        try:
            rows = run_lane(lane.strip(), options)
        except (RuntimeError, EOFError, BrokenPipeError) as error:
            print(f"nixl bench: lane {lane}: {error or 'the other process ended'}", file=sys.stderr)
            status = 1
            continue
        for row in rows:
            if options.json:
                print(json.dumps(row))
            else:
                print(
                    f"{row['lane']:<8} {row['operation']:<5} {row['bytes']:>11,}"
                    f" {row['p50_us']:>10.2f} {row['p99_us']:>10.2f} {row['gb_per_s']:>8.3f}"
                )
    return status


if __name__ == "__main__":
    sys.exit(main())
