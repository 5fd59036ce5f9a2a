"""`max_bytes` in the layout `files`: held at every set, at replacing and on a full disk, by all
connectors on the same directories together, without looking at every file each time."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from hicache_support import PagePool, storage_config
from nixl.hicache import room as room_module
from nixl.hicache.files import NixlFileManager
from nixl.hicache.room import (
    AHEAD,
    RECOUNT_SECONDS,
    RECOUNT_SHARE,
    SLACK,
    TOUCH_SECONDS,
    Room,
)  # fmt: skip

MIB = 1 << 20


def block(i: int, size: int = 8192) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)


def fetch(connector, key, size=8192):
    return connector.get(key, np.zeros(size, dtype=np.uint8))


def bytes_in(folder: pathlib.Path) -> int:
    """What lies there, finished or not."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                info = os.lstat(os.path.join(root, name))
            except FileNotFoundError:
                continue
            if name not in ("lock", "room", "cleaner"):
                total += -(-info.st_size // 4096) * 4096
    return total


def made_at(path: str | os.PathLike[str], age: float) -> None:
    os.utime(path, (age, age))


@pytest.fixture
def counts(monkeypatch):
    """How often all files were looked at."""
    seen = []
    real = room_module.pages_of
    monkeypatch.setattr(
        room_module, "pages_of", lambda *args: seen.append(time.monotonic()) or real(*args)
    )
    return seen


# -- one connector ---------------------------------------------------------------------------------


def test_the_cap_is_kept_at_every_set_and_the_oldest_go(make, tmp_path):
    store = tmp_path / "store"
    connector = make(layout="files", max_bytes=40 * 8192)
    for i in range(100):
        assert connector.set(f"k{i}", block(i))
        made_at(store / f"k{i}", 1000 + i)
        assert bytes_in(store) <= 40 * 8192, i
    there = [i for i in range(100) if connector.exists(f"k{i}")]
    assert there == list(range(100 - len(there), 100)) and len(there) >= 38
    assert np.array_equal(fetch(connector, "k99"), block(99))
    stats = connector.get_stats()
    assert stats["stored_bytes"] == bytes_in(store) == len(there) * 8192
    assert stats["evictions"] == 100 - len(there)
    assert stats["evicted_bytes"] == (100 - len(there)) * 8192


@pytest.mark.parametrize("mode", [None, "use_aio"])
def test_one_key_replaced_under_a_cap_takes_no_more_than_the_cap(make, tmp_path, mode):
    connector = make(layout="files", mode=mode, max_bytes="4 MiB")
    value = block(1, MIB)
    for i in range(60):
        value[0] = i
        assert connector.set("k", value)
        assert bytes_in(tmp_path / "store") == MIB
    assert connector.get_stats()["stored_bytes"] == MIB
    assert connector.get_stats()["evictions"] == 0
    assert np.array_equal(fetch(connector, "k", MIB), value)


def test_a_key_larger_than_half_the_cap_can_be_replaced(make, tmp_path):
    connector = make(layout="files", max_bytes="1 MiB")
    for i in range(5):
        assert connector.set("k", block(i, 600 << 10))
        assert bytes_in(tmp_path / "store") <= MIB
    assert np.array_equal(fetch(connector, "k", 600 << 10), block(4, 600 << 10))


def test_a_batch_above_the_cap_is_refused_and_takes_nothing(make, tmp_path, caplog):
    connector = make(layout="files", max_bytes=4 * 8192)
    assert connector.batch_set(["a", "b"], [block(0), block(1)])
    assert not connector.batch_set([f"k{i}" for i in range(5)], [block(i) for i in range(5)])
    assert "files of 40960 bytes at once are above the cap of 32768" in caplog.text
    assert fetch(connector, "a") is not None and fetch(connector, "b") is not None
    assert bytes_in(tmp_path / "store") == 2 * 8192
    assert connector.batch_set([f"k{i}" for i in range(4)], [block(i) for i in range(4)])


def test_what_is_there_already_does_not_count_as_more(make):
    connector = make(layout="files", storage_config=storage_config(), max_bytes=8 * 8192)
    pool = PagePool(5, 8192)
    pool.fill()
    connector.register_mem_pool_host(pool)
    keys = [f"{i:064x}" for i in range(5)]
    assert all(connector.batch_set_v1(keys[:2], pool.indices([0, 1])))
    assert connector.batch_set_v1(keys, pool.indices(range(5))) == [True] * 5
    assert connector.batch_exists(keys[2:]) == 3


def test_a_set_that_fails_gives_its_room_back(make, tmp_path, monkeypatch):
    connector = make(layout="files", max_bytes=4 * 8192)

    def refuse(*_args):
        raise OSError(5, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(os, "setxattr", refuse)
        for _ in range(5):
            assert not connector.set("k", block(1, 3 * 8192))
    assert json.loads((tmp_path / "store/.nixl-tmp/room").read_text())["writing"] == {}
    assert connector.batch_set(["a", "b"], [block(0), block(1)])
    assert connector.batch_set(["c", "d"], [block(2), block(3)])
    assert all(connector.exists(key) for key in "abcd")


def test_the_parts_of_a_page_go_together(make, tmp_path):
    dirs = [str(tmp_path / "a"), str(tmp_path / "b")]
    ranks = []
    for rank in (0, 1):
        connector = make(
            layout="files", max_bytes=64 * 4096, storage_dirs=dirs,
            storage_config=storage_config(tp_rank=rank, tp_size=2),
        )  # fmt: skip
        pool = PagePool(1)
        pool.fill(rank)
        connector.register_mem_pool_host(pool)
        ranks.append((connector, pool))
    for i in range(60):
        for connector, pool in ranks:
            assert connector.batch_set_v1([f"{i:064x}"], pool.indices([0])) == [True]
        for base in dirs:
            for path in pathlib.Path(base).rglob(f"{i:064x}*"):
                made_at(path, 1000 + i)
        assert bytes_in(tmp_path) <= 64 * 4096
    parts: dict[str, int] = {}
    for base in dirs:
        for path in pathlib.Path(base).rglob("*_*"):
            parts[path.name[:64]] = parts.get(path.name[:64], 0) + 1
    assert set(parts.values()) == {4} and 14 <= len(parts) <= 16
    assert sorted(parts) == [f"{i:064x}" for i in range(60 - len(parts), 60)]


def test_what_was_read_stays(make, tmp_path):
    store = tmp_path / "store"
    connector = make(layout="files", max_bytes=10 * 8192)
    for i in range(10):
        assert connector.set(f"k{i}", block(i))
        made_at(store / f"k{i}", 1000 + i)
    assert fetch(connector, "k0") is not None  # TOUCH_SECONDS: it was long ago
    assert time.time() - (store / "k0").stat().st_mtime < 3600
    recent = time.time() - TOUCH_SECONDS / 2
    made_at(store / "k1", recent)
    assert fetch(connector, "k1") is not None
    assert (store / "k1").stat().st_mtime == pytest.approx(recent, abs=1e-3)  # not once more
    for i in range(5):
        assert connector.set(f"more{i}", block(i))
    assert connector.exists("k0") and connector.exists("k1") and not connector.exists("k2")


def test_foreign_files_neither_count_nor_go(make, tmp_path):
    store = tmp_path / "store"
    make(layout="files").close()
    (store / "notes.txt").write_bytes(b"x" * MIB)
    connector = make(layout="files", max_bytes=4 * 8192)
    for i in range(10):
        assert connector.set(f"k{i}", block(i))
    assert (store / "notes.txt").exists()
    assert connector.get_stats()["stored_bytes"] <= 4 * 8192


def test_clear_gives_all_room_back(make, tmp_path):
    connector = make(layout="files", max_bytes=4 * 8192)
    assert connector.batch_set(list("abcd"), [block(i) for i in range(4)])
    connector.clear()
    assert connector.batch_set(list("efgh"), [block(i) for i in range(4)])
    stats = connector.get_stats()
    assert stats["evictions"] == 0 and stats["stored_bytes"] == 4 * 8192


def test_a_full_disk_gets_room_from_the_oldest(make, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        connector = make(folder / "store", layout="files", max_bytes="64 MiB")
        for i in range(20):
            assert connector.set(f"k{i}", block(i, MIB)), i
        assert np.array_equal(fetch(connector, "k19", MIB), block(19, MIB))
        assert not connector.exists("k0")
        connector.close()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# -- cheap -----------------------------------------------------------------------------------------


def test_setting_does_not_look_at_every_file(make, tmp_path, counts):
    """SLACK: what frees room frees a little more. AHEAD: a look finds work for many sets."""
    cap = 256 * 4096
    connector = make(layout="files", max_bytes=cap)
    for i in range(256):
        assert connector.set(f"k{i}", block(i, 4096))
    assert len(counts) == 1  # the first
    evicting = 0
    for i in range(256):
        before = connector.get_stats()["evictions"]
        assert connector.set(f"more{i}", block(i, 4096))
        gone = connector.get_stats()["evictions"] - before
        assert gone <= 1 + 256 // SLACK
        evicting += gone > 0
    assert connector.get_stats()["evictions"] >= 256
    assert evicting <= 256 // (256 // SLACK) + 1
    assert 2 <= len(counts) <= 2 + AHEAD


def test_what_others_did_without_a_word_is_found_at_the_next_count(make, tmp_path, counts):
    store = tmp_path / "store"
    connector = make(layout="files", max_bytes=10 * 8192)
    room = connector.keyed.room
    for i in range(5):
        assert connector.set(f"k{i}", block(i))
    other = make(layout="files")  # keeps no cap
    assert other.batch_set([f"o{i}" for i in range(10)], [block(i) for i in range(10)])
    assert len(counts) == 1 and bytes_in(store) > 10 * 8192
    assert not room.maintain() and len(counts) == 1
    for age, took, counted in (
        (RECOUNT_SECONDS / 2, 0, 0),
        (RECOUNT_SECONDS + 1, 2 * RECOUNT_SECONDS / RECOUNT_SHARE, 0),
        (RECOUNT_SECONDS + 1, 0, 1),
        (-3600, 0, 1),  # a clock that was set back
    ):
        with room._ledger.held() as book:
            book.counted, book.took = time.time() - age, took
        before = len(counts)
        room.maintain()
        assert len(counts) - before == counted, (age, took)
    assert bytes_in(store) <= 10 * 8192


def test_files_that_vanished_are_no_reason_to_remove_more(make, tmp_path):
    store = tmp_path / "store"
    connector = make(layout="files", max_bytes=10 * 8192)
    assert connector.batch_set([f"k{i}" for i in range(10)], [block(i) for i in range(10)])
    for i in range(9):
        (store / f"k{i}").unlink()
    assert connector.batch_set([f"m{i}" for i in range(8)], [block(i) for i in range(8)])
    assert connector.exists("k9") and connector.get_stats()["evictions"] == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stored": -1}', '{"stored": "x"}', "\0" * 99])
def test_a_damaged_ledger_is_counted_anew(make, tmp_path, text):
    connector = make(layout="files", max_bytes=10 * 8192)
    assert connector.batch_set([f"k{i}" for i in range(8)], [block(i) for i in range(8)])
    (tmp_path / "store/.nixl-tmp/room").write_text(text)
    assert connector.batch_set([f"m{i}" for i in range(4)], [block(i) for i in range(4)])
    assert bytes_in(tmp_path / "store") <= 10 * 8192
    assert connector.get_stats()["stored_bytes"] == bytes_in(tmp_path / "store")


def test_the_directory_removed_underneath_begins_anew(make, tmp_path):
    import shutil

    connector = make(layout="files", max_bytes=10 * 8192)
    assert connector.batch_set([f"k{i}" for i in range(8)], [block(i) for i in range(8)])
    shutil.rmtree(tmp_path / "store")
    assert connector.batch_set([f"m{i}" for i in range(10)], [block(i) for i in range(10)])
    assert connector.get_stats()["evictions"] == 0


# -- several ---------------------------------------------------------------------------------------


def test_two_batches_at_once_may_each_take_most_of_the_cap(tmp_path):
    manager = NixlFileManager(str(tmp_path))
    other = NixlFileManager(str(tmp_path))
    rooms = [Room(m, 10 * 8192, lambda name: True) for m in (manager, other)]
    with rooms[0].storing([6 * 8192]) as first, rooms[1].storing([6 * 8192]) as second:
        for m, rename, name in ((manager, first, "a"), (other, second, "b")):
            (source,) = m.temporaries([f"{tmp_path}/{name}"])
            pathlib.Path(source).write_bytes(b"x" * 6 * 8192)
            rename([source], [f"{tmp_path}/{name}"])
            made_at(f"{tmp_path}/{name}", 1000)
    assert bytes_in(tmp_path) <= 10 * 8192


WRITER = """
    import sys
    import numpy as np
    from nixl.hicache import HiCacheNixl
    path, cap, me = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    config = {"hicache": {"layout": "files", "max_bytes": cap}}
    connector = HiCacheNixl(path, "POSIX", config=config)
    value = np.zeros(8192, dtype=np.uint8)
    print("ready", flush=True)
    for line in sys.stdin:
        for i in range(int(line)):
            assert connector.set(f"{me}-{i % 40}", value)
        print("done", flush=True)
"""


def writer(folder: pathlib.Path, cap: int, name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), str(cap), name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_and_threads_keep_one_cap_together(make, tmp_path):
    cap = 30 * 8192
    store = tmp_path / "store"
    connector = make(layout="files", max_bytes=cap)
    others = [writer(store, cap, name) for name in ("x", "y")]
    try:
        for other in others:
            other.stdin.write("150\n")
            other.stdin.flush()
        done = []

        def run(name: str) -> None:
            for i in range(100):
                done.append(connector.set(f"{name}-{i}", block(i)))

        threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(most, bytes_in(store))
        for thread in threads:
            thread.join()
        for other in others:
            assert other.stdout.readline() == "done\n"
    finally:
        for other in others:
            other.kill()
            other.communicate()
    assert all(done) and len(done) == 200
    # A walk beside the writers may see a file under both of its names.
    assert most <= cap + 4 * 8192
    book = json.loads((store / ".nixl-tmp/room").read_text())
    assert book["writing"] == {} and book["stored"] == bytes_in(store) <= cap


def test_what_a_killed_writer_had_in_hand_is_given_back(make, tmp_path):
    store = tmp_path / "store"
    cap = 10 * 8192
    other = writer(store, cap, "x")
    other.stdin.write("2\n")
    other.stdin.flush()
    assert other.stdout.readline() == "done\n"
    (owner,) = [path.name for path in (store / ".nixl-tmp").iterdir() if path.is_dir()]
    text = json.loads((store / ".nixl-tmp/room").read_text())
    text["writing"] = {owner: cap}  # as if it were about to store so much
    (store / ".nixl-tmp/room").write_text(json.dumps(text))
    other.kill()
    other.communicate()
    connector = make(layout="files", max_bytes=cap)
    for i in range(8):
        assert connector.set(f"k{i}", block(i))
    assert all(connector.exists(f"k{i}") for i in range(8))
    assert json.loads((store / ".nixl-tmp/room").read_text())["writing"] == {}


def test_a_forked_child_keeps_the_cap_too(tmp_path):
    text = """
        import os, sys
        import numpy as np
        from nixl.hicache import HiCacheNixl
        config = {"hicache": {"layout": "files", "max_bytes": 10 * 8192}}
        connector = HiCacheNixl(sys.argv[1], "POSIX", config=config)
        value = np.zeros(8192, dtype=np.uint8)
        assert connector.set("before", value)
        child = os.fork()
        ok = all([connector.set(f"{child}-{i}", value) for i in range(30)])
        if child == 0:
            os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and ok
        assert connector.get_stats()["stored_bytes"] <= 10 * 8192
        connector.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), str(tmp_path / "store")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert bytes_in(tmp_path / "store") <= 10 * 8192
