"""benchmarks/multi_node/ucx_p2p.py: two real processes, each form of its answer."""

from __future__ import annotations

import csv
import io
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "multi_node" / "ucx_p2p.py"
SIZES = [1024, 65536]


def start(*words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def run_pair(*words: str) -> str:
    target = start("--mode", "target", "--port", "0")
    try:
        assert target.stdout is not None
        port = target.stdout.readline().split()[-1]
        initiator = start(
            *("--mode", "initiator", "--target_ip", "127.0.0.1", "--port", port),
            *("--buffer_sizes", "1KB,64KB", "--iterations", "20", "--warmup_iter", "2", *words),
        )
        try:
            out, err = initiator.communicate(timeout=60)
        finally:
            initiator.kill()
        assert initiator.returncode == 0, err
        assert target.wait(timeout=30) == 0
        return out
    finally:
        target.kill()
        target.communicate()


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_bytes_arrive_and_are_measured(operation: str) -> None:
    answer = json.loads(run_pair("--operation", operation, "--format", "json"))
    assert [row["size"] for row in answer["results"]] == SIZES
    for row in answer["results"]:
        assert row["verified"] is True
        assert 0 < row["p50_us"] <= row["p95_us"] <= row["p99_us"]
    assert answer["head"]["Operation"] == operation


def test_csv_has_one_line_for_each_size() -> None:
    rows = list(csv.DictReader(io.StringIO(run_pair("--format", "csv"))))
    assert [int(row["size"]) for row in rows] == SIZES


def test_table_is_the_guides() -> None:
    lines = run_pair().splitlines()
    assert lines[0] == "=== NIXL Benchmark Results ==="
    assert any(line.startswith("64 KB") and "same" in line for line in lines)


def test_gpu_memory_without_a_gpu_names_the_cause() -> None:
    try:
        import torch

        if torch.cuda.is_available():
            pytest.skip("a CUDA device is here")
    except ImportError:
        pass
    process = start("--mode", "target", "--port", "0", "--memory_type", "VRAM")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "VRAM" in err and ("PyTorch" in err)


def test_absent_target_is_named() -> None:
    process = start("--mode", "initiator", "--port", "1", "--timeout", "0.2")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no target at 127.0.0.1 port 1" in err


def test_without_a_mode_both_sides_run_here() -> None:
    process = start("--buffer_sizes", "4KB", "--iterations", "5", "--format", "json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["results"][0]["verified"] is True


@pytest.mark.parametrize("option", ["--etcd_endpoints", "--benchmark_group"])
def test_etcd_is_named_as_what_is_missing(option: str) -> None:
    process = start(option, "http://127.0.0.1:2379", "--memory_type", "DRAM")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert "no metadata store for etcd" in err and "--target_ip" in err
