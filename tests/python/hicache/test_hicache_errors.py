"""What goes wrong with storage: full disks, missing rights, removed directories, corruption,
several processes, many keys, few descriptors, kill -9. Nothing wrong ever comes back."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hicache_support import LAYOUTS, hicache_section

HERE = pathlib.Path(__file__).parent


def block(i: int, size: int = 8192) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)


def fetch(connector, keys, size=8192):
    return connector.batch_get(keys, [np.zeros(size, dtype=np.uint8) for _ in keys])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def script(text: str, *words: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *words],
        capture_output=True, text=True, timeout=120, **more,
    )  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_fails_the_set_and_keeps_what_was_stored(make, small_disk, layout, caplog):
    connector = make(small_disk / "store", layout=layout)
    stored = []
    for i in range(64):
        if not connector.set(f"k{i}", block(i, 131072)):
            break
        stored.append(i)
    assert 20 < len(stored) <= 32
    assert "No space left on device" in caplog.text
    assert not connector.batch_set(["a", "b"], [block(1, 131072), block(2, 131072)])
    for i in stored:
        assert np.array_equal(fetch(connector, [f"k{i}"], 131072)[0], block(i, 131072))
    assert not connector.exists(f"k{len(stored)}")
    assert connector.get(f"k{len(stored)}", np.zeros(131072, dtype=np.uint8)) is None
    connector.clear()
    assert connector.set("again", block(5, 131072))
    assert np.array_equal(fetch(connector, ["again"], 131072)[0], block(5, 131072))


NO_RIGHTS = """
    import json, os, sys
    import numpy as np
    from nixl.hicache import HiCacheNixl
    HiCacheNixl(sys.argv[3], "POSIX").close()  # whatever is loaded late is loaded as root
    os.setgid(65534); os.setuid(65534)
    path, layout = sys.argv[1:3]
    try:
        connector = HiCacheNixl(path, "POSIX", config={"hicache": json.loads(layout)})
    except OSError as error:
        print("refused:", error); sys.exit(0)
    value = np.arange(100, dtype=np.uint8)
    target = np.zeros(100, dtype=np.uint8)
    print("set", connector.set("new", value))
    found = connector.get("old", target)
    print("get", found is not None and np.array_equal(found, value))
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_write_permission_reading_works_and_set_is_false(make, tmp_path, layout):
    if os.geteuid() != 0:
        pytest.skip("changing the user needs root")
    path = tmp_path / "store"
    connector = make(path, layout=layout, file_mode="0644")
    assert connector.set("old", np.arange(100, dtype=np.uint8))
    connector.close()
    for parent in [path, *path.parents][:-1]:
        if parent.stat().st_uid == 0 and parent != pathlib.Path("/tmp"):
            parent.chmod(0o755)
    section = json.dumps(hicache_section(layout))
    done = script(NO_RIGHTS, str(path), section, str(tmp_path / "warm"))
    assert "set False" in done.stdout and "get True" in done.stdout, done.stdout + done.stderr
    assert "Permission denied" in done.stderr or "reading only" in done.stderr
    done = script(NO_RIGHTS, str(tmp_path / "never" / "made"), section, str(tmp_path / "warm"))
    assert "refused" in done.stdout and "ermission" in done.stdout, done.stdout + done.stderr


def test_a_read_only_file_system(make, tmp_path):
    path = tmp_path / "store"
    connector = make(path, layout="packed")
    assert connector.set("old", block(1))
    connector.close()
    bound = subprocess.run(["mount", "--bind", str(path), str(path)], capture_output=True)
    if bound.returncode != 0:
        pytest.skip("a bind mount needs root")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)
        connector = make(path, layout="packed")
        assert not connector.set("new", block(2))
        assert np.array_equal(fetch(connector, ["old"])[0], block(1))
        connector.close()
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_directory_removed_underneath(make, tmp_path, layout):
    path = tmp_path / "store"
    connector = make(path, layout=layout)
    assert connector.batch_set(["a", "b"], [block(1), block(2)])
    shutil.rmtree(path)
    assert not connector.exists("a")
    assert fetch(connector, ["a"]) == [None]
    assert connector.set("c", block(3))
    assert np.array_equal(fetch(connector, ["c"])[0], block(3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_corrupt_block_is_a_reported_miss(make, tmp_path, layout, caplog):
    connector = make(layout=layout)
    assert connector.batch_set(["a", "b", "c"], [block(1), block(2), block(3)])
    if layout != "files":
        victim = next((tmp_path / "store/.nixl-packed/segments").iterdir())
        offset = 8192 + 100
    else:
        victim, offset = tmp_path / "store" / "b", 100
    if layout == "files":
        try:
            os.getxattr(victim, "user.nixl.crc32c")
        except OSError:
            pytest.skip("this file system has no extended attributes")
    with open(victim, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
    found = fetch(connector, ["a", "b", "c"])
    assert [value is not None for value in found] == [True, False, True]
    assert np.array_equal(found[2], block(3))
    assert "corrupt" in caplog.text
    assert connector.get_stats()["corrupt"] == 1
    assert connector.set("b", block(2))
    assert np.array_equal(fetch(connector, ["b"])[0], block(2))


def test_a_truncated_segment_loses_only_its_tail(make, tmp_path):
    connector = make(layout="packed")
    assert connector.batch_set([f"k{i}" for i in range(10)], [block(i) for i in range(10)])
    segment = next((tmp_path / "store/.nixl-packed/segments").iterdir())
    os.truncate(segment, 5 * 8192 + 100)
    found = fetch(connector, [f"k{i}" for i in range(10)])
    assert [value is not None for value in found] == [True] * 5 + [False] * 5
    for i in range(5):
        assert np.array_equal(found[i], block(i))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_descriptor_is_left_behind(make, tmp_path, layout):
    connector = make(layout=layout)
    assert connector.set("warm", block(0))
    fetch(connector, ["warm", "missing"])
    before = descriptors()
    for i in range(20):
        assert connector.set(f"k{i}", block(i))
        fetch(connector, [f"k{i}", "missing"])
        connector.batch_set(["x", "y"], [block(1)])
        connector.register_files([str(tmp_path / "missing"), str(tmp_path)])
        connector.file_manager.files_to_nixl_tuples([str(tmp_path / "store"), "/missing/file"])
    assert descriptors() <= before + 1
    connector.close()
    assert descriptors() <= before


def test_failed_registration_closes_the_files_it_opened(make, tmp_path, monkeypatch):
    connector = make(mode="use_uring")  # a mode: transfers, which register
    paths = []
    for i in range(3):
        paths.append(str(tmp_path / f"file{i}"))
        pathlib.Path(paths[-1]).write_bytes(b"x" * 4096)
    before = descriptors()

    def refuse(*_args, **_more):
        raise RuntimeError("refused by the test")

    monkeypatch.setattr(connector.agent, "register_memory", refuse)
    assert connector.register_files(paths) is None
    assert not connector.set("k", block(1))
    assert descriptors() == before


SHARED = """
    import json, sys
    import numpy as np
    from nixl.hicache import HiCacheNixl
    path, layout, me, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    def block(i):
        return np.random.default_rng(i).integers(0, 256, 8192, dtype=np.uint8)
    connector = HiCacheNixl(path, "POSIX", config={"hicache": json.loads(layout)})
    for i in range(0, count, 10):
        keys = [f"{me}-{j}" for j in range(i, i + 10)]
        assert connector.batch_set(keys + ["shared"], [block(j) for j in range(i, i + 10)]
                                   + [block(7)])
        found = connector.get("shared", np.zeros(8192, dtype=np.uint8))
        assert found is not None and np.array_equal(found, block(7))
    connector.close()
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_processes_on_one_directory(make, tmp_path, layout):
    path = tmp_path / "store"
    watcher = make(path, layout=layout)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        section = json.dumps(hicache_section(layout))
        runs = [pool.submit(script, SHARED, str(path), section, str(n), "100") for n in range(3)]
        for run in runs:
            assert run.result().returncode == 0, run.result().stderr
    for n in range(3):
        found = fetch(watcher, [f"{n}-{j}" for j in range(100)])
        for j, value in enumerate(found):
            assert np.array_equal(value, block(j)), (n, j)
    fresh = make(path, layout=layout)
    assert all(value is not None for value in fetch(fresh, [f"0-{j}" for j in range(100)]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_set_get_and_ask_at_once(make, layout):
    connector = make(layout=layout)

    def work(n):
        for i in range(25):
            keys = [f"{n}-{i}-{j}" for j in range(8)]
            assert connector.batch_set([*keys, "hot"], [*(block(j) for j in range(8)), block(9)])
            found = fetch(connector, [*keys, "hot"])
            assert all(np.array_equal(found[j], block(j)) for j in range(8))
            assert found[8] is None or np.array_equal(found[8], block(9))
            assert connector.exists(keys[0]) and not connector.exists(f"{n}-none")

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work, n) for n in range(6)]:
            done.result()


def test_a_hundred_thousand_keys(make):
    connector = make(layout="packed")
    value = np.zeros(64, dtype=np.uint8)
    address = value.ctypes.data
    for start in range(0, 100000, 5000):
        keys = [f"key-{i}" for i in range(start, start + 5000)]
        assert connector.batch_set(keys, None, [address] * 5000, [64] * 5000)
    assert connector.batch_exists([f"key-{i}" for i in range(100000)]) == 100000
    assert connector.get_stats()["blocks"] == 100000
    again = make(layout="packed")
    assert again.batch_exists([f"key-{i}" for i in range(0, 100000, 7)]) == 14286
    assert again.get("key-99999", np.ones(64, dtype=np.uint8)).sum() == 0


FEW = """
    import json, resource, sys
    import numpy as np
    from nixl.hicache import HiCacheNixl
    path, layout = sys.argv[1:]
    connector = HiCacheNixl(path, "POSIX", config={"hicache": json.loads(layout)})
    import os
    limit = len(os.listdir("/proc/self/fd")) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    keys = [f"k{i}" for i in range(400)]
    values = [np.full(16384, i % 251, dtype=np.uint8) for i in range(400)]
    print("set", connector.batch_set(keys, values))
    found = connector.batch_get(keys, [np.zeros(16384, dtype=np.uint8) for _ in keys])
    print("get", all(np.array_equal(a, b) for a, b in zip(found, values)))
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_few_descriptors_are_enough(tmp_path, layout):
    section = json.dumps(hicache_section(layout, segment_bytes="1 MiB"))
    done = script(FEW, str(tmp_path / "store"), section)
    assert "set True" in done.stdout and "get True" in done.stdout, done.stdout + done.stderr


def test_the_cap_holds_while_two_processes_store(make, tmp_path):
    cap = 200 * 8192
    a = make(layout="packed", max_bytes=cap)
    b = make(layout="packed", max_bytes=cap)
    for i in range(60):
        for connector, name in ((a, "a"), (b, "b")):
            keys = [f"{name}-{i}-{j}" for j in range(5)]
            connector.batch_set(keys, [block(j) for j in range(5)])
    for connector in (a, b):
        connector.packed.maintain(0.5)
    assert a.get_stats()["live_bytes"] <= cap
    assert a.get_stats()["evictions"] > 0
    on_disk = sum(
        file.stat().st_blocks * 512 for file in (tmp_path / "store/.nixl-packed/segments").iterdir()
    )
    assert on_disk <= cap * 1.2
    assert np.array_equal(fetch(a, ["b-59-4"])[0], block(4))
    assert fetch(a, ["a-0-0"]) == [None]


@pytest.mark.parametrize(("layout", "rounds"), [("packed", 100), ("backend", 50), ("files", 50)])
def test_kill_in_the_middle_of_batch_set(tmp_path, layout, rounds):
    seed = int.from_bytes(os.urandom(4), "little")
    done = subprocess.run(
        [sys.executable, HERE / "kill_rounds.py", tmp_path, layout, str(rounds), str(seed)],
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    print(done.stdout)
    # What the killed left half written went when the next connector opened the directory.
    left = [path for path in tmp_path.rglob(".nixl-tmp/*/*") if path.is_file()]
    assert not left, left[:5]


@pytest.mark.parametrize("layout", ["backend", "files"])
def test_transfers_that_fail_at_random_never_give_wrong_bytes(tmp_path, layout):
    from nixl.hicache import HiCacheNixl

    faults = {"nixl_fault": "seed=11,fail=4"}  # the backend's fault wrapper: every fourth fails
    config = {"hicache": hicache_section(layout), "plugin": {"posix": faults}}
    with HiCacheNixl(str(tmp_path), "POSIX", config=config) as connector:
        stored: set[str] = set()
        for i in range(30):
            keys = [f"{i}-{j}" for j in range(6)]
            if connector.batch_set(keys, [block(j) for j in range(6)]):
                stored.update(keys)
            found = fetch(connector, keys)
            for j, value in enumerate(found):
                assert value is None or np.array_equal(value, block(j))
        assert stored
    section = hicache_section(layout)
    with HiCacheNixl(str(tmp_path), "POSIX", config={"hicache": section}) as again:
        for key in stored:
            assert np.array_equal(fetch(again, [key])[0], block(int(key.split("-")[1]))), key
