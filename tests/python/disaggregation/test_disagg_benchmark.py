"""The benchmark beside SGLang's connector runs, and checks every page at its place."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
NEEDED = ("sglang", "msgspec", "requests", "torch")


def test_it_runs():
    columns = ["ours"]
    if all(importlib.util.find_spec(name) for name in NEEDED):
        columns.append("client")
    sizes = ["--rooms", "2", "--page-tokens", "16", "--tokens", "32", "--rounds", "1"]
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "benchmarks/versus/disaggregation.py",
            "--columns",
            *columns,
            *sizes,
        ],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"NIXL_LOG_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("time", "cpu", "calls"):
        assert f"2 rooms, pages of 16: {word}" in done.stdout
    assert all(f"{name} " in done.stdout for name in columns)
