"""How fast: each copy beside the driver's own, in one run, as a ratio. Printed, never asserted."""

from __future__ import annotations

import ctypes
import functools
import time

import gpu_support
import nixl
import pytest

SIZES = (1 << 20, 16 << 20, 256 << 20)


def median(call, times: int = 7) -> float:
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return sorted(taken)[times // 2]


def show(capsys, text: str) -> None:
    with capsys.disabled():
        print(f"\n{text}", flush=True)


@pytest.mark.parametrize("pair", ["gpu-gpu", "host-gpu", "gpu-host"])
def test_copies_beside_the_drivers(make_agent, gpu, capsys, pair: str) -> None:
    agent = make_agent()
    sizes = SIZES[:1] if gpu_support.is_standin() else SIZES
    for size in sizes:
        near = gpu(size)
        host = nixl.alloc(size) if "host" in pair else None
        far = None if host is not None else gpu(size)
        regs = [agent.register_memory(one) for one in (near, host or far)]
        one, two = agent.get_xfer_descs(near), agent.get_xfer_descs(host or far)
        to_host = pair == "gpu-host"
        handle = agent.initialize_xfer(
            "READ" if pair == "host-gpu" else "WRITE", one, two, agent.name
        )
        other = host.address if host is not None else far.address
        to, source = (other, near.address) if to_host or far else (near.address, other)

        def ours(handle=handle) -> None:
            agent.transfer(handle)
            while (state := agent.check_xfer_state(handle)) == "PROC":
                pass
            assert state == "DONE"

        ours()
        gpu_support.copy(to, source, size)
        driver = median(functools.partial(gpu_support.copy, to, source, size))
        mine = median(ours)
        show(
            capsys,
            f"FIGURE {pair} {size >> 20} MiB: nixl {size / mine / 1e9:.1f} GB/s,"
            f" cuMemcpy {size / driver / 1e9:.1f} GB/s, ratio {driver / mine:.2f}",
        )
        agent.release_xfer_handle(handle)
        for reg in regs:
            agent.deregister_memory(reg)
        near.free()
        if far is not None:
            far.free()


def test_many_small_pieces(make_agent, gpu, capsys) -> None:
    agent = make_agent()
    count, piece = 10_000, 4096
    near, far = gpu(count * piece * 2), gpu(count * piece * 2)
    agent.register_memory(near)
    agent.register_memory(far)

    def descs(memory):
        return agent.get_xfer_descs(
            [(memory.address + i * piece * 2, piece, 0) for i in range(count)], "VRAM"
        )

    handle = agent.initialize_xfer("WRITE", descs(near), descs(far), agent.name)

    def ours() -> None:
        agent.transfer(handle)
        while (state := agent.check_xfer_state(handle)) == "PROC":
            pass
        assert state == "DONE"

    ours()
    mine = median(ours, 5)
    size = ctypes.c_size_t(piece)
    cuda = gpu_support.driver()
    sources = [gpu_support.Pointer(near.address + i * piece * 2) for i in range(count)]
    targets = [gpu_support.Pointer(far.address + i * piece * 2) for i in range(count)]

    def loop() -> None:
        with gpu_support.Current(0):
            for to, source in zip(targets, sources, strict=True):
                cuda.cuMemcpyDtoDAsync_v2(to, source, size, None)
            gpu_support.check(cuda.cuCtxSynchronize(), "cuCtxSynchronize")

    text = f"FIGURE {count} pieces of {piece} bytes: nixl {mine * 1e6 / count:.2f} us each"
    if not gpu_support.is_standin():
        loop()
        text += f", a loop of cuMemcpyDtoDAsync from Python {median(loop, 5) * 1e6 / count:.2f} us"
    show(capsys, text)
    agent.release_xfer_handle(handle)
