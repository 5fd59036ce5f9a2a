"""Promises of docs/guarantees.md that no other test covers, through the Python package."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")

from nixl._api import nixl_agent, nixl_agent_config  # noqa: E402

LARGE = 64 << 20


class Pair:
    """Two agents of this process that know each other, with memory on both sides."""

    def __init__(self, size: int) -> None:
        self.near = nixl_agent("near", nixl_agent_config(backends=["UCX"]))
        self.far = nixl_agent("far", nixl_agent_config(backends=["UCX"], peer_timeout=30))
        self.source = np.ones(size, np.uint8)
        self.target = np.zeros(size, np.uint8)
        self.near.register_memory(self.source)
        self.registered = self.far.register_memory(self.target)
        self.near.add_remote_agent(self.far.get_agent_metadata())

    def write(self, notification: bytes = b"", size: int | None = None) -> nixl.nixl_xfer_handle:
        source, target = self.source[:size], self.target[:size]
        descs = self.near.get_xfer_descs
        return self.near.initialize_xfer("WRITE", descs(source), descs(target), "far", notification)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def large() -> Iterator[Pair]:
    pair = Pair(LARGE)
    yield pair
    pair.close()


@pytest.fixture
def small() -> Iterator[Pair]:
    pair = Pair(65536)
    yield pair
    pair.close()


@pytest.fixture
def store() -> Iterator[nixl_agent]:
    with nixl_agent("store", nixl_agent_config(backends=["POSIX"])) as agent:
        yield agent


def test_a_notification_comes_after_its_data(large: Pair) -> None:
    handle = large.write(b"all of it")
    for round_number in range(5):
        large.target[:] = 0
        large.near.transfer(handle)
        while not large.far.check_remote_xfer_done("near", b"all of it"):
            pass
        assert large.target.all(), round_number
        handle.wait(timeout=60)


def test_each_notification_comes_once(small: Pair) -> None:
    handle = small.write()
    for number in range(1000):
        small.near.transfer(handle, f"{number}")
        handle.wait(timeout=60)
    arrived = small.far.get_new_notifs()["near"]
    assert arrived == [str(number).encode() for number in range(1000)]
    assert small.far.get_new_notifs() == {}


def test_a_cancelled_transfer_does_not_notify(large: Pair) -> None:
    handle = large.write(b"never")
    for _ in range(10):
        large.near.transfer(handle)
        handle.cancel()
        try:
            handle.wait(timeout=60)
            done = True  # it was faster than the cancel
        except nixl.nixlCancelledError:
            done = False
        arrived = large.far.get_new_notifs().get("near", [])
        assert arrived == ([b"never"] if done else [])


def test_a_failed_transfer_does_not_notify(store: nixl_agent, tmp_path: pathlib.Path) -> None:
    (tmp_path / "short").write_bytes(b"x" * 100)
    memory = np.zeros(4096, np.uint8)
    store.register_memory(memory)
    file = store.register_memory([(0, 4096, 1, f"ro:{tmp_path / 'short'}")], "FILE")
    handle = store.initialize_xfer("READ", memory, file, "store", b"never")
    with pytest.raises(nixl.nixlBackendError):
        store.transfer(handle)
        handle.wait(timeout=60)
    assert store.get_new_notifs() == {}
    assert handle.failed == {0: (0, 100)}


def test_after_cancel_no_byte_changes(large: Pair) -> None:
    handle = large.write()
    for _ in range(10):
        large.target[:] = 0
        large.near.transfer(handle)
        handle.cancel()
        moved = int(large.target.sum(dtype=np.uint64))
        time.sleep(0.02)  # sleeps: for a byte that came late
        assert int(large.target.sum(dtype=np.uint64)) == moved


def test_deregistering_waits_for_a_posted_transfer(large: Pair) -> None:
    handle = large.write()
    large.near.transfer(handle)
    large.far.deregister_memory(large.registered)
    moved = int(large.target.sum(dtype=np.uint64))
    time.sleep(0.02)  # sleeps: for a byte that came late
    assert int(large.target.sum(dtype=np.uint64)) == moved
    assert handle.wait(timeout=60) == "DONE" and moved == LARGE


def test_overlapping_destinations_hold_one_of_the_sources(small: Pair) -> None:
    block = 4096
    for number in range(16):
        small.source[number * block : (number + 1) * block] = number + 1
    descs = small.near.get_xfer_descs
    sources = [small.source[i * block : (i + 1) * block] for i in range(16)]
    targets = [small.target[:block]] * 16
    handle = small.near.initialize_xfer("WRITE", descs(sources), descs(targets), "far")
    small.near.transfer(handle)
    handle.wait(timeout=60)
    assert set(small.target[:block].tolist()) <= set(range(1, 17))
    assert not small.target[block:].any()


def test_what_is_done_is_in_the_file(store: nixl_agent, tmp_path: pathlib.Path) -> None:
    """Visible to every reader at once; that is the page cache, not the disk."""
    memory = np.frombuffer(os.urandom(1 << 20), np.uint8).copy()
    store.register_memory(memory)
    file = store.register_memory([(0, 1 << 20, 1, f"rw,create:{tmp_path / 'file'}")], "FILE")
    handle = store.initialize_xfer("WRITE", memory, file, "store")
    store.transfer(handle)
    handle.wait(timeout=60)
    assert (tmp_path / "file").read_bytes() == memory.tobytes()


def test_a_storage_notification_comes_to_the_agent_itself(
    store: nixl_agent, tmp_path: pathlib.Path
) -> None:
    memory = np.ones(4096, np.uint8)
    store.register_memory(memory)
    file = store.register_memory([(0, 4096, 1, f"rw,create:{tmp_path / 'file'}")], "FILE")
    handle = store.initialize_xfer("WRITE", memory, file, "store", b"saved")
    store.transfer(handle)  # a handle that is dropped cancels
    assert store.wait_notifs(b"saved", timeout=60) == [("store", b"saved")]
    assert (tmp_path / "file").read_bytes() == memory.tobytes()


def test_a_file_may_be_used_beyond_its_registration(
    store: nixl_agent, tmp_path: pathlib.Path
) -> None:
    memory = np.full(4096, 7, np.uint8)
    store.register_memory(memory)
    store.register_memory([(0, 16, 1, f"rw,create:{tmp_path / 'file'}")], "FILE")
    far_away = store.get_xfer_descs([(1 << 20, 4096, 1)], "FILE")
    handle = store.initialize_xfer("WRITE", memory, far_away, "store")
    store.transfer(handle)
    handle.wait(timeout=60)
    assert (tmp_path / "file").read_bytes() == bytes(1 << 20) + memory.tobytes()


def test_a_file_may_be_the_local_side(store: nixl_agent, tmp_path: pathlib.Path) -> None:
    """READ moves bytes from the remote side to the local one, whichever of them is the file."""
    (tmp_path / "file").write_bytes(b"f" * 4096)
    memory = np.full(4096, ord("m"), np.uint8)
    store.register_memory(memory)
    file = store.register_memory([(0, 4096, 1, f"rw:{tmp_path / 'file'}")], "FILE")
    handle = store.initialize_xfer("WRITE", file, memory, "store")  # the file into the memory
    store.transfer(handle)
    handle.wait(timeout=60)
    assert memory.tobytes() == b"f" * 4096
    memory[:] = ord("n")
    handle = store.initialize_xfer("READ", file, memory, "store")  # the memory into the file
    store.transfer(handle)
    handle.wait(timeout=60)
    assert (tmp_path / "file").read_bytes() == b"n" * 4096


def test_memory_outside_registrations_is_refused(small: Pair) -> None:
    address = small.target.ctypes.data
    local = small.near.get_xfer_descs(small.source[:128])
    remote = small.near.get_xfer_descs([(address + small.target.nbytes - 64, 128, 0)], "DRAM")
    with pytest.raises(nixl.nixlNotFoundError, match="descriptor 0"):
        small.near.initialize_xfer("WRITE", local, remote, "far")


def test_damaged_metadata_is_refused(small: Pair) -> None:
    metadata = small.far.get_agent_metadata()
    with nixl_agent("reader") as reader:
        for at in range(len(metadata)):
            damaged = bytearray(metadata)
            damaged[at] ^= 1 << at % 8
            with pytest.raises(nixl.nixlError):
                reader.add_remote_agent(bytes(damaged))
            with pytest.raises(nixl.nixlError):
                reader.add_remote_agent(metadata[:at])
        assert reader.peers() == []
        assert reader.add_remote_agent(metadata) == b"far"


def test_etcd_without_an_endpoint_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NIXL_ETCD_ENDPOINTS", raising=False)
    with pytest.raises(nixl.nixlInvalidParamError, match="NIXL_ETCD_ENDPOINTS"):
        nixl_agent("store", nixl_agent_config(use_etcd=True))


def test_a_removed_peer_ends_its_transfers_only(small: Pair) -> None:
    handle = small.write()
    small.near.transfer(handle)
    handle.wait(timeout=60)
    small.near.remove_remote_agent("far")
    with pytest.raises(nixl.nixlRemoteDisconnectError):
        small.near.transfer(handle)
    small.near.add_remote_agent(small.far.get_agent_metadata())
    again = small.write()
    small.near.transfer(again)
    assert again.wait(timeout=60) == "DONE"


def resident_kib() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def test_a_million_transfers_leave_no_memory_behind(small: Pair) -> None:
    """Prepared, posted and released, 1,000,000 times."""
    descs = small.near.get_xfer_descs
    local, remote = descs(small.source[:64]), descs(small.target[:64])
    after: list[int] = []
    for _ in range(10):
        for _ in range(100_000):
            handle = small.near.initialize_xfer("WRITE", local, remote, "far")
            small.near.transfer(handle)
            small.near.release_xfer_handle(handle)
        after.append(resident_kib())
    # Less than one byte a round past the first rounds, which fill the caches.
    assert after[-1] - after[1] < 800, after


def test_no_descriptor_reaches_another_program(small: Pair) -> None:
    """Everything is close-on-exec."""
    small.near.fileno()
    ours = pathlib.Path("/proc/self/fd")
    open_here = {int(entry.name) for entry in ours.iterdir()}
    inheritable = set()
    for number in open_here:
        try:
            target = os.readlink(ours / str(number))
            if os.get_inheritable(number) and number > 2:
                inheritable.add((number, target))
        except OSError:
            continue
    assert not [entry for entry in inheritable if "nixl" in entry[1] or "anon_inode" in entry[1]]
