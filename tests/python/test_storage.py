"""Files through the Python package: descriptors of the caller, path mode, query, checkpoint."""

from __future__ import annotations

import os
import pathlib

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
