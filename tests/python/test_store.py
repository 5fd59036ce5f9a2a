"""A framework's own store, whatever its names for set, get, check and delete."""

from __future__ import annotations

import datetime
import threading
import time

import nixl
import pytest
from nixl import nixl_agent_config
from nixl.store import FrameworkStore


def eventually(what, seconds: float = 30):
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)  # sleeps: between two looks
    return value


class Minimal:
    """Just the four, one key at a time; its get waits for ever where there is none."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key, value):
        self.values[key] = value

    def get(self, key):
        if key not in self.values:
            raise AssertionError("this would wait for ever")
        return self.values[key]

    def check(self, key):
        assert isinstance(key, str)
        return key in self.values

    def delete(self, key):
        self.values.pop(key, None)


class LikeRedis:
    """get gives None where there is none; check is called exists."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.host, self.port = "db", 6379

    def set(self, name, value, ex=None):
        self.values[name] = bytes(value)
        return True

    def get(self, name):
        return self.values.get(name)

    def exists(self, *names):
        return sum(name in self.values for name in names)

    def delete(self, *names):
        return sum(self.values.pop(name, None) is not None for name in names)


def tcp_store():
    torch = pytest.importorskip("torch.distributed", reason="no torch here")
    return torch.TCPStore("127.0.0.1", 0, is_master=True, timeout=datetime.timedelta(seconds=60))


@pytest.mark.parametrize("make", [dict, Minimal, LikeRedis, tcp_store])
def test_every_kind_of_store(make):
    store = FrameworkStore(make())
    value = bytes(range(256)) * 100
    assert store.get("/nixl/a b/é") is None
    store.set("/nixl/a b/é", value)
    assert store.get("/nixl/a b/é") == value
    store.set("/nixl/a b/é", b"")
    assert store.get("/nixl/a b/é") == b""
    store.remove("/nixl/a b/é")
    assert store.get("/nixl/a b/é") is None
    store.remove("/nixl/a b/é")
    assert "metadata_store" in store.describe()


def test_what_is_no_store():
    for wrong in (5, object(), [1]):
        with pytest.raises(TypeError, match="no set and no get"):
            nixl_agent_config(metadata_store=wrong)

    class ReadOnly:
        def get(self, key):
            return None

    with pytest.raises(TypeError, match="ReadOnly has no set"):
        FrameworkStore(ReadOnly())
    with pytest.raises(TypeError, match="gave a str"):
        FrameworkStore({"k": "text"}).get("k")
    assert FrameworkStore(LikeRedis()).describe() == "metadata_store LikeRedis(db:6379)"


def test_the_configuration_keeps_what_was_given():
    store = {}
    config = nixl_agent_config(metadata_store=store, backends=[])
    assert config.metadata_store is store
    assert config.raw().store.store is store and config.raw().metadataStore == ""
    assert "_store" not in repr(config).replace("metadata_store", "")
    assert nixl_agent_config(metadata_store="/x").raw().metadataStore == "/x"
    assert nixl_agent_config(metadata_store=None).raw().store is None


def directory(tmp_path):
    return str(tmp_path / "store")


KINDS = [dict, Minimal, LikeRedis, tcp_store, directory]


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    """What several agents are given as their store."""
    return request.param(tmp_path) if request.param is directory else request.param()


def described(agent, piece):
    return agent.get_xfer_descs([(piece.address, piece.size, 0)], "DRAM")


def test_agents_meet_through_it(store, make_agent, memory):
    first = make_agent("first", metadata_store=store)
    second = make_agent("second", metadata_store=store)
    piece = memory(4096)
    registered = first.register_memory([(piece.address, 4096, 0, "")], "DRAM")
    first.send_local_metadata(timeout=30)
    second.fetch_remote_metadata(first.name, timeout=30)
    # A watch may have shown an earlier version, which is followed by this one.
    eventually(lambda: second.check_remote_metadata(first.name, described(second, piece)))
    # What is registered later comes too; a store that tells nothing by itself is asked.
    more = memory(4096)
    first.register_memory([(more.address, 4096, 0, "")], "DRAM")
    eventually(lambda: second.check_remote_metadata(first.name, described(second, more)))
    first.send_partial_agent_metadata(registered, True, label="part", timeout=30)
    third = make_agent("third", metadata_store=store)
    third.fetch_remote_metadata(first.name, label="part", timeout=30)
    assert third.check_remote_metadata(first.name, described(third, piece))
    with pytest.raises(nixl.nixlTimeoutError, match=r"nobody.*(metadata_store|directory)"):
        third.fetch_remote_metadata("nobody", timeout=0.1)
    first.invalidate_local_metadata(timeout=30)
    with pytest.raises(nixl.nixlTimeoutError):
        make_agent("late", metadata_store=store).fetch_remote_metadata(first.name, timeout=0.2)


def test_nothing_is_left_in_it(make_agent):
    store = {}
    agents = [make_agent(metadata_store=store) for _ in range(3)]
    for agent in agents:
        agent.send_local_metadata(timeout=30)
    assert store
    for agent in agents:
        agent.close()
    assert store == {}


def test_a_store_that_fails_is_named(make_agent):
    class Broken(Minimal):
        def set(self, key, value):
            raise OSError("on fire")

    agent = make_agent(metadata_store=Broken())
    with pytest.raises(nixl.nixlBackendError, match="metadata_store Broken: OSError: on fire"):
        agent.send_local_metadata(timeout=30)


def test_a_store_that_hangs_holds_up_nobody(make_agent):
    release = threading.Event()

    class Hanging(Minimal):
        def get(self, key):
            release.wait(60)
            return None

        def check(self, key):
            return True

    agent = make_agent(metadata_store=Hanging())
    agent.fetch_remote_metadata("somebody")
    assert agent.check_remote_metadata("somebody") is False
    agent.close()
    release.set()


def test_agents_of_a_directory_find_each_other(make_agent, tmp_path, run_python):
    where = str(tmp_path / "store")
    first = make_agent("first", metadata_store=where)
    second = make_agent("second", metadata_store="file:" + where)
    assert second.name in first.wait_for_peers(1, timeout=30)
    # One that is killed goes too.
    run_python(
        f"""
import os, signal
from nixl import nixl_agent, nixl_agent_config
agent = nixl_agent("killed", nixl_agent_config(metadata_store={where!r}))
agent.wait_for_peers(2, timeout=30)
agent.send_local_metadata(timeout=30)
os.kill(os.getpid(), signal.SIGKILL)
""",
        status=-9,
    )
    eventually(lambda: "killed" not in first.peers() and second.name in first.peers())
    second.close()
    eventually(lambda: first.peers() == [])


def test_one_store_is_used(make_agent, tmp_path):
    with pytest.raises(nixl.nixlInvalidParamError, match="one of metadata_store and use_etcd"):
        make_agent(metadata_store={}, use_etcd=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(nixl.nixlInvalidParamError, match="is no directory"):
        make_agent(metadata_store=str(tmp_path / "file"))
