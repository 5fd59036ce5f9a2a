"""Keys as objects, one each or many in one, over an object store in memory that also fails."""

from __future__ import annotations

import numpy as np
import pytest
from fake_objects import ObjectAgent
from hicache_support import PagePool, storage_config


@pytest.fixture
def make_objects(monkeypatch, tmp_path):
    import nixl._api

    monkeypatch.setattr(nixl._api, "nixl_agent", ObjectAgent)
    from nixl.hicache import HiCacheNixl

    ObjectAgent.buckets.clear()
    made = []

    def build(layout, config=None, **hicache):
        raw = {"plugin": {"obj": {"bucket": "b"}}, "hicache": {"layout": layout, **hicache}}
        if config is None:
            connector = HiCacheNixl(str(tmp_path), "OBJ", config=raw)
        else:
            config.extra_config = raw
            connector = HiCacheNixl(config, str(tmp_path))
        made.append(connector)
        return connector

    yield build
    for connector in made:
        connector.close()


def block(i):
    return np.random.default_rng(i).integers(0, 256, 5000, dtype=np.uint8)


def fetch(connector, keys):
    return connector.batch_get(keys, [np.zeros(5000, dtype=np.uint8) for _ in keys])


@pytest.mark.parametrize("layout", ["files", "packed"])
def test_set_get_exists_and_misses(make_objects, layout):
    connector = make_objects(layout)
    keys = [f"dir/key {i}" for i in range(10)]
    assert connector.batch_set(keys, [block(i) for i in range(10)])
    found = fetch(connector, [*keys, "missing"])
    assert found[10] is None
    assert all(np.array_equal(found[i], block(i)) for i in range(10))
    assert connector.exists(keys[3]) and not connector.exists("missing")
    assert connector.batch_exists([*keys[:4], "missing", *keys[4:]]) == 4
    assert not connector.agent.keys or layout == "packed"  # nothing stays registered
    assert len(connector.agent.objects) == (10 if layout == "files" else 1)


def test_keys_are_the_objects_names(make_objects):
    connector = make_objects("files")
    assert connector.set("model/page-1", block(1))
    assert connector.agent.objects == {"model/page-1": block(1).tobytes()}


@pytest.mark.parametrize("layout", ["files", "packed"])
def test_faults_fail_their_keys_and_nothing_else(make_objects, layout):
    connector = make_objects(layout)
    assert connector.batch_set([f"k{i}" for i in range(5)], [block(i) for i in range(5)])
    connector.agent.fail_every = 1
    assert not connector.batch_set(["x", "y"], [block(1), block(2)])
    assert fetch(connector, ["k0", "k1"]) == [None, None]
    connector.agent.fail_every = 3
    for i in range(20):
        found = fetch(connector, [f"k{j}" for j in range(5)])
        for j, value in enumerate(found):
            assert value is None or np.array_equal(value, block(j))
        key = f"more{i}"
        stored = connector.set(key, block(100 + i))
        connector.agent.fail_every = 0
        value = fetch(connector, [key])[0]
        assert (value is not None) == stored
        assert value is None or np.array_equal(value, block(100 + i))
        connector.agent.fail_every = 3
    connector.agent.fail_every = 0
    assert all(value is not None for value in fetch(connector, [f"k{j}" for j in range(5)]))


def test_many_blocks_in_one_object_survive_a_restart(make_objects):
    connector = make_objects("packed")
    assert connector.batch_set([f"k{i}" for i in range(100)], [block(i) for i in range(100)])
    assert connector.batch_set([f"m{i}" for i in range(50)], [block(i) for i in range(50)])
    assert len(connector.agent.objects) == 2
    connector.close()
    again = make_objects("packed")
    found = fetch(again, [f"k{i}" for i in range(100)])
    assert all(np.array_equal(found[i], block(i)) for i in range(100))


def test_a_changed_or_missing_object_is_a_miss(make_objects):
    connector = make_objects("packed")
    assert connector.batch_set(["a", "b"], [block(1), block(2)])
    ((name, data),) = connector.agent.objects.items()
    connector.agent.objects[name] = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    found = fetch(connector, ["a", "b"])
    assert found[0] is None and np.array_equal(found[1], block(2))
    connector.agent.objects.clear()
    assert fetch(connector, ["b"]) == [None]


def test_objects_without_live_blocks_are_removed(make_objects):
    connector = make_objects("packed", max_bytes=20 * 8192)
    for i in range(10):
        keys = [f"{i}-{j}" for j in range(5)]
        assert connector.batch_set(keys, [block(j) for j in range(5)])
    connector.packed.maintain(0.5)
    assert 1 <= len(connector.agent.objects) <= 5
    assert np.array_equal(fetch(connector, ["9-4"])[0], block(4))
    connector.clear()
    assert connector.agent.objects == {}


def test_objects_that_could_not_be_removed_are_removed_later(make_objects, caplog):
    connector = make_objects("packed", max_bytes=4 * 8192)
    connector.agent.fail_removals = True
    for i in range(6):
        assert connector.set(f"k{i}", block(i))
    connector.packed.maintain(0.5)
    left = len(connector.agent.objects)
    assert left > 4 and "objects were not removed" in caplog.text
    connector.agent.fail_removals = False
    connector.packed.maintain(0.5)
    assert len(connector.agent.objects) <= 4
    assert np.array_equal(fetch(connector, ["k5"])[0], block(5))


def test_clear_removes_this_connectors_objects_only(make_objects):
    config = storage_config()
    pages = [f"{i:064x}" for i in range(4)]
    connector = make_objects("files", config)
    other = make_objects("files", storage_config(model_name="an_org-model"))
    for one in (connector, other):
        pool = PagePool(4)
        one.register_mem_pool_host(pool)
        assert all(one.batch_set_v1(pages, pool.indices([0, 1, 2, 3])))
    connector.agent.objects["notes"] = b"not ours"
    assert connector.set("a key", block(1)) and len(connector.agent.objects) == 8 + 8 + 1 + 1
    connector.clear()
    assert len(connector.agent.objects) == 8 + 1 and "notes" in connector.agent.objects
    assert connector.batch_exists(pages) == 0 and other.batch_exists(pages) == 4
    alone = make_objects("files")
    assert alone.batch_set(["k1", "k2"], [block(1), block(2)])
    alone.clear()
    assert len(connector.agent.objects) == 8 + 1 and not alone.exists("k1")


def test_the_stand_in_is_called_as_the_real_agent(make_objects):
    connector = make_objects("packed")
    with pytest.raises(TypeError):
        connector.agent.remove_storage([(0, 0, 0, "k")], "OBJ", "OBJ")


@pytest.mark.parametrize("layout", ["auto", "files"])
def test_pages_as_objects(make_objects, layout):
    torch = pytest.importorskip("torch")
    connector = make_objects(layout, storage_config())
    pool = PagePool(16)
    connector.register_mem_pool_host(pool)
    before = pool.fill(1)
    keys, pages = [f"{i:064x}" for i in range(16)], pool.indices(list(range(16)))
    assert all(connector.batch_set_v1(keys, pages))
    assert connector.batch_exists(keys) == 16
    pool.fill(2)
    assert all(connector.batch_get_v1(keys, pages))
    assert torch.equal(pool.kv_buffer, before)
    assert len(connector.agent.objects) == (1 if layout == "auto" else 32)


def test_one_object_a_key_has_no_cap_and_says_so(make_objects, caplog):
    make_objects("files", max_bytes=4 * 8192)
    assert "max_bytes is not kept for one object a key" in caplog.text
