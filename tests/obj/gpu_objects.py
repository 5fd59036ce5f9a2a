"""Memory of GPUs to and from a store: one case a run, for a driver stays open until the process
ends. `gpu_objects.py CASE ENDPOINT PREFIX`; NIXL_CUDA_LIBRARY names the stand-in."""

from __future__ import annotations

import pathlib
import sys
import threading

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "gpu")]

import nixl  # noqa: E402
import numpy as np  # noqa: E402
from gpu_support import GpuMemory, driver  # noqa: E402
from obj_support import Objects, pattern  # noqa: E402

MIB = 1 << 20


def run(store: Objects, op: str, gpus: list[GpuMemory], pieces: list[tuple]) -> None:
    """`pieces`: (key, offset, size, which of `gpus`, place in it). Raises what it ends with."""
    agent = store.agent
    ids = {key: number for number, key in enumerate(dict.fromkeys(p[0] for p in pieces), 1)}
    ends = {key: max(p[1] + p[2] for p in pieces if p[0] == key) for key in ids}
    with (
        agent.register_memory([gpu.region for gpu in gpus], "VRAM"),
        agent.register_memory([(0, ends[key], number, key) for key, number in ids.items()], "OBJ"),
    ):
        near = [(gpus[p[3]].address + p[4], p[2], gpus[p[3]].gpu) for p in pieces]
        handle = agent.initialize_xfer(
            op,
            agent.get_xfer_descs(near, "VRAM"),
            agent.get_xfer_descs([(p[1], p[2], ids[p[0]]) for p in pieces], "OBJ"),
            agent.name,
        )
        try:
            assert "page-locked buffers" in str(agent.explain(handle))
            agent.transfer(handle)
            assert handle.wait(60) == "DONE"
        finally:
            handle.release()


def both_ways(endpoint: str, prefix: str) -> None:
    """Sizes around the buffers' own, from and to odd addresses; host memory is the witness."""
    with_parts = {"multipart_threshold": "6M", "part_size": "5M"}
    store = Objects(endpoint, **with_parts)
    for size in (1, 17, 100_001, MIB, MIB + 1, 3 * MIB + 5, 13 * MIB + 7):
        data = pattern(size, size)
        source, target = GpuMemory(size + 3), GpuMemory(size + 9, fill=0xEE)
        source.set(data, 3)
        key = f"{prefix}size-{size}"
        run(store, "WRITE", [source], [(key, 0, size, 0, 3)])
        assert store.get(key, size) == data
        (seen,) = store.query(key)
        assert seen is not None and seen["size"] == str(size)
        run(store, "READ", [target], [(key, 0, size, 0, 5)])
        assert target.get() == b"\xee" * 5 + data + b"\xee" * 4
        source.free()
        target.free()
    store.close()


def pieces(endpoint: str, prefix: str) -> None:
    """Thousands of small pieces of two GPUs, of one object and of many, in any order."""
    store = Objects(endpoint)
    count, size = 3000, 700
    data = pattern(count * size)
    gpus = [GpuMemory(count * size, device=i) for i in (0, 1)]
    for gpu in gpus:
        gpu.set(data)
    order = np.random.default_rng(5).permutation(count)
    rows = [
        (f"{prefix}one", i * size, size, i // 100 % 2, int(order[i]) * size) for i in range(count)
    ]
    run(store, "WRITE", gpus, rows)
    wanted = b"".join(data[j * size : (j + 1) * size] for j in order.tolist())
    assert store.get(prefix + "one", count * size) == wanted
    for gpu in gpus:
        gpu.set(bytes(count * size))
    run(store, "READ", gpus, rows)
    for i in range(count):
        begin = int(order[i]) * size
        assert gpus[i // 100 % 2].get(begin, size) == data[begin : begin + size]
    some = [(f"{prefix}{i}", 0, size, i % 2, i * size) for i in range(20)]
    for gpu in gpus:
        gpu.set(data)
    run(store, "WRITE", gpus, some)
    assert all(
        store.get(f"{prefix}{i}", size) == data[i * size : (i + 1) * size] for i in range(20)
    )
    store.close()


def merge(endpoint: str, prefix: str) -> None:
    """A part of an object is changed from memory of a GPU."""
    store = Objects(endpoint, partial_write="merge")
    data = pattern(3 * MIB)
    store.put(prefix + "merged", data)
    gpu = GpuMemory(2 * MIB)
    part = pattern(2 * MIB, 9)
    gpu.set(part)
    at = MIB // 2
    run(store, "WRITE", [gpu], [(prefix + "merged", at, 2 * MIB - 10, 0, 10)])
    wanted = data[:at] + part[10:] + data[at + 2 * MIB - 10 :]
    assert store.get(prefix + "merged", 3 * MIB) == wanted
    store.close()


def short(endpoint: str, prefix: str) -> None:
    """An object that ends early: what there is of it is in place, and the error says where."""
    store = Objects(endpoint)
    data = pattern(MIB + 100)
    store.put(prefix + "short", data)
    gpu = GpuMemory(2 * MIB, fill=0xEE)
    try:
        run(store, "READ", [gpu], [(prefix + "short", 0, 2 * MIB, 0, 0)])
        raise AssertionError("it ended well")
    except nixl.nixlError as error:
        assert f"{MIB + 100} of {2 * MIB} bytes" in str(error), error
        assert f"the object ends at {MIB + 100}" in str(error), error
    assert gpu.get() == data + b"\xee" * (MIB - 100)
    store.close()


def held(endpoint: str, prefix: str) -> None:
    """Copies that take their time: nothing is sent, and nothing has ended, before they have."""
    store = Objects(endpoint)
    size = MIB + MIB // 2  # less than both buffers hold, so that nobody waits for room
    data = pattern(size)
    gpu, back = GpuMemory(size), GpuMemory(size)
    gpu.set(data)
    for op, memory in (("WRITE", gpu), ("READ", back)):
        driver().cudaStandinHold(1)
        later = threading.Timer(0.5, driver().cudaStandinHold, (0,))
        later.start()
        run(store, op, [memory], [(prefix + "held", 0, size, 0, 0)])
        seen = store.get(prefix + "held", size) if op == "WRITE" else back.get()
        later.join()
        assert seen == data, op
    store.close()


def errors(endpoint: str, prefix: str) -> None:
    """Copies that fail end the transfer with the object and the cause; the next ones work."""
    store = Objects(endpoint, multipart_threshold="6M", part_size="5M")
    gpu = GpuMemory(12 * MIB)
    data = pattern(12 * MIB)
    gpu.set(data)
    fail = driver().cudaStandinFail
    for size in (2 * MIB, 12 * MIB):  # one request; parts
        key = f"{prefix}f{size}"
        run(store, "WRITE", [gpu], [(key, 0, size, 0, 0)])
        for op, what in (("WRITE", "write"), ("READ", "read")):
            for after in (0, 1):
                fail(b"copy", after, 700)
                try:
                    run(store, op, [gpu], [(key, 0, size, 0, 0)])
                    raise AssertionError("it ended well")
                except nixl.nixlError as error:
                    assert f'OBJ: {what} "' in str(error) and key in str(error), error
                    assert "illegal memory access" in str(error), error
                finally:
                    fail(None, 0, 0)
        assert store.get(key, size) == data[:size], "a write that failed left its object alone"
        run(store, "READ", [gpu], [(key, 0, size, 0, 0)])
        assert gpu.get(0, size) == data[:size]
    host = np.zeros(100, np.uint8)
    try:
        store.agent.register_memory([(host.ctypes.data, 100, 0, "")], "VRAM", ["OBJ"])
        raise AssertionError("host memory was taken for a GPU's")
    except nixl.nixlError as error:
        assert "the address is no memory of a GPU" in str(error), error
    store.close()


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], sys.argv[3])
    print("passed")
