"""GPU memory to and from a real S3 server, by the stand-in of the CUDA driver."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", HERE.parents[1] / "build/release"))
STANDIN = BUILD / "lib/standins/libcuda.so"

pytestmark = pytest.mark.skipif(
    not STANDIN.exists(), reason=f"{STANDIN} is not built (the target nixl_cuda_standin)"
)


@pytest.mark.parametrize("case", ["both_ways", "pieces", "merge", "short", "held", "errors"])
def test_gpu_memory(weed, prefix, case) -> None:
    """In a process of its own: a driver stays open until the process ends."""
    done = subprocess.run(
        [sys.executable, HERE / "gpu_objects.py", case, weed.endpoint, f"gpu-{case}-{prefix}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NIXL_CUDA_LIBRARY": str(STANDIN)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith("passed\n")
