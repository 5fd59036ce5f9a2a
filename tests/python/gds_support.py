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
