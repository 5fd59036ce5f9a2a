"""SGLang's own classes, imported from its package, drive ours; and its own connector runs over our
package and shares files with us."""

from __future__ import annotations

import importlib
import json
import os

import pytest
from hicache_support import PagePool

torch = pytest.importorskip("torch")


def config(sglang, **extra):
    values = {
        "tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0,
        "attn_cp_size": 1, "is_mla_model": False, "enable_storage_metrics": True,
        "is_page_first_layout": True, "model_name": "org/model",
    }  # fmt: skip
    return sglang.HiCacheStorageConfig(**values, extra_config=extra)


DYNAMIC = {
    "backend_name": "nixl",
    "module_path": "nixl.hicache.hicache_nixl",
    "class_name": "HiCacheNixl",
    "interface_v1": 1,
}


@pytest.fixture
def factory(sglang):
    return importlib.import_module("sglang.srt.mem_cache.storage.backend_factory")


def names(count):
    return [f"{i:064x}" for i in range(count)]


def test_it_is_a_subclass_when_sglang_is_there(sglang):
    from nixl.hicache.hicache_nixl import HiCacheNixl

    assert issubclass(HiCacheNixl, sglang.HiCacheStorage)
    assert not HiCacheNixl.__abstractmethods__


def test_the_dynamic_backend_of_an_unmodified_sglang(sglang, factory, tmp_path, monkeypatch):
    monkeypatch.setenv("SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR", str(tmp_path))
    pool = PagePool(16)
    backend = factory.StorageBackendFactory.create_backend(
        "dynamic", config(sglang, **DYNAMIC), pool
    )
    backend.register_mem_pool_host(pool)
    backend.on_host_pools_registered()
    before = pool.fill(1)
    keys, pages = names(16), pool.indices(list(range(16)))
    extra = sglang.HiCacheStorageExtraInfo(prefix_keys=None)
    assert backend.batch_set_v1(keys, pages, extra) == [True] * 16
    pool.fill(2)
    assert backend.batch_exists(keys, extra) == 16
    assert backend.batch_get_v1(keys, pages, extra) == [True] * 16
    assert torch.equal(pool.kv_buffer, before)
    transfer = sglang.PoolTransfer(
        name=sglang.PoolName.SWA, keys=keys[:2], host_indices=pool.indices([3, 4])
    )
    backend.register_mem_host_pool_v2(pool, sglang.PoolName.SWA)
    assert backend.batch_set_v2([transfer]) == {sglang.PoolName.SWA: [True, True]}
    result = backend.batch_exists_v2(keys, [transfer])
    assert isinstance(result, sglang.PoolTransferResult) and result.kv_hit_pages == 2
    assert result.extra_pool_hit_pages[sglang.PoolName.SWA] == 2
    assert backend.batch_get_v2([transfer]) == {sglang.PoolName.SWA: [True, True]}
    stats = backend.get_stats()
    assert stats.backup_pgs[0] == 16 and len(stats.prefetch_bandwidth) == len(stats.prefetch_pgs)
    backend.clear()
    assert backend.batch_exists(keys) == 0
    backend.close()


def test_the_generic_interface_without_interface_v1(sglang, factory, tmp_path, monkeypatch):
    monkeypatch.setenv("SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR", str(tmp_path))
    pool = PagePool(8, layout="layer_first")
    backend = factory.StorageBackendFactory.create_backend(
        "dynamic", config(sglang, **DYNAMIC), pool
    )
    backend.register_mem_pool_host(pool)
    pool.fill(1)
    keys = names(8)
    data = [pool.get_data_page(i * pool.page_size) for i in range(8)]
    assert backend.batch_set(keys, data)
    targets = [pool.get_dummy_flat_data_page() for _ in keys]
    found = backend.batch_get([*keys, "missing"], [*targets, pool.get_dummy_flat_data_page()])
    assert found[8] is None
    for value, page in zip(found, data, strict=False):
        assert torch.equal(value, page)
    assert backend.exists(keys[0])
    backend.close()


def test_extra_configuration_as_sglang_reads_it(sglang, factory, tmp_path, monkeypatch):
    text = tmp_path / "config.nixl.json"
    text.write_text(json.dumps({
        **DYNAMIC,
        "hicache": {"layout": "packed", "storage_dirs": [str(tmp_path / "a"), str(tmp_path / "b")]},
        "plugin": {"posix": {"use_aio": "true", "active": True}},
    }))  # fmt: skip
    monkeypatch.delenv("SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR", raising=False)
    pool = PagePool(32)
    backend = factory.StorageBackendFactory.create_backend(
        "dynamic", config(sglang, **json.loads(text.read_text())), pool
    )
    backend.register_mem_pool_host(pool)
    assert all(backend.batch_set_v1(names(32), pool.indices(list(range(32)))))
    assert (tmp_path / "a/.nixl-packed").exists() and (tmp_path / "b/.nixl-packed").exists()
    backend.close()


@pytest.fixture
def own_connector(sglang):
    """SGLang's own nixl connector, on our package."""
    try:
        return importlib.import_module("sglang.srt.mem_cache.storage.nixl.hicache_nixl")
    except ImportError as error:
        pytest.skip(f"SGLang's own connector cannot be imported here: {error}")


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
def test_sglangs_own_connector_runs_on_our_package(
    sglang, factory, own_connector, tmp_path, monkeypatch, direct
):
    monkeypatch.setenv("SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR", str(tmp_path))
    pool = PagePool(16)
    pool.is_stride_page_aligned = lambda *_: True
    extra = {
        "use_direct_io": direct,
        "l3_cleaner_enabled": False,
        "plugin": {"posix": {"use_uring": "true", "active": True}},
    }
    theirs = factory.StorageBackendFactory.create_backend("nixl", config(sglang, **extra), pool)
    theirs.register_mem_pool_host(pool)
    before = pool.fill(1)
    keys, pages = names(16), pool.indices(list(range(16)))
    assert all(theirs.batch_set_v1(keys, pages))
    assert theirs.batch_exists(keys) == 16
    pool.fill(2)
    assert all(theirs.batch_get_v1(keys, pages))
    assert torch.equal(pool.kv_buffer, before)

    # Both read what the other wrote, in the layout `files`.
    from nixl.hicache.hicache_nixl import HiCacheNixl

    ours = HiCacheNixl(config(sglang, hicache={"layout": "files"}), str(tmp_path))
    ours.register_mem_pool_host(pool)
    pool.fill(3)
    assert ours.batch_exists(keys) == 16
    assert all(ours.batch_get_v1(keys, pages))
    assert torch.equal(pool.kv_buffer, before)
    more = [f"{i:064x}" for i in range(100, 116)]
    assert all(ours.batch_set_v1(more, pages))
    pool.fill(4)
    assert theirs.batch_exists(more) == 16
    assert all(theirs.batch_get_v1(more, pages))
    assert torch.equal(pool.kv_buffer, before)
    ours.close()
    theirs.close()
    assert os.path.isdir(tmp_path)
