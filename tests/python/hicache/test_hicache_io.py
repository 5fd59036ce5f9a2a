"""Which way the payload goes: by the store's own calls, or by the backend's transfers."""

from __future__ import annotations

import shutil
import subprocess
import sys

import numpy as np
import pytest
from nixl.hicache import HiCacheNixl

BLOCK = 65536


def aligned(blocks: int) -> np.ndarray:
    raw = np.random.default_rng(blocks).integers(0, 256, blocks * BLOCK + 4096, dtype=np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + blocks * BLOCK]


def transfers(connector: HiCacheNixl, monkeypatch) -> list[str]:
    seen: list[str] = []
    start = connector.mover.start
    monkeypatch.setattr(
        connector.mover, "start", lambda op, *more: seen.append(op) or start(op, *more)
    )
    return seen


@pytest.mark.parametrize("layout", ["packed", "files"])
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize(
    ("posix", "file_io", "own"),
    [
        ({}, "auto", True),
        ({"active": True}, "auto", True),
        ({"use_uring": "false"}, "auto", True),
        ({"use_uring": "true"}, "auto", False),
        ({"use_aio": "true"}, "auto", False),
        ({}, "backend", False),
    ],
)
def test_a_mode_or_file_io_decides(tmp_path, monkeypatch, layout, direct, posix, file_io, own):
    config = {
        "use_direct_io": direct,
        "hicache": {"layout": layout, "file_io": file_io},
        "plugin": {"posix": posix},
    }
    with HiCacheNixl(str(tmp_path), "POSIX", config=config) as connector:
        seen = transfers(connector, monkeypatch)
        memory = aligned(40)
        keys = [f"k{i}" for i in range(40)]
        blocks = [memory[i * BLOCK : (i + 1) * BLOCK] for i in range(40)]
        before = memory.copy()
        assert connector.batch_set(keys, blocks)
        memory[:] = 0
        found = connector.batch_get(keys[::-1], blocks[::-1])
        assert all(value is not None for value in found)
        assert np.array_equal(memory, before)
        assert (not seen) == own


def test_what_direct_io_cannot_move_goes_buffered(tmp_path):
    config = {"use_direct_io": True, "hicache": {"layout": "packed"}}
    with HiCacheNixl(str(tmp_path), "POSIX", config=config) as connector:
        value = np.arange(5001, dtype=np.uint8)[1:]
        assert connector.batch_set(["a", "b"], [value, value[:77]])
        assert np.array_equal(connector.get("a", np.zeros(5000, dtype=np.uint8)), value)
        assert np.array_equal(connector.get("b", np.zeros(77, dtype=np.uint8)), value[:77])


@pytest.mark.parametrize("layout", ["packed", "files"])
def test_with_durability_disk_the_bytes_are_synced_before_set_returns(tmp_path, layout):
    """Told by the system calls: a sync after the last write of payload and, packed, of the log."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    text = """
import sys
import numpy as np
from nixl.hicache import HiCacheNixl
config = {"hicache": {"layout": sys.argv[2], "durability": sys.argv[3]}}
with HiCacheNixl(sys.argv[1], "POSIX", config=config) as connector:
    assert connector.batch_set(["a", "b"], [np.ones(5000, np.uint8), np.ones(9000, np.uint8)])
"""
    for durability, least in (("disk", 2), ("process", 0)):
        log = tmp_path / f"{durability}.strace"
        words = [sys.executable, "-c", text, str(tmp_path / durability), layout, durability]
        command = [strace, "-f", "-y", "-e", "trace=fdatasync,fsync", "-o", str(log), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if "ptrace" in done.stderr.lower():
            pytest.skip("tracing is not allowed here")
        assert done.returncode == 0, done.stderr
        # A new packed store has its format on the disk first, once: without it all is lost.
        lines = log.read_text().splitlines()
        syncs = [line for line in lines if "sync(" in line and "/format." not in line]
        assert len(syncs) >= least if least else not syncs, syncs
