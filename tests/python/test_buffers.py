"""nixl.alloc and nixl.alloc_tensor: shareable memory."""

from __future__ import annotations

import fcntl
import gc
import os
from pathlib import Path

import nixl
import pytest

np = pytest.importorskip("numpy")


def test_a_buffer_is_memory_for_everybody():
    buffer = nixl.alloc(10_000)
    assert len(buffer) == buffer.nbytes == 10_000
    assert bytes(buffer[:4]) == bytes(4)
    view = np.frombuffer(buffer, np.uint8)
    view[5] = 7
    assert buffer[5] == 7
    assert view.ctypes.data == buffer.address
    assert np.asarray(buffer).nbytes == 10_000
    assert memoryview(buffer).nbytes == 10_000


def test_it_is_a_sealed_memory_file():
    def memory_files() -> set[int]:
        return {fd for fd in range(4096) if "memfd:nixl" in name_of(fd)}

    def name_of(fd: int) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return ""

    before = memory_files()
    buffer = nixl.alloc(4096)
    (fd,) = memory_files() - before
    assert fcntl.fcntl(fd, 1034) & 2, "F_SEAL_SHRINK"
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    del buffer
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_named_one_is_a_file_that_goes_with_it():
    buffer = nixl.alloc(10_000, named=True)
    path = Path(buffer.path)
    assert path.parent == Path("/dev/shm") and path.stat().st_size == 10_000
    assert path.stat().st_mode & 0o777 == 0o600
    assert buffer.path in repr(buffer) and bytes(buffer[:4]) == bytes(4)
    view = np.frombuffer(buffer, np.uint8)
    view[7] = 9
    assert path.read_bytes()[7] == 9
    del buffer
    gc.collect()
    assert path.exists(), "a view keeps the buffer"
    del view
    gc.collect()
    assert not path.exists()
    with nixl.alloc(10, named=True) as short:
        path = Path(short.path)
    assert not path.exists()
    with pytest.raises(nixl.nixlInvalidParamError, match="has no name below /dev/shm"):
        nixl.alloc(10, device="cuda:0", named=True)
    assert nixl.alloc(10).path == ""


def test_the_name_of_a_buffer_is_the_parents(run_python):
    """A child that ends leaves it; the end of the process takes it."""
    program = """
import os, nixl
buffer = nixl.alloc(100, named=True)
child = os.fork()
if child == 0:
    raise SystemExit(0)
os.waitpid(child, 0)
assert os.path.exists(buffer.path)
print(buffer.path)
"""
    path = run_python(program).stdout.strip()
    assert path.startswith("/dev/shm/nixl-") and not os.path.exists(path)


@pytest.mark.parametrize(("size", "error"), [(0, nixl.nixlInvalidParamError), ("x", TypeError)])
def test_wrong_sizes(size, error):
    with pytest.raises(error, match="nbytes"):
        nixl.alloc(size)


def test_too_much_is_an_error_not_a_signal():
    with pytest.raises(OSError, match="nixl.alloc: 1152921504606846976 bytes, of"):
        nixl.alloc(1 << 60)


def test_tensors():
    array = nixl.alloc_tensor((3, 4), "int32")
    assert array.shape == (3, 4) and array.dtype == np.int32 and not array.any()
    array[1, 2] = 5
    assert nixl.alloc_tensor(5).shape == (5,)
    assert nixl.alloc_tensor((0, 4)).size == 0
    with pytest.raises(nixl.nixlInvalidParamError, match="-1 is negative"):
        nixl.alloc_tensor((3, -1))


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    tensor = nixl.alloc_tensor((2, 3), torch.float16)
    assert tensor.shape == (2, 3) and tensor.dtype == torch.float16
    assert tensor.is_contiguous() and not tensor.any()


def test_transfers_between_buffers(make_agent):
    near, far = make_agent(), make_agent()
    source, target = nixl.alloc(65536), nixl.alloc(65536)
    source[:] = os.urandom(65536)
    near.register_memory([source])
    remote = far.register_memory(target)
    near.add_remote_agent(far.get_agent_metadata())
    handle = near.initialize_xfer("WRITE", source, remote, far.name)
    near.transfer(handle)
    assert handle.wait(10) == "DONE"
    assert source[:] == target[:]
