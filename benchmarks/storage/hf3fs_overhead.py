"""What the HF3FS backend adds to the client's own time, against the stand-in of the 3FS client.

    NIXL_BUILD_DIR=build/release PYTHONPATH=build/release/python \\
        python benchmarks/storage/hf3fs_overhead.py

A plain loop (hf3fs_loop.c, compiled with `cc`) and a transfer move the same blocks of one file with
as many requests in flight. Rounds alternate; the median of each is shown, and the difference a
request.
The exit status is 1 where that is above --most microseconds, 77 where nothing can be measured.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import shared_memory

HERE = pathlib.Path(__file__).resolve().parent
SIZE = 4096
DEPTH = 64


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    built = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", "build/release"))
    parser.add_argument("--library", default=str(built / "lib/standins/libhf3fs_api_shared.so"))
    parser.add_argument("--count", type=int, default=10_000, help="descriptors a transfer (10000)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--most", type=float, default=2.0, help="microseconds a request (2)")
    return parser.parse_args()


def compiled(folder: str) -> str:
    program = os.path.join(folder, "hf3fs_loop")
    command = ["cc", "-O2", "-o", program, str(HERE / "hf3fs_loop.c"), "-ldl"]
    if subprocess.run(command).returncode != 0:
        print("SKIP: the plain loop needs a C compiler", file=sys.stderr)
        raise SystemExit(77)
    return program


class Transfers:
    """Ours: one transfer of so many blocks, by a memory configuration."""

    def __init__(self, mount: str, path: str, count: int, config: str, memory: int) -> None:
        import nixl

        self.agent = nixl.nixl_agent(f"3fs-{config}", nixl.nixl_agent_config(backends=[]))
        parameters = {"mount_point": mount, "mem_config": config, "iopool_size": str(DEPTH)}
        self.agent.create_backend("HF3FS", parameters)
        self.fd = os.open(path, os.O_RDWR)
        self.agent.register_memory([(memory, count * SIZE, 0, "")], "DRAM")
        self.agent.register_memory([(0, count * SIZE, self.fd, "")], "FILE")
        near = [(memory + i * SIZE, SIZE, 0) for i in range(count)]
        far = [(i * 7 % count * SIZE, SIZE, self.fd) for i in range(count)]
        self.handles = {
            operation: self.agent.initialize_xfer(
                operation.upper(),
                self.agent.get_xfer_descs(near, "DRAM"),
                self.agent.get_xfer_descs(far, "FILE"),
                self.agent.name,
            )
            for operation in ("read", "write")
        }

    def seconds(self, operation: str) -> float:
        handle, start = self.handles[operation], time.perf_counter()
        self.agent.transfer(handle)
        if handle.wait(60) != "DONE":
            raise RuntimeError("the transfer failed")
        return time.perf_counter() - start


def main() -> int:
    options = arguments()
    if not os.path.exists(options.library):
        print(f"SKIP: there is no {options.library}; build the tests", file=sys.stderr)
        return 77
    os.environ["NIXL_HF3FS_LIBRARY"] = options.library
    shared = shared_memory.SharedMemory(create=True, size=options.count * SIZE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return measure(options, folder, shared)
    finally:
        shared.unlink()


def measure(options: argparse.Namespace, folder: str, shared: shared_memory.SharedMemory) -> int:
    import numpy as np

    mount = os.path.join(os.path.realpath(folder), "mount")
    os.makedirs(os.path.join(mount, "3fs-virt", "iovs"))
    path, program = os.path.join(mount, "f"), compiled(folder)
    pathlib.Path(path).write_bytes(os.urandom(options.count * SIZE))
    address = np.frombuffer(shared.buf, np.uint8).ctypes.data
    ours = {c: Transfers(mount, path, options.count, c, address) for c in ("dram", "dram_zc")}
    worst = 0.0
    for operation in ("read", "write"):
        words = [options.library, mount, path, operation, str(options.count), str(SIZE), str(DEPTH)]
        times: dict[str, list[float]] = {"plain loop": []} | {c: [] for c in ours}
        for _ in range(options.rounds):
            done = subprocess.run([program, *words], check=True, capture_output=True, text=True)
            times["plain loop"].append(float(done.stdout))
            for config, transfers in ours.items():
                times[config].append(transfers.seconds(operation))
        each = {k: statistics.median(v) / options.count * 1e6 for k, v in times.items()}
        for config in ours:
            added = each[config] - each["plain loop"]
            worst = max(worst, added)
            print(f"{operation:5s} {config:7s} {each[config]:6.2f} us a request, plain loop "
                  f"{each['plain loop']:6.2f}, adds {added:+.2f}")  # fmt: skip
    del ours
    return 1 if worst > options.most else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # the shared memory still has views
