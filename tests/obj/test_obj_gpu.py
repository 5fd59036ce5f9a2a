"""GPU memory to and from a real S3 server, by the stand-in of the CUDA driver."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from obj_support import parameters
from weed import BUCKET

HERE = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", HERE.parents[1] / "build/release"))
STANDIN = BUILD / "lib/standins/libcuda.so"

pytestmark = pytest.mark.skipif(
    not STANDIN.exists(), reason=f"{STANDIN} is not built (the target nixl_cuda_standin)"
)


def run(*words: object) -> None:
    """In a process of its own: a driver stays open until the process ends."""
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NIXL_CUDA_LIBRARY": str(STANDIN)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith("passed\n")


@pytest.mark.parametrize("case", ["both_ways", "pieces", "merge", "short", "held", "errors"])
def test_gpu_memory(weed, prefix, case) -> None:
    run(HERE / "gpu_objects.py", case, weed.endpoint, f"gpu-{case}-{prefix}")


@pytest.fixture
def empty_bucket(witness):
    """Other tests count what is below this prefix."""
    yield
    listed = witness.list_objects_v2(Bucket=BUCKET, Prefix="nixl-hicache/")
    for entry in listed.get("Contents", []):
        witness.delete_object(Bucket=BUCKET, Key=entry["Key"])


@pytest.mark.usefixtures("empty_bucket")
def test_blocks_of_hicache(weed, tmp_path) -> None:
    pytest.importorskip("torch")
    plugin = {"obj": {**parameters(weed.endpoint), "active": True}}
    program = HERE.parent / "python" / "hicache" / "gpu_blocks.py"
    run(program, tmp_path, json.dumps({"plugin": plugin}), "OBJ:files", "OBJ:packed")
