"""The packed layout from Python: whose blocks are cleared, keys that are too long, rights, and room
that comes back under a cap. The store's own tests are in src/hicache."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest
from hicache_support import PagePool, storage_config


def block(i: int, size: int = 8192) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)


def fetch(connector, keys, size=8192):
    return connector.batch_get(keys, [np.zeros(size, dtype=np.uint8) for _ in keys])


@pytest.mark.parametrize("layout", ["packed", "backend"])
def test_clear_removes_what_is_this_instances(make, tmp_path, layout):
    models = {
        "own": storage_config(model_name="org/DeepSeek-V2", is_mla_model=True),
        "next": storage_config(model_name="org/DeepSeek-V2.5", is_mla_model=True),
        "rank": storage_config(model_name="org/DeepSeek-V2", tp_rank=1, tp_size=2),
        "alone": None,
    }
    path = tmp_path / "store"
    all_of_them = {
        name: make(path, layout=layout, storage_config=config) for name, config in models.items()
    }
    keys, pools = [f"{i:064x}" for i in range(4)], {}
    for name, connector in all_of_them.items():
        assert connector.batch_set([f"{name}-{i}" for i in range(3)], [block(i) for i in range(3)])
        pools[name] = PagePool(4)
        pools[name].fill(len(name))
        connector.register_mem_pool_host(pools[name])
        assert all(connector.batch_set_v1(keys, pools[name].indices([0, 1, 2, 3])))
    twin = make(path, layout=layout, storage_config=models["own"])
    twin.clear()  # also what another connector of that model stored
    for name, connector in all_of_them.items():
        there = name != "own"
        assert connector.batch_exists(keys) == (4 if there else 0), name
        found = fetch(connector, [f"{name}-{i}" for i in range(3)])
        assert [value is not None for value in found] == [there] * 3, name
    all_of_them["alone"].clear()
    assert all_of_them["alone"].batch_exists(keys) == 0
    for name in ("next", "rank"):
        assert all(all_of_them[name].batch_get_v1(keys, pools[name].indices([0, 1, 2, 3])))
    for connector in [*all_of_them.values(), twin]:
        connector.close()
    again = make(path, layout=layout, storage_config=models["own"])
    assert not again.exists("own-1") and again.get_stats()["blocks"] == 2 * 7


def test_a_key_that_is_too_long_fails_at_its_place_only(make, caplog):
    connector = make(layout="packed")
    keys = ["a", "k" * 4097, "k" * 4096, "b"]
    assert not connector.batch_set(keys, [block(i) for i in range(4)])
    assert "4096 bytes" in caplog.text
    found = fetch(connector, keys)
    assert [value is not None for value in found] == [True, False, True, True]
    assert [connector.exists(key) for key in keys] == [True, False, True, True]


def test_files_are_the_users_alone_unless_configured_otherwise(make, tmp_path):
    umask = os.umask(0o022)
    try:
        for mode, folder, more in ((0o600, 0o700, {}), (0o640, 0o750, {"file_mode": "0640"})):
            path = tmp_path / f"store{mode:o}"
            connector = make(path, layout="packed", durability="disk", **more)
            assert connector.set("k", block(1))
            for root, folders, names in os.walk(path):
                assert os.stat(root).st_mode & 0o777 == folder, root
                for name in names:
                    assert os.stat(os.path.join(root, name)).st_mode & 0o777 == mode, name
                assert folders or names
    finally:
        os.umask(umask)


@pytest.mark.parametrize("layout", ["packed", "backend"])
def test_one_key_replaced_under_a_cap_takes_no_more_than_the_cap(make, tmp_path, layout):
    connector = make(layout=layout, max_bytes="4 MiB")
    value = block(1, 1 << 20)
    for i in range(60):
        value[0] = i
        assert connector.set("k", value)
    on_disk = sum(
        file.stat().st_blocks * 512 for file in (tmp_path / "store/.nixl-packed/segments").iterdir()
    )
    assert on_disk <= 4 << 20
    assert np.array_equal(fetch(connector, ["k"], 1 << 20)[0], value)


@pytest.mark.parametrize("layout", ["packed", "backend"])
def test_a_full_disk_is_not_full_while_most_of_it_is_dead(make, tmp_path, layout):
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        connector = make(folder / "store", layout=layout)  # no cap
        value = block(1, 1 << 20)
        for i in range(30):
            value[0] = i
            assert connector.set("k", value), i
        assert np.array_equal(fetch(connector, ["k"], 1 << 20)[0], value)
        connector.close()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("layout", ["packed", "backend"])
def test_a_block_that_cannot_be_read_does_not_exist(make, tmp_path, layout):
    connector = make(layout=layout)
    keys = ["a", "b", "c"]
    assert connector.batch_set(keys, [block(i) for i in range(3)])
    segment = next((tmp_path / "store/.nixl-packed/segments").iterdir())
    os.truncate(segment, 8192 + 100)
    assert [value is not None for value in fetch(connector, keys)] == [True, False, False]
    assert [connector.exists(key) for key in keys] == [True, False, False]
    assert connector.set("b", block(1))
    assert np.array_equal(fetch(connector, ["b"])[0], block(1))
