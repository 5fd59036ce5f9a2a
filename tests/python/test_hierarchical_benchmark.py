"""benchmarks/multi_node/hierarchical.py: every pattern among real processes, bytes compared."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "multi_node" / "hierarchical.py"


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
@pytest.mark.parametrize("pattern", ["pairwise", "many_to_one", "one_to_many", "tp"])
def test_every_pattern_delivers(pattern: str, operation: str) -> None:
    words = ["--pattern", pattern, "--ranks", "4", "--buffer_sizes", "64KB", "--iterations", "5"]
    words += ["--operation", operation]
    command = [sys.executable, str(SCRIPT), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert f"Operation: {operation}" in ended.stdout
    assert "same" in ended.stdout.splitlines()[-1]
