"""GDS and GDS_MT with memory of a real GPU and the real cuFile (compat mode without nvidia-fs).

The files are in NIXL_GDS_FOLDER where it is set (a disk whose file system cuFile takes), else on
tmpfs. The figures are printed (pytest -s), not judged.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))
nixl = pytest.importorskip("nixl", reason="the Python module is not built")
gds_support = pytest.importorskip("gds_support")

BOTH = pytest.mark.parametrize("backend", ["GDS", "GDS_MT"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    library = gds_support.real_or_skip()
    if not any(pathlib.Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("no GPU: there is no /dev/nvidia0")
    runner = gds_support.Runner(tmp_path_factory.mktemp("gds"))
    return lambda program, *words, **env: runner(program, *words, library=library, **env)


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    parent = os.environ.get("NIXL_GDS_FOLDER", "/dev/shm")
    made = pathlib.Path(tempfile.mkdtemp(prefix="nixl_gds_", dir=parent))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@BOTH
def test_round_trip(run, folder, backend) -> None:
    text = run(gds_support.GPU_ROUND_TRIP, backend, folder, 40 << 20, NIXL_LOG_LEVEL="INFO")
    print(text)
    assert "round trip done" in text


@BOTH
def test_beside_a_loop_of_cufile(run, folder, backend) -> None:
    """1 GiB in pieces of 1 MiB, by the backend and by cuFile's calls from as many threads."""
    program = (
        gds_support.GPU_PRELUDE
        + """
import concurrent.futures
size, piece = 1 << 30, 1 << 20
agent = make(sys.argv[1])
path = sys.argv[2] + "/f"
gpu = Gpu(size)
gpu.set(os.urandom(1 << 20) * (size >> 20))
local = agent.register_memory([(gpu.address, size, 0, "")], "VRAM")
file = agent.register_memory([(0, size, 5, "rw,create:" + path)], "FILE")
order = list(range(0, size, piece))[::-1]
near = agent.get_xfer_descs([(gpu.address + at, piece, 0) for at in order], "VRAM")
far = agent.get_xfer_descs([(at, piece, 5) for at in order], "FILE")
cufile = ctypes.CDLL(os.environ["NIXL_CUFILE_LIBRARY"])
class Descriptor(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("fd", ctypes.c_void_p), ("operations", ctypes.c_void_p)]
class Outcome(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("cuda", ctypes.c_int)]
cufile.cuFileHandleRegister.restype = Outcome
for call in (cufile.cuFileRead, cufile.cuFileWrite):
    call.restype = ctypes.c_ssize_t
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int64] * 2
handle = ctypes.c_void_p()
outcome = cufile.cuFileHandleRegister(
    ctypes.byref(handle), ctypes.byref(Descriptor(1, os.open(path, os.O_RDWR | os.O_DIRECT), None))
)
assert outcome.code == 0, outcome.code
threads = 4 if sys.argv[1] == "GDS_MT" else 1
pool = concurrent.futures.ThreadPoolExecutor(
    threads, initializer=lambda: cuda("cuCtxSetCurrent", context)
)
def loop(op):
    call = cufile.cuFileWrite if op == "WRITE" else cufile.cuFileRead
    def one(at):
        assert call(handle, gpu.address + at, piece, at, 0) == piece
    list(pool.map(one, order))
for op in ("WRITE", "READ"):
    best = {}
    for turn in range(5):
        ways = {"nixl": lambda: move(agent, op, near, far), "loop": lambda: loop(op)}
        for name, call in ways.items():
            began = time.monotonic()
            call()
            best[name] = min(best.get(name, 1e9), time.monotonic() - began)
    rates = {name: size / seconds / 1e9 for name, seconds in best.items()}
    ratio = rates["nixl"] / rates["loop"]
    print(f"{sys.argv[1]} {op}: {rates['nixl']:.2f} GB/s, loop {rates['loop']:.2f}, {ratio:.2f} x")
print(agent.explain(move.handle))
"""
    )
    text = run(program, backend, folder)
    print(text)
    assert "READ: " in text and "WRITE: " in text
