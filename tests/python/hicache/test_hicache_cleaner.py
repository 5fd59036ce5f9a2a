"""Room on the disk: watermarks, the floor of free space, what goes first; the upkeep's thread."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from hicache_support import storage_config
from nixl.hicache.cleaner import Cleaner, Disk
from nixl.hicache.config import ConfigError, load
from nixl.hicache.files import NixlFileManager
from nixl.hicache.upkeep import Task, Upkeep

BLOCK = 65536
PARTS = ["_m_0_2_k", "_m_0_2_v", "_m_1_2_k", "_m_1_2_v", "_m_0_2_mamba_temporal", "_m_1_2"]


@pytest.fixture
def disk(tmp_path):
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class FakeDisk:
    """A disk of 1,000 blocks of 4 KiB on which each file of a directory takes one."""

    def __init__(self, path, others=0):
        blocks = sum(len(names) for _, _, names in os.walk(path)) + others
        self.size, self.used = 1000 * 4096, blocks * 4096
        self.free = self.size - self.used
        self.percent = 100 * self.used / self.size


def page(manager: NixlFileManager, name: str, age: float, size: int = 4096) -> list[str]:
    paths = []
    for part in PARTS:
        path = manager.get_file_path(name + part)
        manager.make_parent(path)
        pathlib.Path(path).write_bytes(b"x" * size)
        os.utime(path, (age, age))
        paths.append(path)
    return paths


def name(i: int) -> str:
    return f"{i:064x}"


def test_the_oldest_pages_go_whole_until_the_low_watermark(tmp_path):
    manager = NixlFileManager([str(tmp_path / "a"), str(tmp_path / "b")], buckets=True)
    pages = [page(manager, name(i), 1000.0 + (i * 7) % 100) for i in range(100)]
    os.utime(pages[0][3], (5000, 5000))  # one part was written lately: so was the page
    order = sorted(range(1, 100), key=lambda i: (i * 7) % 100)
    (tmp_path / "a" / "notes").write_text("not ours")
    (tmp_path / "a" / "00").mkdir(exist_ok=True)
    (tmp_path / "a" / "00" / "notes").write_text("not ours")
    cleaner = Cleaner(manager, 25, 15, disk=FakeDisk)
    before = cleaner.excess(str(tmp_path / "a"))
    assert before > 0
    removed = cleaner.clean()
    gone = [i for i in range(100) if not any(os.path.exists(path) for path in pages[i])]
    whole = [i for i in range(100) if all(os.path.exists(path) for path in pages[i])]
    assert len(gone) + len(whole) == 100 and removed == len(gone) * 6 * 4096
    assert gone and sorted(gone) == sorted(order[: len(gone)])
    assert (tmp_path / "a" / "notes").exists() and (tmp_path / "a" / "00" / "notes").exists()
    for base in ("a", "b"):
        assert FakeDisk(tmp_path / base).percent <= 15.2
    assert cleaner.clean() == 0


def test_between_the_watermarks_nothing_goes(tmp_path):
    manager = NixlFileManager(str(tmp_path), buckets=True)
    for i in range(30):
        page(manager, name(i), i)
    assert Cleaner(manager, 20, 10, disk=FakeDisk).clean() == 0
    assert Cleaner(manager, 18, 10, disk=FakeDisk).clean() > 0


def test_the_floor_of_free_space(tmp_path):
    manager = NixlFileManager(str(tmp_path), buckets=True)
    pages = [page(manager, name(i), i) for i in range(10)]

    def full(path):
        return FakeDisk(path, others=930)

    assert Cleaner(manager, 100, 99, 8 * 4096, disk=full).clean() == 0
    assert Cleaner(manager, 100, 99, 30 * 4096, disk=full).clean() > 0
    assert full(tmp_path).free >= 30 * 4096 and not os.path.exists(pages[0][0])
    assert os.path.exists(pages[-1][0])


def test_others_fill_the_disk(tmp_path, caplog):
    manager = NixlFileManager(str(tmp_path), buckets=True)
    page(manager, name(1), 1)
    cleaner = Cleaner(manager, 80, 70, disk=lambda path: FakeDisk(path, others=990))
    for _ in range(3):
        cleaner.clean()
    assert caplog.text.count("no page is left here to remove") == 1


def test_one_process_cleans_at_a_time(tmp_path):
    manager = NixlFileManager(str(tmp_path), buckets=True)
    paths = page(manager, name(1), 1)
    cleaner = Cleaner(manager, 0.1, 0, disk=FakeDisk)
    text = """
import fcntl, os, sys
os.makedirs(os.path.join(sys.argv[1], ".nixl-tmp"), exist_ok=True)
file = open(os.path.join(sys.argv[1], ".nixl-tmp", "cleaner"), "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("here", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", text, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"here\n"
    assert cleaner.clean() == 0 and os.path.exists(paths[0])
    other.communicate(b"")
    assert cleaner.clean() > 0 and not os.path.exists(paths[0])


def test_a_real_disk(make, disk):
    """In SGLang it is on; what was stored last is there."""
    config = storage_config()
    connector = make(disk / "store", layout="files", storage_config=config)
    assert connector.cleaner is not None and connector.cleaner.high == 80
    block = np.zeros(BLOCK, dtype=np.uint8)
    for i in range(220):  # 13.75 of 16 MiB
        assert connector.set(name(i), block)
        os.utime(connector.file_manager.get_file_path(name(i) + connector.config_suffix), (i, i))
    assert Disk(str(disk)).percent > 80
    assert connector._clean() > 0
    assert 60 < Disk(str(disk)).percent <= 70
    assert not connector.exists(name(0)) and connector.exists(name(219))
    assert connector.get_stats()["cleaned_bytes"] > 0


def test_a_full_disk_gets_room_before_a_set_fails(make, disk):
    connector = make(disk / "store", layout="files", top={"l3_cleaner_enabled": True})
    block = np.zeros(BLOCK, dtype=np.uint8)
    for i in range(600):  # 37.5 MiB on 16
        assert connector.batch_set([f"k{i}", f"l{i}"], [block, block])
    assert connector.exists("k599") and not connector.exists("k0")


def test_a_key_that_is_replaced_takes_its_room_once(make, disk):
    connector = make(disk / "store", layout="files")
    block = np.zeros(1 << 20, dtype=np.uint8)
    for i in range(300):
        block[:] = i % 251
        assert connector.set("k", block)
        assert Disk(str(disk)).used <= 3 << 20
    found = np.zeros_like(block)
    assert connector.get("k", found) is found and found[0] == 299 % 251


def test_where_it_is_on(make, tmp_path, caplog):
    def cleaner(**more):
        return make(layout="files", **more).cleaner

    assert cleaner() is None
    assert cleaner(storage_config=storage_config()) is not None
    assert cleaner(top={"l3_cleaner_enabled": "on", "l3_cleaner_min_free": "1 GiB"}) is not None
    assert cleaner(storage_config=storage_config(), top={"l3_cleaner_enabled": "off"}) is None
    one = cleaner(storage_config=storage_config(), top={"l3_cleaner_high_watermark": 75})
    assert (one.high, one.low, one.min_free) == (75, 70, 0)


def test_the_packed_layout_keeps_below_the_high_watermark(make, tmp_path, monkeypatch):
    from nixl.hicache import cleaner

    monkeypatch.setattr(cleaner, "MIN_CAP", 20 * 8192)
    manager = NixlFileManager(str(tmp_path / "store"))

    class Small(FakeDisk):
        def __init__(self, path):
            self.size, self.used, self.free = 100 << 20, 60 << 20, 40 << 20

    assert Cleaner(manager, 80, 70, disk=Small).packed_cap() == 20 << 20
    assert Cleaner(manager, 80, 70, 30 << 20, disk=Small).packed_cap() == 10 << 20
    assert Cleaner(manager, 20, 10, disk=Small).packed_cap() == 20 * 8192
    several = NixlFileManager([str(tmp_path / "a"), str(tmp_path / "b")])  # of one disk
    assert Cleaner(several, 80, 70, disk=Small).packed_cap() == 20 << 20
    monkeypatch.setattr(cleaner.Cleaner, "packed_cap", lambda self: 20 * 8192)
    connector = make(layout="packed", storage_config=storage_config())
    for i in range(60):
        assert connector.set(f"k{i}", np.zeros(8192, dtype=np.uint8))
    assert connector.get_stats()["live_bytes"] <= 20 * 8192
    assert connector.exists("k59") and not connector.exists("k0")


@pytest.mark.parametrize("layout", ["packed", "backend"])
def test_the_packed_layout_follows_the_disk(make, disk, layout):
    """Others fill the disk after the cap was taken."""
    connector = make(disk / "store", layout=layout, storage_config=storage_config())
    block = np.zeros(BLOCK, dtype=np.uint8)
    for i in range(160):  # 10 of 16 MiB
        assert connector.set(name(i), block)
    assert connector._clean() == 0
    (disk / "others").write_bytes(b"x" * (4 << 20))
    assert Disk(str(disk)).percent > 80
    removed = connector._clean()
    assert removed > 0 and Disk(str(disk)).percent <= 70
    assert not connector.exists(name(0)) and connector.exists(name(159))
    assert connector.get_stats()["cleaned_bytes"] == removed
    (disk / "others").write_bytes(b"x" * (8 << 20))  # and now at once
    for i in range(160, 420):  # more than there is room for
        assert connector.set(name(i), block), i
    assert connector.exists(name(419)) and not connector.exists(name(160))


def test_each_writer_gives_its_part(make, disk):
    ranks = [
        make(disk / "store", layout="packed", storage_config=storage_config(tp_rank=i, tp_size=2))
        for i in range(2)
    ]
    block = np.zeros(BLOCK, dtype=np.uint8)
    for i in range(80):
        for connector in ranks:
            assert connector.set(name(i), block)
    (disk / "others").write_bytes(b"x" * (4 << 20))
    before = Disk(str(disk))
    excess = before.used - before.size * 70 // 100
    removed = ranks[0]._clean()
    assert excess // 2 <= removed <= excess // 2 + 2 * BLOCK


@pytest.mark.parametrize(
    ("low", "high"), [(80, None), (90, None), (None, 70), (None, 5), (50, 50), (51, 50)]
)
def test_the_low_watermark_is_below_the_high_one(tmp_path, low, high):
    values = {"l3_cleaner_low_watermark": low, "l3_cleaner_high_watermark": high}
    values = {key: value for key, value in values.items() if value is not None}
    with pytest.raises(ConfigError, match="must be below l3_cleaner_high_watermark"):
        load(values)
    (tmp_path / "c.toml").write_text("\n".join(f"{k} = {v}" for k, v in values.items()))
    with pytest.raises(ConfigError, match="c.toml, line 1"):
        load(f"@{tmp_path}/c.toml")


def test_keys_in_the_wrong_section(caplog):
    read = load({"runtime": {"use_direct_io": "yes", "l3_cleaner_high_watermark": 90,
                             "prefetch_threshold": 5, "use_dirct_io": 1},
                 "use_direct_io": False})  # fmt: skip
    assert read.top == {"use_direct_io": False, "l3_cleaner_high_watermark": 90.0}
    assert "runtime.prefetch_threshold does not apply: SGLang reads it at the top" in caplog.text
    assert 'unknown key "use_dirct_io"; did you mean "use_direct_io"' in caplog.text
    caplog.clear()
    read = load({"plugin": {"posix": {"use_uring": "true", "l3_cleaner_enabled": False}}})
    assert read.top == {"l3_cleaner_enabled": False}
    assert "plugin.posix.l3_cleaner_enabled belongs to the top" in caplog.text
    assert read.plugins["POSIX"] == {"use_uring": "true"}
    with pytest.raises(ConfigError, match=r"runtime\.l3_cleaner_min_free"):
        load({"runtime": {"l3_cleaner_min_free": -1}})


# -- the upkeep's thread ---------------------------------------------------------------------------


def test_tasks_run_after_something_was_stored_and_no_thread_before():
    done = threading.Event()
    upkeep = Upkeep([Task("once", lambda: done.set() or False, 0.01, False)])
    assert upkeep._thread is None
    upkeep.wake()
    assert done.wait(10)
    done.clear()
    upkeep.wake()  # again, from rest
    assert done.wait(10)
    upkeep.stop()
    assert not upkeep._thread.is_alive()


def test_a_task_that_is_always_due_does_not_hold_up_another():
    ran = {"often": threading.Event(), "seldom": threading.Event()}
    upkeep = Upkeep([
        Task("often", lambda: ran["often"].set() or False, 0.01, False),
        Task("seldom", lambda: ran["seldom"].set() or False, 3600.0, True),
    ])  # fmt: skip
    for _ in range(3):
        upkeep.wake()
        assert ran["often"].wait(10)
        ran["often"].clear()
    assert not ran["seldom"].is_set()
    upkeep.stop()


def test_a_task_that_fails_is_told_and_done_again(caplog):
    calls = threading.Semaphore(0)

    def fail() -> bool:
        calls.release()
        raise RuntimeError("the test's fault")

    upkeep = Upkeep([Task("work", fail, 0.01, True)])
    upkeep.wake()
    assert calls.acquire(timeout=10) and calls.acquire(timeout=10)
    upkeep.stop()
    assert "upkeep (work): the test's fault" in caplog.text
