"""O_DIRECT where a folder's file system refuses it, and with memory that the kernel cannot pin: it
goes another way, said once; and nothing exists that a get cannot deliver."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess

import numpy as np
import pytest
from hicache_support import LAYOUTS

BLOCK = 65536
MEMFD_SECRET = 447


@pytest.fixture
def ramfs(tmp_path):
    """A file system without O_DIRECT and without extended attributes."""
    folder = tmp_path / "ram"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "ramfs", "ramfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("mounting a ramfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def aligned(blocks: int) -> np.ndarray:
    memory = np.frombuffer(mmap.mmap(-1, blocks * BLOCK), dtype=np.uint8)
    memory[:] = np.random.default_rng(blocks).integers(0, 256, blocks * BLOCK, dtype=np.uint8)
    return memory


def parts(memory: np.ndarray) -> list[np.ndarray]:
    return [memory[i : i + BLOCK] for i in range(0, len(memory), BLOCK)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_system_without_o_direct(make, ramfs, layout, caplog):
    keys = [f"k{i}" for i in range(8)]
    memory = aligned(8)
    wanted = memory.copy()
    before = make(ramfs / "store", layout=layout)
    assert before.batch_set([f"old-{key}" for key in keys], parts(memory))
    connector = make(ramfs / "store", layout=layout, use_direct_io=True)
    memory[:] = 0
    found = connector.batch_get([f"old-{key}" for key in keys], parts(memory))
    assert all(value is not None for value in found) and np.array_equal(memory, wanted)
    for _ in range(3):
        assert connector.batch_set(keys, parts(memory))
        assert all(connector.exists(key) for key in keys)
        memory[:] = 0
        assert all(value is not None for value in connector.batch_get(keys, parts(memory)))
        assert np.array_equal(memory, wanted)
    if layout != "backend":  # the backend tells of its own
        assert caplog.text.count("no O_DIRECT here") == 1


@pytest.mark.parametrize("layout", ["packed", "files"])
def test_only_the_folder_that_refuses_goes_buffered(make, ramfs, tmp_path, layout, monkeypatch):
    dirs = [str(ramfs / "a"), str(tmp_path / "b")]
    connector = make(layout=layout, use_direct_io=True, storage_dirs=dirs)
    memory = aligned(32)
    keys = [f"k{i}" for i in range(32)]
    wanted = memory.copy()
    assert connector.batch_set(keys, parts(memory))
    assert not connector.direct.takes(dirs[0]) and connector.direct.takes(dirs[1])
    memory[:] = 0
    assert all(value is not None for value in connector.batch_get(keys, parts(memory)))
    assert np.array_equal(memory, wanted)


@pytest.fixture
def secret():
    """Memory that a process can use and the kernel cannot pin, as device-mapped pools are."""
    fd = ctypes.CDLL(None, use_errno=True).syscall(MEMFD_SECRET, 0)
    if fd < 0:
        pytest.skip(f"memfd_secret: {os.strerror(ctypes.get_errno())}")
    os.ftruncate(fd, 16 * BLOCK)
    try:
        mapped = mmap.mmap(fd, 16 * BLOCK)
    except OSError as error:
        pytest.skip(f"secret memory: {error}")
    finally:
        os.close(fd)
    return np.frombuffer(mapped, dtype=np.uint8)


@pytest.mark.parametrize("layout", ["packed", "files"])
@pytest.mark.parametrize("registered", [False, True], ids=["unknown", "registered"])
def test_memory_that_cannot_be_pinned(make, secret, layout, registered, caplog, monkeypatch):
    from nixl.hicache import direct

    monkeypatch.setattr(direct, "BOUNCE_BYTES", 3 * BLOCK)  # several rounds, and one too large
    connector = make(layout=layout, use_direct_io=True)
    blocks = [secret[: 5 * BLOCK], *parts(secret[5 * BLOCK :])]
    keys = [f"k{i}" for i in range(len(blocks))]
    if registered:
        connector.mover._remember(secret.ctypes.data, secret.ctypes.data + secret.nbytes)
    wanted = np.random.default_rng(1).integers(0, 256, secret.nbytes, dtype=np.uint8)
    plain = aligned(1)
    for _ in range(2):
        secret[:] = wanted
        assert connector.batch_set([*keys, "plain"], [*blocks, plain])
        assert all(connector.exists(key) for key in keys)
        secret[:] = 0
        assert all(value is not None for value in connector.batch_get(keys, blocks))
        assert np.array_equal(secret, wanted)
    # Remembered, once a region; other memory still goes directly.
    assert len(connector.direct._unpinned) == (1 if registered else len(blocks))
    assert caplog.text.count("cannot be pinned") == 1
    assert connector.direct.pins(plain.ctypes.data, BLOCK)
    assert not connector.direct.pins(secret.ctypes.data, BLOCK)


@pytest.mark.parametrize("layout", ["packed", "files"])
def test_memory_that_is_not_there_is_an_error(make, layout, caplog):
    connector = make(layout=layout, use_direct_io=True)
    hole = mmap.mmap(-1, 4 * BLOCK)
    address = ctypes.addressof(ctypes.c_char.from_buffer(hole))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4 * BLOCK), 0) == 0
    try:
        assert not connector.set("k", None, address, BLOCK)
        assert not connector.exists("k") and "Bad address" in caplog.text
        assert connector.direct.pins(address, BLOCK)  # nothing was learned from that
        assert connector.set("k", aligned(1))
        assert connector.get("k", address, BLOCK) is None
    finally:
        libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4 * BLOCK), 3)
    found = np.zeros(BLOCK, dtype=np.uint8)
    assert np.array_equal(connector.get("k", found), aligned(1))


def test_what_a_get_cannot_deliver_does_not_exist(make, tmp_path):
    connector = make(layout="files")
    value = np.arange(100, dtype=np.uint8)
    assert connector.batch_set(["gone", "corrupt", "folder"], [value] * 3)
    (tmp_path / "store" / "folder").unlink()
    (tmp_path / "store" / "folder").mkdir()
    os.mkfifo(tmp_path / "store" / "pipe")
    assert not connector.exists("folder") and not connector.exists("pipe")
    with open(tmp_path / "store" / "corrupt", "r+b") as file:
        file.write(b"\xff")
    try:
        os.getxattr(tmp_path / "store" / "corrupt", "user.nixl.crc32c")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    assert connector.get("corrupt", np.zeros(100, dtype=np.uint8)) is None
    assert not connector.exists("corrupt")  # found out by that get
