"""A framework's own store, whatever its names for set, get, check and delete."""

from __future__ import annotations

import datetime

import pytest
from nixl import nixl_agent_config
from nixl.store import FrameworkStore


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


def hash_store():
    return pytest.importorskip("torch.distributed", reason="no torch here").HashStore()


@pytest.mark.parametrize("make", [dict, Minimal, LikeRedis, tcp_store, hash_store])
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
