"""benchmarks/multi_node/ucx_p2p.py: two real processes, each form of its answer."""

from __future__ import annotations

import csv
import ctypes
import io
import json
import pathlib
import socket
import subprocess
import sys
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "multi_node" / "ucx_p2p.py"
SIZES = [1024, 65536]
SHORT = ("--buffer_sizes", "4KB", "--iterations", "5")


def start(*words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def wait_until_taken(port: int) -> None:
    """Until the target has its initiator: then it listens no more."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                return
        except OSError:
            time.sleep(0.02)  # sleeps: between two looks
    raise AssertionError(f"somebody still listens at port {port}")


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
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("a CUDA driver is here")
    except OSError:
        pass
    process = start("--mode", "target", "--port", "0", "--memory_type", "VRAM")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 77
    assert "VRAM needs a CUDA driver: libcuda.so.1" in err


def test_a_missing_backend_is_named_with_those_there_are() -> None:
    process = start("--backend", "NOSUCH")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 77 and out == ""
    assert "backend NOSUCH: this build has no plugin of that name; it has:" in err and "UCX" in err


def test_absent_target_is_named() -> None:
    process = start("--mode", "initiator", "--port", "1", "--timeout", "0.2")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no target at 127.0.0.1 port 1" in err


def test_without_a_mode_both_sides_run_here() -> None:
    process = start(*SHORT, "--format", "json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["results"][0]["verified"] is True


def test_a_stranger_at_the_port_does_no_harm() -> None:
    target = start("--mode", "target", "--port", "0")
    try:
        assert target.stdout is not None and target.stderr is not None
        port = int(target.stdout.readline().split()[-1])
        socket.create_connection(("127.0.0.1", port)).close()
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert stranger.recv(1) == b""  # refused, by closing
        initiator = start("--mode", "initiator", "--port", str(port), *SHORT)
        out, err = initiator.communicate(timeout=60)
        assert initiator.returncode == 0, err
        assert target.wait(timeout=30) == 0
    finally:
        target.kill()
        target.communicate()


def test_a_dead_target_ends_the_initiator() -> None:
    target = start("--mode", "target", "--port", "0")
    try:
        assert target.stdout is not None
        port = target.stdout.readline().split()[-1]
        words = ("--buffer_sizes", "1MB", "--iterations", "10000000")
        initiator = start("--mode", "initiator", "--port", port, *words)
        wait_until_taken(int(port))
        target.kill()
        _, err = initiator.communicate(timeout=60)
        assert initiator.returncode == 1
        # Whichever is noticed first: the session's end, or that of the benchmark's own connection.
        gone = ("NIXL_ERR_REMOTE_DISCONNECT", "the other side of the benchmark is gone")
        assert any(words in err for words in gone), err
        assert "Traceback" not in err
    finally:
        target.kill()
        target.communicate()
