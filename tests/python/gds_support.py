"""What the tests of GDS and GDS_MT share: the real cuFile, its stand-in, programs run with them.

The programs run in processes of their own: cuFile's driver stays open to the end of one, and the
preloaded stand-in of /proc/modules has to be there from the start.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).parents[2]
STANDINS = ROOT / "testing" / "standins"

# Names for the programs: files of `count` pieces, and waiting for a transfer.
PRELUDE = """
import ctypes, mmap, os, sys, time
import nixl
from nixl._api import nixl_agent, nixl_agent_config

def make(backend, **parameters):
    config = nixl_agent_config(backends=[])
    agent = nixl_agent(f"gds-{os.getpid()}", config)
    agent.create_backend(backend, {k: str(v) for k, v in parameters.items()})
    return agent

class Memory:
    def __init__(self, size, fill=0):
        self.map = mmap.mmap(-1, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.size = size
        ctypes.memset(self.address, fill, size)
    def get(self, at=0, size=None):
        return ctypes.string_at(self.address + at, self.size - at if size is None else size)
    def set(self, data, at=0):
        ctypes.memmove(self.address + at, data, len(data))

def move(agent, op, local, remote, seconds=60):
    move.handle = agent.initialize_xfer(op, local, remote, agent.name)
    agent.transfer(move.handle)  # raises where it has failed by then
    return move.handle.wait(seconds)
"""

# GPU memory by the CUDA driver, or its stand-in.
GPU_PRELUDE = """
driver = ctypes.CDLL(os.environ.get("NIXL_CUDA_LIBRARY") or "libcuda.so.1")
def cuda(call, *arguments):
    result = getattr(driver, call)(*arguments)
    assert result == 0, f"{call}: error {result}"
cuda("cuInit", 0)
context = ctypes.c_void_p()
cuda("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
cuda("cuCtxPushCurrent_v2", context)

class Gpu:
    def __init__(self, size):
        address = ctypes.c_uint64()
        cuda("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self.address, self.size = address.value, size
    def copy(self, to, source, size):
        cuda("cuMemcpy", ctypes.c_uint64(to), ctypes.c_uint64(source), ctypes.c_size_t(size))
    def set(self, data):
        source = ctypes.create_string_buffer(data, len(data))
        self.copy(self.address, ctypes.addressof(source), len(data))
    def get(self):
        target = ctypes.create_string_buffer(self.size)
        self.copy(ctypes.addressof(target), self.address, self.size)
        return target.raw
"""

# Round trips of GPU memory, aligned and not, beside host memory in one transfer.
GPU_ROUND_TRIP = (
    GPU_PRELUDE
    + """
agent = make(sys.argv[1], max_request_size=1 << 20)
path = sys.argv[2] + "/f"
size = int(sys.argv[3])
data = os.urandom(size)
gpu, back, host, host_back = Gpu(size), Gpu(size), Memory(size), Memory(size)
gpu.set(data)
back.set(bytes(size))
host.set(data[::-1])
for one in (gpu, back):
    one.held = agent.register_memory([(one.address, size, 0, "")], "VRAM")
for one in (host, host_back):
    one.held = agent.register_memory([(one.address, size, 0, "")], "DRAM")
file = agent.register_memory([(0, 4 * size, 5, "rw,create:" + path)], "FILE")
def sides(memory, kind, pieces, shift):
    near = agent.get_xfer_descs([(memory.address + at, n, 0) for at, n in pieces], kind)
    far = agent.get_xfer_descs([(shift + at, n, 5) for at, n in pieces], "FILE")
    return near, far
for shift, step in ((0, size), (13, 99_991), (4096, 1 << 16)):
    pieces = [(at, min(step, size - at)) for at in range(0, size, step)][::-1]
    assert move(agent, "WRITE", *sides(gpu, "VRAM", pieces, shift)) == "DONE"
    assert open(path, "rb").read()[shift : shift + size] == data, shift
    back.set(bytes(size))
    assert move(agent, "READ", *sides(back, "VRAM", pieces, shift)) == "DONE"
    print("explain", agent.explain(move.handle))
    assert back.get() == data, shift
    assert move(agent, "WRITE", *sides(host, "DRAM", pieces, shift)) == "DONE"
    assert move(agent, "READ", *sides(host_back, "DRAM", pieces, shift)) == "DONE"
    assert host_back.get() == data[::-1], shift
for one in (gpu, back):
    agent.deregister_memory(one.held)
print("round trip done")
"""
)


def compiled(folder: pathlib.Path, name: str) -> str:
    library = folder / f"lib{name}.so"
    if not library.exists():
        command = ["cc", "-O1", "-w", "-shared", "-fPIC", "-pthread", "-o", str(library)]
        subprocess.run([*command, str(STANDINS / f"{name}.c"), "-ldl"], check=True)
    return str(library)


def real_library() -> str | None:
    """The real libcufile: what NIXL_CUFILE_LIBRARY names, else of this interpreter's packages."""
    if named := os.environ.get("NIXL_CUFILE_LIBRARY"):
        return named
    site = pathlib.Path(sysconfig.get_path("platlib"))
    return next((str(p) for p in site.glob("nvidia/cu*/lib/libcufile.so.0")), None)


class Runner:
    """Runs programs with a library of cuFile's name."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.modules = compiled(folder, "proc_modules")
        self.standin = compiled(folder, "cufile_standin")

    def __call__(
        self, program: str, *arguments: object, library: str | None = None, status: int = 0, **env
    ) -> str:
        """With the stand-in, where no library is named. The outcome is what it printed."""
        environment = {
            **os.environ,
            "LD_PRELOAD": self.modules,
            "NIXL_CUFILE_LIBRARY": self.standin if library is None else library,
            "CUFILE_LOGFILE_PATH": str(self.folder / "cufile.log"),
            **{key: str(value) for key, value in env.items()},
        }
        words = [sys.executable, "-c", PRELUDE + program, *map(str, arguments)]
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=120, cwd=self.folder
        )
        assert done.returncode == status, f"{done.returncode}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


def real_or_skip() -> str:
    library = real_library()
    if library is None:
        pytest.skip("no libcufile.so.0 (PyPI: nvidia-cufile) in this Python; "
                    "NIXL_CUFILE_LIBRARY may name one")  # fmt: skip
    return library
