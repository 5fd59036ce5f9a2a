"""SGLang's connector of disaggregated serving as published, over this package."""

from __future__ import annotations

import os
import pathlib

import pytest
from client_runs import needs, run

ROOT = pathlib.Path(__file__).parents[3]
BUILD = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", ROOT / "build/release"))
DRIVER = BUILD / "lib/standins/libcuda.so"

pytestmark = needs("sglang", "msgspec", "zmq", "aiohttp", "requests", "torch")


def test_pages_in_chunks():
    run("sglang_kv.py", "1", "1")


@pytest.mark.skipif(not DRIVER.exists(), reason=f"{DRIVER} is not built")
@pytest.mark.parametrize("sizes", [("2", "1"), ("1", "2")])
def test_unequal_numbers_of_ranks(sizes):
    """Which SGLang does in memory of GPUs alone."""
    run("sglang_kv.py", *sizes, NIXL_CUDA_LIBRARY=str(DRIVER))
