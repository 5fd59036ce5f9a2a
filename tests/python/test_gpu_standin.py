"""The GPU tests of tests/gpu/ against the stand-in of the CUDA driver; GPU memory without any."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BUILD = pathlib.Path(os.environ.get("NIXL_BUILD_DIR", ROOT / "build/release"))
STANDIN = BUILD / "lib/standins/libcuda.so"

pytestmark = pytest.mark.skipif(
    not STANDIN.exists(), reason=f"{STANDIN} is not built (the target nixl_cuda_standin)"
)


def test_the_gpu_tests_pass(tmp_path) -> None:
    """In a process of their own: a driver stays open until the process ends."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", ROOT / "tests/gpu"],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env={**os.environ, "NIXL_CUDA_LIBRARY": str(STANDIN)},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= 15, done.stdout[-2000:]


def test_without_a_gpu_they_say_why(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", ROOT / "tests/gpu"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, "NIXL_CUDA_LIBRARY": "/nowhere/libcuda.so"},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" not in done.stdout
    assert "no GPU: no CUDA driver: /nowhere/libcuda.so" in done.stdout


def test_vram_without_a_driver_says_why(run_python) -> None:
    program = """
import nixl
from nixl._api import nixl_agent, nixl_agent_config
agent = nixl_agent("a", nixl_agent_config(backends=["POSIX"]))
try:
    agent.register_memory([(4096, 100, 0, "")], "VRAM")
except nixl.nixlNotSupportedError as error:
    print(error)
try:
    nixl.alloc(100, device="cuda:0")
except nixl.nixlNotSupportedError as error:
    print(error)
"""
    done = run_python(program, NIXL_CUDA_LIBRARY="/nowhere/libcuda.so")
    assert done.stdout.count("no CUDA driver: /nowhere/libcuda.so") == 2, done.stdout
