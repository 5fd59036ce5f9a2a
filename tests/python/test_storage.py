"""Files through the Python package: descriptors of the caller, path mode, query, checkpoint."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess

import nixl
import pytest

np = pytest.importorskip("numpy")


@pytest.fixture
def store(make_agent):
    return make_agent("store", backends=("POSIX",))


def move(agent, operation, local, remote, name=None) -> None:
    handle = agent.initialize_xfer(operation, local, remote, name or agent.name)
    agent.transfer(handle)
    assert handle.wait(30) == "DONE"


def test_the_guides_checkpoint(store, tmp_path):
    """Many tensors into one file, by a single descriptor as long as all of them."""
    params = [np.random.default_rng(i).random(1000 + i) for i in range(7)]
    total = sum(p.nbytes for p in params)
    fd = os.open(tmp_path / "checkpoint", os.O_RDWR | os.O_CREAT)
    try:
        reg_descs = store.register_memory(params)
        file_descs = store.get_reg_descs([(0, total, fd, b"/any/label")], "FILE")
        store.register_memory(file_descs)
        handle = store.initialize_xfer("WRITE", reg_descs, file_descs, store.name, b"save")
        store.transfer(handle)
        assert handle.wait(30) == "DONE"
        assert store.wait_notifs(b"save", timeout=10) == [(store.name, b"save")]
        assert (tmp_path / "checkpoint").read_bytes() == b"".join(p.tobytes() for p in params)
        again = [np.zeros_like(p) for p in params]
        with store.register_memory(again) as target:
            move(store, "READ", target, file_descs)
        for left, right in zip(params, again, strict=True):
            assert (left == right).all()
    finally:
        os.close(fd)


def test_path_mode(store, tmp_path):
    data = np.frombuffer(os.urandom(8192), np.uint8).copy()
    regs = store.register_memory(data)
    path = tmp_path / "by-path"
    with store.register_memory([(0, 8192, 1, f"rw,create:{path}")], "FILE") as file:
        move(store, "WRITE", regs, file.trim())
        offset = store.get_xfer_descs([(8192, 8192, 1)], "FILE")
        move(store, "WRITE", regs, offset)
    assert path.read_bytes() == data.tobytes() * 2
    target = np.zeros(8192, np.uint8)
    local = store.register_memory(target)
    with store.register_memory([(0, 8192, 2, f"ro:{path}")], "FILE") as file:
        move(store, "READ", local, file.trim())
    assert (target == data).all()


def test_missing_files_are_refused_when_registered(store, tmp_path):
    for spec in ("rw:/nonexistent/dir/file", f"ro:{tmp_path}/absent"):
        with pytest.raises(nixl.nixlError, match="No such file or directory"):
            store.register_memory([(0, 4096, 1, spec)], "FILE")


def test_query(store, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    found = store.query_memory(
        reg_list=[(0, 0, 0, str(tmp_path / "a")), (0, 0, 0, str(tmp_path / "b"))],
        backend="POSIX",
        mem_type="FILE",
    )
    assert found[0]["size"] == "3" and found[1] is None
    with pytest.raises(nixl.nixlError, match="NOPE"):
        store.query_memory([(0, 0, 0, "x")], "NOPE", "FILE")


def test_no_backend_for_the_memory(agent):
    with pytest.raises(nixl.nixlError, match="FILE"):
        agent.register_memory([(0, 4096, 0, "")], "FILE")
    with pytest.raises(nixl.nixlError, match="NOPE"):
        agent.register_memory([bytearray(64)], backends=["NOPE"])


def test_the_end_of_a_file_is_told(store, tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes(1000))
    target = np.ones(4096, np.uint8)
    local = store.register_memory(target)
    with store.register_memory([(0, 4096, 5, f"ro:{path}")], "FILE") as file:
        handle = store.initialize_xfer("READ", local, file.trim(), store.name)
        with pytest.raises(nixl.nixlBackendError, match="1000 of 4096"):
            store.transfer(handle)
            handle.wait(10)
        assert handle.failed[0][1] == 1000


@pytest.mark.parametrize("label", ["", "its path"])
def test_a_number_that_was_closed_and_is_another_file(store, tmp_path, label, capfd):
    """Clients that never deregister: the newest registration counts, and nobody is warned."""
    data = np.frombuffer(os.urandom(65536), np.uint8).copy()
    local = store.register_memory(data).trim()
    numbers = set()
    for i in range(5):
        data[:] = i + 1
        fd = os.open(tmp_path / f"f{i}", os.O_RDWR | os.O_CREAT)
        numbers.add(fd)
        store.register_memory([(0, 0, fd, f"{tmp_path}/f{i}" if label else "")], "FILE")
        far = store.get_xfer_descs([(0, 65536, fd)], "FILE")
        move(store, "WRITE", local, far)
        data[:] = 0
        move(store, "READ", local, far)
        assert (data == i + 1).all()
        os.close(fd)
    assert len(numbers) == 1, "each file had a number of its own, so nothing was tested"
    for i in range(5):
        assert (tmp_path / f"f{i}").read_bytes() == bytes([i + 1]) * 65536
    assert "another file" not in capfd.readouterr().err


def test_a_transfer_prepared_for_an_earlier_registration_is_refused(store, tmp_path):
    data = np.ones(65536, np.uint8)
    local = store.register_memory(data).trim()
    far = store.get_xfer_descs([(0, 65536, 7)], "FILE")
    store.register_memory([(0, 65536, 7, f"rw,create:{tmp_path}/early")], "FILE")
    old = store.initialize_xfer("WRITE", local, far, store.name)
    store.register_memory([(0, 65536, 7, f"rw,create:{tmp_path}/late")], "FILE")
    with pytest.raises(nixl.nixlNotFoundError, match="early.*registered anew"):
        store.transfer(old)
    move(store, "WRITE", local, far)
    assert (tmp_path / "early").read_bytes() == b""
    assert (tmp_path / "late").read_bytes() == data.tobytes()


MODES = ["use_aio", "use_uring", "use_posix_aio", "use_threads"]


@pytest.mark.parametrize("flags", ["rw", "rw,direct"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("room", [0, 4 << 20])
def test_what_failed_has_moved_no_more_than_is_in_place(make_agent, tmp_path, mode, flags, room):
    """One descriptor of 64 MiB to a device that is full, or soon will be."""
    if room:
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={room}", "none", tmp_path]
        ).returncode:
            pytest.skip("mounting a small tmpfs needs root")
        path = tmp_path / "f"
        path.touch()
    else:
        path = "/dev/full"
    try:
        agent = make_agent("full", backends=())
        agent.create_backend("POSIX", {mode: "true"})
        size = 64 << 20
        data = np.full(size, 7, np.uint8)
        local = agent.register_memory(data).trim()
        agent.register_memory([(0, size, 1, f"{flags}:{path}")], "FILE")
        far = agent.get_xfer_descs([(0, size, 1)], "FILE")
        handle = agent.initialize_xfer("WRITE", local, far, agent.name)
        with pytest.raises(nixl.nixlBackendError, match="No space left"):
            agent.transfer(handle)  # may have ended already
            handle.wait(60)
        assert list(handle.failed) == [0]
        code, moved = handle.failed[0]
        assert code == errno.ENOSPC
        stored = np.fromfile(path, np.uint8) if room else np.zeros(0, np.uint8)
        assert moved <= len(stored)
        assert (stored[:moved] == 7).all()
        agent.close()
    finally:
        if room:
            subprocess.run(["umount", "-l", tmp_path])


def test_many_files_in_one_transfer(store, tmp_path):
    count = 200
    data = np.frombuffer(os.urandom(count * 512), np.uint8).copy()
    store.register_memory(data)
    base = data.ctypes.data
    specs = [(0, 512, i, f"rw,create:{tmp_path}/f{i}") for i in range(count)]
    with store.register_memory(specs, "FILE") as files:
        local = store.get_xfer_descs([(base + i * 512, 512, 0) for i in range(count)], "DRAM")
        move(store, "WRITE", local, files)
    for i in range(count):
        assert (tmp_path / f"f{i}").read_bytes() == data[i * 512 : (i + 1) * 512].tobytes()


def test_files_are_listed_and_removed_by_name(store, tmp_path):
    (tmp_path / "deep").mkdir()
    for name, size in (("a1", 10), ("a2", 20), ("b1", 30), ("deep/a3", 40)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "link").symlink_to(tmp_path / "a1")
    found = store.list_storage("POSIX", f"{tmp_path}/")
    assert {n.removeprefix(f"{tmp_path}/"): d["size"] for n, d in found.items()} == {
        "a1": "10", "a2": "20", "b1": "30", "deep/a3": "40"
    }  # fmt: skip
    assert list(store.list_storage("POSIX", f"{tmp_path}/a")) == [
        f"{tmp_path}/a1",
        f"{tmp_path}/a2",
    ]
    assert len(store.list_storage("POSIX", f"{tmp_path}/", limit=2)) == 2
    assert store.list_storage("POSIX", f"{tmp_path}/none/") == {}
    with pytest.raises(nixl.nixlInvalidParamError, match="from the root"):
        store.list_storage("POSIX", "relative")
    store.remove_storage("POSIX", f"rw:{tmp_path}/a1")
    assert not (tmp_path / "a1").exists() and (tmp_path / "a2").exists()
    with pytest.raises(nixl.nixlNotFoundError, match="a1"):
        store.remove_storage("POSIX", f"{tmp_path}/a1")
    with pytest.raises(nixl.nixlNotAllowedError, match="not a regular file"):
        store.remove_storage("POSIX", f"{tmp_path}/deep")


def test_names_that_are_not_utf8(store, tmp_path):
    """A file may have any name: as bytes, and in str as os.fsdecode gives it. Errors are of their
    class and show the byte."""
    folder = os.fsencode(tmp_path)
    path = folder + b"/odd\xff"
    pathlib.Path(os.fsdecode(path)).write_bytes(b"x" * 100)
    data = bytearray(200)
    local = store.register_memory(data)
    for name in (b"rw:" + path, os.fsdecode(b"rw:" + path)):
        with store.register_memory([(0, 200, 1, name)], "FILE") as file:
            short = store.get_xfer_descs([(0, 100, 1)], "FILE")
            move(store, "READ", store.get_xfer_descs(memoryview(data)[:100]), short)
            assert data[:100] == b"x" * 100
            handle = store.initialize_xfer("READ", local, file, store.name)
            with pytest.raises(nixl.nixlBackendError, match=r"odd\\xff"):
                store.transfer(handle)
                handle.wait(30)
    with pytest.raises(nixl.nixlNotFoundError, match=r"gone\\xff"):
        store.register_memory([(0, 1, 2, b"rw:" + folder + b"/gone\xff")], "FILE")
    assert list(store.list_storage("POSIX", folder + b"/")) == [os.fsdecode(path)]
    assert list(store.list_storage("POSIX", os.fsdecode(folder + b"/odd\xff"))) == [
        os.fsdecode(path)
    ]
    gone = folder + b"/gone\xff"
    with pytest.raises(nixl.nixlNotFoundError, match=r"gone\\xff"):
        store.remove_storage("POSIX", gone)
    left = store.remove_storage("POSIX", [gone, os.fsdecode(path)])
    assert list(left) == [os.fsdecode(gone)] and not os.path.exists(path)
    with pytest.raises(TypeError, match="name 1 must be str .* or bytes, not int"):
        store.remove_storage("POSIX", ["/a", 5])
    with pytest.raises(nixl.nixlNotFoundError, match=r"backend \"\\xff\""):
        store.register_memory(data, backends=[b"\xff"])


def switches_of(name: str) -> list[int]:
    """How often each thread of that name has gone to sleep so far."""
    counts = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        if (task / "comm").read_text().strip() == name:
            words = (task / "status").read_text().split()
            counts.append(int(words[words.index("voluntary_ctxt_switches:") + 1]))
    return counts


def test_posts_wake_no_progress_thread_that_has_nothing_to_do(make_agent, tmp_path):
    agent = make_agent("plain", backends=("POSIX",))
    data = np.ones(4 << 20, np.uint8)
    regs = agent.register_memory(data)
    assert switches_of("nixl-progress"), "there is no such thread, so nothing would be tested"
    with agent.register_memory([(0, 4 << 20, 1, f"rw,create:{tmp_path / 'f'}")], "FILE") as file:
        handle = agent.initialize_xfer("WRITE", regs.trim(), file.trim(), agent.name)
        before = sum(switches_of("nixl-progress"))
        pending = 0
        for _ in range(100):
            pending += agent.transfer(handle) == "PROC"
            assert handle.wait(30) == "DONE"
        assert pending > 50  # else nothing was tested
        assert sum(switches_of("nixl-progress")) - before < 20
