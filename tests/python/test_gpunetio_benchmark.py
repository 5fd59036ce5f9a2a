"""benchmarks/multi_node/gpunetio_p2p.py: two processes over the stand-ins; what is missing."""

from __future__ import annotations

import os
import pathlib

import pytest
from test_storage_benchmark import gpu, rows, run  # noqa: F401

ROOT = pathlib.Path(__file__).parents[2]
BUILD = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", ROOT / "build/release"))
DOCA = str(BUILD / "lib/standins/libdoca_standin.so")
SCRIPT = "multi_node/gpunetio_p2p.py"

pytest.importorskip("nixl", reason="the Python module is not built")


@pytest.mark.skipif(not os.path.exists(DOCA), reason=f"{DOCA} is not built")
def test_bytes_between_two_gpus(gpu) -> None:  # noqa: F811
    standins = {
        "NIXL_DOCA_LIBRARY": DOCA,
        "CUDA_STANDIN_KERNELS": DOCA,
        "NIXL_GPUNETIO_KERNELS": "/proc/self/comm",  # the stand-in does not look at it
    }
    sizes = ("--gpu_devices", "0,1", "--buffer_sizes", "4KB,1MB")
    found = rows(SCRIPT, *sizes, **gpu, **standins)
    assert [row["result"]["size"] for row in found] == [4096, 1 << 20]
    assert all(row["result"]["verified"] for row in found)
    assert "VRAM" in found[0]["head"]["Memory Type"]


def test_what_is_missing_is_said_at_once() -> None:
    line = "--gpu_devices 0,1 --buffer_sizes 1MB,16MB,256MB --etcd_endpoints http://127.0.0.1:1"
    ended = run(SCRIPT, *line.split(), NIXL_DOCA_LIBRARY="/nowhere/libdoca.so")
    assert ended.returncode == 77 and ended.stdout == ""
    assert "GPUNETIO" in ended.stderr and "/nowhere/libdoca.so" in ended.stderr
