"""Blocks in memory of a GPU, by the stand-in of the CUDA driver."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
gds_support = pytest.importorskip("gds_support")

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", HERE.parents[2] / "build/release"))
STANDIN = BUILD / "lib/standins/libcuda.so"

pytestmark = pytest.mark.skipif(
    not STANDIN.exists(), reason=f"{STANDIN} is not built (the target nixl_cuda_standin)"
)


def run(*words: object, **environment: str) -> None:
    """In a process of its own: a driver stays open until the process ends."""
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, HERE / "gpu_blocks.py", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NIXL_CUDA_LIBRARY": str(STANDIN), **environment},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith("passed\n")


def test_gpu_blocks(tmp_path) -> None:
    """`files`: the backend reaches the GPU itself. `packed`: by way of the host."""
    run(tmp_path, "{}", "POSIX:files", "POSIX:packed")


def test_gpu_blocks_by_gds(tmp_path) -> None:
    run(
        tmp_path,
        "{}",
        "GDS:files",
        "GDS_MT:files",
        LD_PRELOAD=gds_support.compiled(tmp_path, "proc_modules"),
        NIXL_CUFILE_LIBRARY=gds_support.compiled(tmp_path, "cufile_standin"),
    )
