"""HiCache over a real store: a key an object, many blocks an object, and a cleaner that removes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from obj_support import parameters
from weed import BUCKET

_runs = itertools.count(1)
PACKED = "nixl-hicache/"


def block(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, 5000, dtype=np.uint8)


def fetch(connector, keys):
    return connector.batch_get(keys, [np.zeros(5000, dtype=np.uint8) for _ in keys])


def names(witness, prefix: str) -> list[str]:
    listed = witness.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for entry in listed.get("Contents", [])]


@pytest.fixture
def make_connector(weed, tmp_path):
    hicache = pytest.importorskip("nixl.hicache")
    made = []

    def make(layout: str, **more):
        raw = {
            "plugin": {"obj": {**parameters(weed.endpoint), "active": True}},
            "hicache": {"layout": layout, **more},
        }
        made.append(hicache.HiCacheNixl(str(tmp_path), "OBJ", config=raw))
        return made[-1]

    yield make
    for connector in made:
        connector.close()


@pytest.mark.parametrize("layout", ["files", "packed"])
def test_set_get_exists_and_clear(make_connector, witness, prefix, layout):
    connector = make_connector(layout)
    keys = [f"{prefix}{layout} key {i}" for i in range(20)]
    assert connector.batch_set(keys, [block(i) for i in range(20)])
    found = fetch(connector, [*keys, prefix + "missing"])
    assert found[20] is None
    assert all(np.array_equal(found[i], block(i)) for i in range(20))
    assert connector.exists(keys[3]) and not connector.exists(prefix + "missing")
    assert connector.batch_exists([*keys[:4], prefix + "missing", *keys[4:]]) == 4
    inside = PACKED if layout == "packed" else prefix
    assert len(names(witness, inside)) == (1 if layout == "packed" else 20)
    if layout == "packed":
        connector.clear()
        assert names(witness, PACKED) == []


def test_many_blocks_in_one_object_survive_a_restart(make_connector, witness):
    connector = make_connector("packed")
    assert connector.batch_set([f"k{i}" for i in range(100)], [block(i) for i in range(100)])
    assert connector.batch_set([f"m{i}" for i in range(50)], [block(i) for i in range(50)])
    assert len(names(witness, PACKED)) == 2
    connector.close()
    again = make_connector("packed")
    found = fetch(again, [f"k{i}" for i in range(100)])
    assert all(np.array_equal(found[i], block(i)) for i in range(100))
    again.clear()
    assert names(witness, PACKED) == []


def test_the_cleaner_really_removes_objects(make_connector, witness):
    connector = make_connector("packed", max_bytes=20 * 8192)
    for i in range(10):
        assert connector.batch_set([f"{i}-{j}" for j in range(5)], [block(j) for j in range(5)])
    connector.packed.maintain(0.5)
    assert 1 <= len(names(witness, PACKED)) <= 5
    assert np.array_equal(fetch(connector, ["9-4"])[0], block(4))
    connector.clear()
    assert names(witness, PACKED) == []


def test_an_object_that_was_removed_or_changed_is_a_miss(make_connector, witness):
    connector = make_connector("packed")
    assert connector.batch_set(["a", "b"], [block(1), block(2)])
    (name,) = names(witness, PACKED)
    data = witness.get_object(Bucket=BUCKET, Key=name)["Body"].read()
    spoiled = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    witness.put_object(Bucket=BUCKET, Key=name, Body=spoiled)
    found = fetch(connector, ["a", "b"])
    assert found[0] is None and np.array_equal(found[1], block(2))
    witness.delete_object(Bucket=BUCKET, Key=name)
    assert fetch(connector, ["b"]) == [None]
