"""The limits of the rows between two hosts: iperf3, and the plain sender of yardstick_net.c.

As a program it is the far side of the plain sender: limits.py ADDRESS BYTES BLOCKS BLOCK. It prints
its port, and serves one connection after the other until its standard input ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
READ, SCATTERED = 1, 2


def library() -> Any:
    loaded = ctypes.CDLL(os.environ["NIXL_YARDSTICK"])
    place, size = ctypes.c_void_p, ctypes.c_size_t
    loaded.serve_moves.argtypes = [ctypes.c_int, place, place]
    loaded.ask_move.argtypes = [ctypes.c_int, ctypes.c_int, place, size, size]
    loaded.ask_move.restype = ctypes.c_double
    loaded.echo_rounds.argtypes = [ctypes.c_int, ctypes.c_int, place, size, size, place]
    return loaded


def scattered_places(base: int, blocks: int, block: int, seed: int) -> Any:
    """So many blocks in a random order, over four times the room that they need."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(4 * blocks)[:blocks].astype(np.uint64)
    return (order * np.uint64(block) + np.uint64(base)).astype(np.uint64)


def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **options)


def congestion() -> str:
    """The algorithm that ours uses between near hosts: what the system says, but Reno for BBR."""
    chosen = pathlib.Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return "reno" if chosen.startswith("bbr") else chosen


def tuned(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion().encode())
    return connection


class PlainSender:
    """Asks a process on the far host to take or send blocks, over one connection."""

    def __init__(self, prefix: list[str], address: str, nbytes: int, blocks: int, block: int):
        words = [address, str(nbytes), str(blocks), str(block)]
        self.process = start([*prefix, sys.executable, str(HERE / "limits.py"), *words])
        self.port = int(self.process.stdout.readline())
        self.address = address
        self.library = library()
        self.main = self.dial()

    def dial(self) -> socket.socket:
        return tuned(socket.create_connection((self.address, self.port)))

    def move(self, kind: int, places: Any, size: int) -> float:
        """Seconds for blocks at these addresses."""
        words = (self.main.fileno(), kind, places.ctypes.data, len(places), size)
        spent = self.library.ask_move(*words)
        if spent < 0:
            raise RuntimeError(f"plain sender: {os.strerror(int(-spent))}")
        return float(spent)

    def echo(self, kind: int, place: int, size: int, rounds: int) -> list[float]:
        """Seconds of each round, by a caller that spins and a thread that receives."""
        import numpy as np

        spent = np.zeros(rounds)
        with self.dial() as connection:
            words = (connection.fileno(), kind, place, size, rounds, spent.ctypes.data)
            error = self.library.echo_rounds(*words)
        if error:
            raise RuntimeError(f"echo: {os.strerror(error)}")
        return [float(one) for one in spent]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Iperf:
    """An iperf3 server on the far host, asked once a round."""

    PORT = 5201

    def __init__(self, prefix: list[str], address: str) -> None:
        self.address = address
        self.program = shutil.which("iperf3")
        if self.program is None:
            return
        quiet = {"stderr": subprocess.DEVNULL}
        command = [*prefix, self.program, "-s", "-B", address, "-p", str(self.PORT), "--forceflush"]
        self.process = start(command, **quiet)
        deadline = time.monotonic() + 10
        while self.process.poll() is None and time.monotonic() < deadline:
            line = self.process.stdout.readline()
            if "listening" in line:
                break
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def rate(self, read: bool, connections: int, seconds: float) -> float:
        """GB/s that arrived; 0 where there is no iperf3."""
        if self.program is None:
            return 0.0
        command = [self.program, "-c", self.address, "-p", str(self.PORT), "-J"]
        command += ["-P", str(connections), "-t", str(max(1, round(seconds)))]
        command += ["-C", congestion()]
        command += ["-R"] if read else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        answer = json.loads(done.stdout)
        if "error" in answer:
            raise RuntimeError(f"iperf3: {answer['error']}")
        return float(answer["end"]["sum_received"]["bits_per_second"]) / 8e9

    def close(self) -> None:
        if self.program is not None:
            self.process.kill()
            self.process.wait()


def main() -> int:
    import numpy as np

    address, nbytes, blocks, block = sys.argv[1], *map(int, sys.argv[2:5])
    memory = np.zeros(nbytes, dtype=np.uint8)
    places = scattered_places(memory.ctypes.data, blocks, block, 4)
    serve = library().serve_moves
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    with socket.create_server((address, 0), backlog=16) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            tuned(connection)
            words = (connection, serve, memory.ctypes.data, places.ctypes.data)
            threading.Thread(target=serve_one, args=words, daemon=True).start()


def serve_one(connection: socket.socket, serve: Any, memory: int, places: int) -> None:
    with connection:
        serve(connection.fileno(), memory, places)


if __name__ == "__main__":
    raise SystemExit(main())
