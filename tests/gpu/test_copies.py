"""GPU memory inside one process: registration, copies of all pairs, errors, files."""

from __future__ import annotations

import ctypes
import os
import time

import gpu_support
import nixl
import pytest
from gpu_support import pattern

SIZE = 3 << 20


def finish(agent, handle, seconds: float = 60) -> str:
    """Polls a transfer to its end, as clients do."""
    end = time.monotonic() + seconds
    state = agent.check_xfer_state(handle)
    while state == "PROC" and time.monotonic() < end:
        state = agent.check_xfer_state(handle)
    return state


class Host:
    """Host memory with the same face as GpuMemory."""

    def __init__(self, size: int) -> None:
        self.size, self.gpu = size, 0
        self._memory = ctypes.create_string_buffer(size)
        self.address = ctypes.addressof(self._memory)

    @property
    def region(self):
        return (self.address, self.size, 0, "")

    def get(self, start: int = 0, size: int | None = None) -> bytes:
        size = self.size - start if size is None else size
        return ctypes.string_at(self.address + start, size)

    def set(self, data: bytes, start: int = 0) -> None:
        ctypes.memmove(self.address + start, data, len(data))


def transfer(agent, op, local, remote, pieces, peer=None, notif=b"") -> str:
    """Moves (local offset, remote offset, size) pieces between two memories."""
    kind = {True: "DRAM", False: "VRAM"}
    near = [(local.address + a, size, local.gpu) for a, _, size in pieces]
    far = [(remote.address + b, size, remote.gpu) for _, b, size in pieces]
    near = agent.get_xfer_descs(near, kind[isinstance(local, Host)])
    far = agent.get_xfer_descs(far, kind[isinstance(remote, Host)])
    handle = agent.initialize_xfer(op, near, far, peer or agent.name, notif)
    agent.transfer(handle)
    state = finish(agent, handle)
    agent.release_xfer_handle(handle)
    return state


@pytest.mark.parametrize("op", ["READ", "WRITE"])
@pytest.mark.parametrize("pair", ["host-gpu", "gpu-host", "gpu-gpu", "gpu-other"])
def test_bytes_arrive(make_agent, gpu, request, pair: str, op: str) -> None:
    other = request.getfixturevalue("other_gpu") if pair == "gpu-other" else 0
    make = {"host": lambda: Host(SIZE), "gpu": lambda: gpu(SIZE), "other": lambda: gpu(SIZE, other)}
    left, _, right = pair.partition("-")
    local, remote = make[left](), make[right]()
    agent = make_agent()
    for memory in (local, remote):
        agent.register_memory([memory.region], "DRAM" if isinstance(memory, Host) else "VRAM")
    source, target = (local, remote) if op == "WRITE" else (remote, local)
    source.set(pattern(SIZE))
    assert transfer(agent, op, local, remote, [(0, 0, SIZE)]) == "DONE"
    assert target.get() == pattern(SIZE)
    # Many pieces in another order, of odd sizes.
    target.set(bytes(SIZE))
    pieces = [(i * 1000 + 3, (2999 - i) * 1000 + 7, 900 + i % 90) for i in range(3000)]
    swap = op == "WRITE"
    assert transfer(agent, op, local, remote, pieces) == "DONE"
    got, sent = target.get(), pattern(SIZE)
    for a, b, size in pieces:
        at, of = (b, a) if swap else (a, b)
        assert got[at : at + size] == sent[of : of + size]


def test_two_agents_and_a_notification(make_agent, gpu) -> None:
    near, far = make_agent("near"), make_agent("far")
    source, target = gpu(SIZE), gpu(SIZE)
    source.set(pattern(SIZE, 2))
    near.register_memory(source)
    far.register_memory(target)
    near.add_remote_agent(far.get_agent_metadata())
    assert transfer(near, "WRITE", source, target, [(0, 0, SIZE)], far.name, b"there") == "DONE"
    assert target.get() == pattern(SIZE, 2)
    assert far.get_new_notifs()[near.name] == [b"there"]


def test_the_lane_is_named(make_agent, gpu) -> None:
    agent = make_agent()
    memory = gpu(SIZE)
    agent.register_memory(memory)
    whole = agent.get_xfer_descs(memory)
    handle = agent.initialize_xfer("READ", whole, whole, agent.name)
    assert "CUDA driver" in str(agent.explain(handle))
    agent.release_xfer_handle(handle)


def test_what_is_no_gpu_memory_is_refused(make_agent, gpu) -> None:
    agent = make_agent()
    host = Host(SIZE)
    with pytest.raises(nixl.nixlInvalidParamError, match="is no memory of a GPU"):
        agent.register_memory([host.region], "VRAM")
    memory = gpu(SIZE)
    with pytest.raises(nixl.nixlInvalidParamError, match="there is no GPU 63"):
        agent.register_memory([(memory.address, SIZE, 63, "")], "VRAM")
    with pytest.raises(nixl.nixlInvalidParamError, match=r"descriptor 1: .*no memory of a GPU"):
        agent.register_memory([memory.region, (memory.address, 1 << 42, 0, "")], "VRAM")
    memory.free()


def test_a_gpu_of_another_number_is_refused(make_agent, gpu, other_gpu: int) -> None:
    memory = gpu(SIZE, other_gpu)
    with pytest.raises(nixl.nixlInvalidParamError, match=f"it belongs to device {other_gpu}"):
        make_agent().register_memory([(memory.address, SIZE, 0, "")], "VRAM")


def test_alloc(make_agent) -> None:
    agent = make_agent()
    with nixl.alloc(100_000, device="cuda:0") as buffer:
        assert (len(buffer), buffer.nbytes, buffer.device) == (100_000, 100_000, "cuda:0")
        source = nixl.alloc(100_000)
        source[:] = pattern(100_000)
        registered = [agent.register_memory(buffer), agent.register_memory(source)]
        handle = agent.initialize_xfer(
            "WRITE", agent.get_xfer_descs(source), agent.get_xfer_descs(buffer), agent.name
        )
        agent.transfer(handle)
        assert finish(agent, handle) == "DONE"
        agent.release_xfer_handle(handle)
        back = ctypes.create_string_buffer(100_000)
        gpu_support.copy(ctypes.addressof(back), buffer.address, 100_000)
        assert back.raw == pattern(100_000)
        for one in registered:
            agent.deregister_memory(one)
    assert buffer.closed and "closed" in repr(buffer)
    with pytest.raises(nixl.nixlInvalidParamError, match="has been freed"):
        _ = buffer.address
    with pytest.raises(nixl.nixlNotSupportedError, match="GPU 63"):
        nixl.alloc(1, device="cuda:63")
    with pytest.raises(nixl.nixlInvalidParamError, match="device='rocm:0'"):
        nixl.alloc(1, device="rocm:0")


def test_files(make_agent, gpu, tmp_path) -> None:
    agent = make_agent(backends=("POSIX",))
    source, target = gpu(SIZE), gpu(SIZE)
    source.set(pattern(SIZE, 3))
    agent.register_memory([source.region, target.region], "VRAM")
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    agent.register_memory([(0, SIZE, fd, "")], "FILE")
    file = agent.get_xfer_descs([(0, SIZE, fd)], "FILE")
    for op, memory in (("WRITE", source), ("READ", target)):
        handle = agent.initialize_xfer(op, agent.get_xfer_descs(memory), file, agent.name)
        agent.transfer(handle)
        assert finish(agent, handle) == "DONE"
        agent.release_xfer_handle(handle)
    assert target.get() == pattern(SIZE, 3)
    assert (tmp_path / "file").read_bytes() == pattern(SIZE, 3)
    os.close(fd)


def test_torch_tensors_tell_their_own(make_agent) -> None:
    torch = pytest.importorskip("torch")
    if gpu_support.is_standin() or not torch.cuda.is_available():
        pytest.skip("torch has no GPU here")
    agent = make_agent()
    source = torch.arange(1 << 20, dtype=torch.float32).cuda()
    target = torch.zeros(1 << 20, dtype=torch.float32).cuda()
    back = torch.zeros(1 << 20, dtype=torch.float32)
    for tensor in (source, target, back):
        agent.register_memory(tensor)
    torch.cuda.synchronize()
    for one, other in ((source, target), (target, back)):
        handle = agent.initialize_xfer(
            "READ", agent.get_xfer_descs(other), agent.get_xfer_descs(one), agent.name
        )
        agent.transfer(handle)
        assert finish(agent, handle) == "DONE"
        agent.release_xfer_handle(handle)
    assert torch.equal(back, source.cpu())


def test_cupy_arrays_tell_their_own(make_agent) -> None:
    if gpu_support.is_standin():
        pytest.skip("CuPy needs a real GPU")
    cupy = pytest.importorskip("cupy")
    agent = make_agent()
    source = cupy.arange(1 << 20, dtype=cupy.float32)
    target = cupy.zeros_like(source)
    cupy.cuda.Stream.null.synchronize()
    agent.register_memory(source)
    agent.register_memory(target)
    handle = agent.initialize_xfer(
        "WRITE", agent.get_xfer_descs(source), agent.get_xfer_descs(target), agent.name
    )
    agent.transfer(handle)
    assert finish(agent, handle) == "DONE"
    agent.release_xfer_handle(handle)
    assert bool((source == target).all())
