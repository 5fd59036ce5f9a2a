"""python -m nixl.hicache: what it prints, finds and removes."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "nixl.hicache", *words], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def store(make, tmp_path):
    path = tmp_path / "store"
    packed = make(path, layout="packed")
    files = make(path, layout="files")
    value = np.arange(10000, dtype=np.uint8)
    assert packed.batch_set([f"p{i}" for i in range(20)], [value] * 20)
    assert files.batch_set([f"f{i}" for i in range(5)], [value] * 5)
    packed.close()
    files.close()
    return path


def test_stat(store):
    done = run("stat", str(store))
    assert done.returncode == 0, done.stderr
    assert "packed: blocks" in done.stdout and " 20\n" in done.stdout and " 5\n" in done.stdout
    assert run("stat", "/missing/dir").returncode == 2
    assert run("nonsense", str(store)).returncode == 2


def test_verify_finds_corrupt_blocks_by_name(store):
    done = run("verify", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    segment = next((store / ".nixl-packed/segments").iterdir())
    with open(segment, "r+b") as file:
        file.seek(3 * 12288 + 5)
        file.write(b"\xff")
    done = run("verify", str(store))
    assert done.returncode == 1
    assert "CORRUPT packed: 'p3'" in done.stdout
    with open(store / "f2", "r+b") as file:
        file.write(b"\xff")
    assert f"CORRUPT file: {store / 'f2'}" in run("verify", str(store)).stdout


def test_compact_and_clear(make, store):
    (store / ".nixl-tmp-left").write_bytes(b"x")
    os.utime(store / ".nixl-tmp-left", (0, 0))
    (store / ".nixl-tmp-fresh").write_bytes(b"x")  # somebody may be writing it
    connector = make(store, layout="packed")
    value = np.ones(10000, dtype=np.uint8)
    for _ in range(5):
        connector.batch_set([f"p{i}" for i in range(20)], [value] * 20)
    connector.close()
    before = sum(f.stat().st_blocks for f in (store / ".nixl-packed/segments").iterdir())
    done = run("compact", str(store))
    assert done.returncode == 0, done.stderr
    after = sum(f.stat().st_blocks for f in (store / ".nixl-packed/segments").iterdir())
    assert after < before / 3, done.stdout
    assert not (store / ".nixl-tmp-left").exists() and (store / ".nixl-tmp-fresh").exists()
    assert run("verify", str(store)).returncode == 0

    (store / "notes.txt").write_text("not ours")
    done = run("clear", str(store))
    assert "--yes" in done.stderr and "1 other files stay" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["single", "keys", "5"] in [line[:3] for line in lines]
    assert ["packed", "blocks", "20"] in [line[:3] for line in lines]
    assert (store / "f1").exists()
    done = run("clear", "--yes", str(store))
    assert done.returncode == 0 and "25 blocks removed" in done.stdout
    assert make(store, layout="packed").batch_exists(["p0"]) == 0
    assert "packed: blocks" in run("stat", str(store)).stdout
    assert (store / "notes.txt").exists() and not (store / "f1").exists()
    assert "1 blocks removed" in run("clear", "--yes", "--all", str(store)).stdout
    assert not (store / "notes.txt").exists()


def test_stat_counts_what_was_being_written(store):
    left = store / ".nixl-tmp" / "somebody"
    left.mkdir(parents=True)
    (left / "0").write_bytes(bytes(40960))
    out = run("stat", str(store)).stdout
    assert "unfinished files" in out and "40.0 KiB" in out
    assert ["files:", "keys", "5"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize("damage", [b"", b"nonsense", None], ids=["empty", "damaged", "missing"])
def test_a_damaged_format_comes_with_advice(store, damage):
    """The files are still looked at; what helps is said, and does help."""
    folder = store / ".nixl-packed" / "format"
    folder.unlink()
    if damage is not None:
        folder.write_bytes(damage)
    for command in ("stat", "verify", "compact"):
        done = run(command, str(store))
        words = f"nixl.hicache clear {store}"
        if done.returncode == 0:
            continue  # the store has repaired it
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and done.stdout.startswith(str(store))
    done = run("clear", "--yes", str(store))
    assert done.returncode == 0 and "packed blocks" in done.stdout, done.stderr
    done = run("stat", str(store))
    assert done.returncode == 0 and " 20\n" not in done.stdout
