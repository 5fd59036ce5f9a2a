"""benchmarks/multi_node/all_reduce.py and hierarchical.py: real processes, everything compared."""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks" / "multi_node"
SHORT = ["--iterations", "5", "--warmup_iter", "1"]


def command(program: str, *words: str) -> list[str]:
    return [sys.executable, str(FOLDER / program), *SHORT, *words]


def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(program, *words), capture_output=True, text=True, timeout=100)


def answer(program: str, *words: str) -> dict:
    ended = run(program, "--format", "json", *words)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert all(row["verified"] is True for row in found["results"])
    return found


@pytest.mark.parametrize(
    ("pattern", "operation"),
    [("pairwise", "READ"), ("many_to_one", "WRITE"), ("one_to_many", "READ"), ("tp", "WRITE")],
)
def test_every_pattern_delivers(pattern: str, operation: str) -> None:
    words = ["--pattern", pattern, "--operation", operation, "--buffer_sizes", "64KB"]
    found = answer("hierarchical.py", *words, "--ranks", "3")
    assert found["head"]["Operation"] == operation
    width = 1 if pattern in ("pairwise", "many_to_one") else 2
    assert found["results"][0]["size"] == 65536 * width


@pytest.mark.parametrize("shape", ["--ranks 2", "--ranks 5 --nodes 3"])
def test_the_tree_sums(shape: str) -> None:
    found = answer("hierarchical.py", *shape.split(), "--buffer_sizes", "4,64KB")
    assert found["head"]["Pattern"].startswith("tree, nodes of ")


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_ring_sums(ranks: int) -> None:
    # 1004 bytes are no multiple of the ranks: parts of different length.
    found = answer("all_reduce.py", "--ranks", str(ranks), "--buffer_sizes", "1004,64KB")
    row = found["results"][1]
    assert row["bus_gb_s"] == pytest.approx(row["bandwidth_gb_s"] * 2 * (ranks - 1) / ranks)


def test_ranks_come_from_several_starts() -> None:
    """As on two hosts: one start coordinates and brings one rank, the other brings two."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    place = ("--ip", "127.0.0.1", "--port", port)
    words = ("--mode", "target", "--ranks", "3", "--buffer_sizes", "4KB", "--format", "csv")
    target = subprocess.Popen(
        command("all_reduce.py", *words, *place), stdout=subprocess.PIPE, text=True
    )
    try:
        ended = run("all_reduce.py", "--mode", "initiator", "--local_ranks", "2", *place)
        out, _ = target.communicate(timeout=60)
    finally:
        target.kill()
    assert ended.returncode == 0 and target.returncode == 0, ended.stderr
    assert ",True," in out.splitlines()[-1]


BROKEN = """
import sys
sys.path.insert(0, {folder!r})
import {module} as program

if __name__ == "__main__":
    sys.argv[0] = {module!r}
    raise SystemExit(program.run(program.main))
else:
    {damage}
"""
DAMAGE = {
    "all_reduce": "program.Ring.compare = lambda self: bool((self.result == self.input).all())",
    "hierarchical": "def die(self): raise SystemExit(9)\n    program.Tree.step = die",
}


def run_damaged(module: str, tmp_path: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """The program with something broken in the ranks' processes."""
    script = tmp_path / "damaged.py"
    script.write_text(BROKEN.format(folder=str(FOLDER), module=module, damage=DAMAGE[module]))
    words = [sys.executable, str(script), "--ranks", "3", "--buffer_sizes", "4KB", *SHORT]
    return subprocess.run(words, capture_output=True, text=True, timeout=100)


def test_wrong_sums_are_told(tmp_path: pathlib.Path) -> None:
    ended = run_damaged("all_reduce", tmp_path)
    assert ended.returncode == 1 and "DIFFERS" in ended.stdout, ended.stderr


def test_a_rank_that_dies_ends_the_run(tmp_path: pathlib.Path) -> None:
    ended = run_damaged("hierarchical", tmp_path)
    assert ended.returncode == 1 and ended.stdout == ""
    assert "rank " in ended.stderr and "closed its connection" in ended.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("all_reduce.py --ranks 9", "9 is above 8"),
        ("all_reduce.py --buffer_sizes 10", "multiple of 4"),
        ("all_reduce.py --buffer_sizes 8 --ranks 3", "no float32 for each of 3 ranks"),
        ("hierarchical.py --operation READ", "the tree is made of WRITEs"),
        ("hierarchical.py --nodes 9", "--nodes 9 is more than --ranks 4"),
    ],
)
def test_what_cannot_be_is_refused(words: str, text: str) -> None:
    ended = run(*words.split())
    assert ended.returncode != 0 and text in ended.stderr and "Traceback" not in ended.stderr
