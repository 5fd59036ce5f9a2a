"""SGLang's own nixl/conn.py, as published, over this package: rooms between two processes.

Run as a program: `sglang_kv.py PREFILL_TP DECODE_TP` starts every rank as its child and compares
the decode ranks' pages with those of the prefill ranks. Caches are in memory of a GPU where
NIXL_CUDA_LIBRARY names a driver, which unequal numbers of ranks need. The connector, its bootstrap
server and its messages are SGLang's code; hollow is the runtime around them
(benchmarks/versus/sglang_conn.py).
Exits with 0 when everything was as it should be.
"""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "benchmarks" / "versus"), str(ROOT / "tests" / "gpu")]
ON_GPU = "NIXL_CUDA_LIBRARY" in os.environ
LAYERS, HEADS, DIM, PAGE, PAGES, AUX = 3, 4, 8, 4, 24, 6
ROOMS = {11: (4, [3]), 12: (2, [2]), 13: (6, [2, 3, 1])}  # aux slot, pages of each chunk
PATIENCE = 60.0


def fields(rank: int, size: int, fill: bool) -> tuple[dict, list, list]:
    heads = HEADS // size
    whole = np.random.default_rng(4).integers(1, 200, (2 * LAYERS, PAGES, PAGE, HEADS, DIM))
    kv = np.zeros((2 * LAYERS, PAGES, PAGE, heads, DIM), np.uint8)
    aux = np.zeros((AUX + 1, 64), np.uint8)
    if fill:
        kv[...] = whole[:, :, :, rank * heads : (rank + 1) * heads]
        aux[...] = np.arange(1, AUX + 2, dtype=np.uint8)[:, None]
    parts = list(kv)
    on_gpu = [of_gpu(part) for part in parts] if ON_GPU else []
    told = {
        "engine_rank": rank,
        "kv_data_ptrs": [one.address for one in on_gpu] or [part.ctypes.data for part in parts],
        "kv_data_mem_kinds": ["VRAM" if ON_GPU else "DRAM"] * len(parts),
        "kv_data_lens": [part.nbytes for part in parts],
        "kv_item_lens": [part[0].nbytes for part in parts],
        "aux_data_ptrs": [aux.ctypes.data],
        "aux_data_lens": [aux.nbytes],
        "aux_item_lens": [aux[0].nbytes],
        "kv_head_num": heads,
        "total_kv_head_num": HEADS,
        "page_size": PAGE,
    }
    wanted = whole[:, :, :, rank * heads : (rank + 1) * heads]
    return told, [kv, aux, on_gpu], [wanted]


def of_gpu(part: np.ndarray):
    import gpu_support

    made = gpu_support.GpuMemory(part.nbytes)
    made.set(part.tobytes())
    return made


def places() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(9)
    here, there = random.permutation(PAGES), random.permutation(PAGES)
    out, at = {}, 0
    for room, (_, chunks) in ROOMS.items():
        count = sum(chunks)
        out[room] = tuple(order[at : at + count].astype(np.int32) for order in (here, there))
        at += count
    return out


def until(ends: dict, state: int, poll) -> None:
    limit = time.monotonic() + PATIENCE
    while any(end.poll() != state for end in ends.values()):
        for end in ends.values():
            if end.poll() == 0:
                end.failure_exception()
        assert time.monotonic() < limit, {room: end.poll() for room, end in ends.items()}
        poll()


def rank(mode: str, at: int, size: int, port: int) -> None:
    import sglang_conn

    sglang = sglang_conn.load(size, at, "127.0.0.1", port, slices=ON_GPU)
    told, memory, wanted = fields(at, size, mode == "prefill")
    if mode == "prefill" and at == 0:
        server = sglang.conn.NixlKVBootstrapServer("127.0.0.1", port)
        server.thread.join(1.0)
    args = sglang_conn.kv_args(sglang, told)
    manager = sglang.conn.NixlKVManager(args, sglang.Mode[mode.upper()], None, False)
    address, ends = f"127.0.0.1:{port}", {}

    def rest() -> None:
        time.sleep(0.001)  # sleeps: a scheduler's other work

    if mode == "prefill":
        for room in ROOMS:
            ends[room] = sglang.conn.NixlKVSender(manager, address, room)
        until(ends, 2, rest)
        for room, (aux, chunks) in ROOMS.items():
            ends[room].init(sum(chunks), aux)
            start, (here, _) = 0, places()[room]
            for count in chunks:
                ends[room].send(here[start : start + count])
                start += count
    else:
        limit = time.monotonic() + PATIENCE
        while not manager.try_ensure_parallel_info(address):
            assert time.monotonic() < limit, "no prefill rank has registered"
            rest()
        for room, (aux, _) in ROOMS.items():
            ends[room] = sglang.conn.NixlKVReceiver(manager, address, room)
            ends[room].init(0)
            ends[room].send_metadata(places()[room][1], aux - 1)
    until(ends, 4, rest)
    if mode == "decode":
        kv, aux_memory, on_gpu = memory
        for part, one in zip(kv, on_gpu, strict=False):
            part[...] = np.frombuffer(one.get(), np.uint8).reshape(part.shape)
        for room, (aux, _) in ROOMS.items():
            here, there = places()[room]
            assert np.array_equal(kv[:, there], wanted[0][:, here]), room
            assert (aux_memory[aux - 1] == aux + 1).all(), room
    print("as it should be", flush=True)
    sys.stdin.read()  # stays until all are done


def main() -> None:
    words = sys.argv[1:]
    if words[0] in ("prefill", "decode"):
        rank(words[0], *(int(word) for word in words[1:]))
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for mode, size in zip(("prefill", "decode"), (int(word) for word in words), strict=True):
        for at in range(size):
            command = [sys.executable, __file__, mode, str(at), str(size), str(port)]
            children.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
    try:
        for child in children:
            lines = iter(child.stdout.readline, "")
            assert any("as it should be" in line for line in lines), json.dumps(child.args)
    finally:
        for child in children:
            child.stdin.close()
            child.kill()
            child.wait()
    print("as it should be", flush=True)


if __name__ == "__main__":
    main()
