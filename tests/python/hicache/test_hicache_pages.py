"""The page interface: pools of pages by hash, zero copy and through a bounce, one pool and several,
packed and in files."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from hicache_support import PagePool, storage_config

torch = pytest.importorskip("torch")

PAGES = 48


def keys(count: int, prefix: str = "h") -> list[str]:
    return [f"{prefix}{i:062x}" for i in range(count)]


def transfer(name, keys_, indices=None, policy="all_pages", **more):
    return types.SimpleNamespace(
        name=name, keys=keys_, host_indices=indices, hit_policy=policy, **more
    )


CASES = [
    ("page_first", None, 4096),
    ("page_first", "files", 4096),
    ("page_first", None, 5000),
    ("layer_first", None, 4096),
    ("layer_first", "files", 4096),
]


@pytest.mark.parametrize(("pool_layout", "layout", "part"), CASES)
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
def test_pages_come_back_where_they_are_asked_for(make, pool_layout, layout, part, direct):
    connector = make(layout=layout, storage_config=storage_config(), use_direct_io=direct)
    pool = PagePool(PAGES, part, pool_layout)
    connector.register_mem_pool_host(pool)
    assert connector.is_zero_copy == (pool_layout == "page_first")
    before = pool.fill(1)
    order = np.random.default_rng(3).permutation(PAGES).tolist()
    names = keys(PAGES)
    assert connector.batch_set_v1(names, pool.indices(order)) == [True] * PAGES
    assert connector.batch_exists(names) == PAGES
    pool.fill(2)
    assert connector.batch_get_v1(names, pool.indices(order)) == [True] * PAGES
    assert torch.equal(pool.kv_buffer, before)
    # Into other pages than they came from.
    turned = order[1:] + order[:1]
    assert all(connector.batch_get_v1(names, pool.indices(turned)))
    for source, target in zip(order, turned, strict=True):
        s, t = (slice(p * pool.page_size, (p + 1) * pool.page_size) for p in (source, target))
        assert torch.equal(pool.kv_buffer[..., t, :], before[..., s, :])


def test_the_prefix_ends_at_the_first_missing_page(make):
    connector = make(storage_config=storage_config())
    pool = PagePool(8)
    connector.register_mem_pool_host(pool)
    names = keys(8)
    connector.batch_set_v1(names[:3] + names[4:], pool.indices([0, 1, 2, 4, 5, 6, 7]))
    assert connector.batch_exists(names) == 3
    assert connector.batch_exists(names[3:]) == 0
    assert connector.batch_exists([]) == 0
    found = connector.batch_get_v1(names, pool.indices(list(range(8))))
    assert found == [True] * 3 + [False] + [True] * 4


def test_keys_and_indices_must_fit(make, caplog):
    connector = make(storage_config=storage_config())
    pool = PagePool(8)
    assert connector.batch_set_v1(keys(2), pool.indices([0, 1])) == [False, False]
    assert "not registered" in caplog.text
    connector.register_mem_pool_host(pool)
    assert connector.batch_set_v1(keys(2), pool.indices([0])) == [False, False]
    assert "need 8 indices, got 4" in caplog.text
    assert connector.batch_set_v1([], pool.indices([])) == []


def test_ranks_models_and_formats_do_not_mix(make, tmp_path):
    a = make(storage_config=storage_config(tp_rank=0, tp_size=2))
    b = make(storage_config=storage_config(tp_rank=1, tp_size=2))
    c = make(storage_config=storage_config(tp_rank=0, tp_size=2))
    pools = [PagePool(4), PagePool(4), PagePool(4, layout="layer_first")]
    for connector, pool in zip((a, b, c), pools, strict=True):
        connector.register_mem_pool_host(pool)
    a.batch_set_v1(keys(2), pools[0].indices([0, 1]))
    assert a.batch_exists(keys(2)) == 2
    assert b.batch_exists(keys(2)) == 0
    assert c.batch_exists(keys(2)) == 0  # the same bytes in another order


def test_mla_pages_are_shared_and_written_by_one_rank(make):
    first = make(storage_config=storage_config(is_mla_model=True, tp_size=4))
    other = make(storage_config=storage_config(is_mla_model=True, tp_rank=3, tp_size=4))
    pools = [PagePool(4), PagePool(4)]
    first.register_mem_pool_host(pools[0])
    other.register_mem_pool_host(pools[1])
    assert other.batch_set_v1(keys(2), pools[1].indices([0, 1])) == [True, True]
    assert first.batch_exists(keys(2)) == 0
    before = pools[0].fill(1)
    assert first.batch_set_v1(keys(2), pools[0].indices([0, 1])) == [True, True]
    assert other.batch_get_v1(keys(2), pools[1].indices([2, 3])) == [True, True]
    assert torch.equal(pools[1].kv_buffer[:, 8:], before[:, :8])


@pytest.mark.parametrize("layout", ["packed", "files"])
@pytest.mark.parametrize("counted", ["over all ranks", "within a slice"])
@pytest.mark.parametrize("sglang_runs", [False, True])
def test_each_slice_of_an_mla_model_has_one_writer(make, layout, counted, sglang_runs, monkeypatch):
    """Two context-parallel ranks of two tensor-parallel ranks each."""
    module = types.ModuleType("sglang.srt.layers.dp_attention")
    if sglang_runs:
        module.is_dp_attention_enabled = lambda: counted == "within a slice"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    writers: dict[str, int] = {}
    for cp in range(2):
        for tp in range(2):
            over_all = counted == "over all ranks"
            told = tp + (2 * cp if over_all else 0)
            config = storage_config(
                is_mla_model=True, tp_rank=told, tp_size=4 if over_all else 2, attn_cp_rank=cp,
                attn_cp_size=2, is_storage_writer=told == 0,
            )  # fmt: skip
            connector = make(layout=layout, storage_config=config)
            pool = PagePool(2)
            connector.register_mem_pool_host(pool)
            before = pool.fill(2 * cp)  # what all ranks of a slice hold
            assert connector.batch_set_v1(keys(2), pool.indices([0, 1])) == [True, True]
            pool.fill(9)
            found = connector.batch_get_v1(keys(2), pool.indices([0, 1]))
            assert found == [True, True] and torch.equal(pool.kv_buffer, before)
            writers[connector.config_suffix] = (
                writers.get(connector.config_suffix, 0) + connector.get_stats()["set_pages"]
            )
    assert list(writers) == ["_org-model_cp0_2", "_org-model_cp1_2"]
    if counted == "over all ranks" or sglang_runs:
        assert set(writers.values()) == {2}


def test_large_blocks_go_to_files_by_default(make, tmp_path):
    connector = make(storage_config=storage_config())
    pool = PagePool(4, part_bytes=1 << 20)
    connector.register_mem_pool_host(pool)
    before = pool.fill(4)
    assert all(connector.batch_set_v1(keys(4), pool.indices([0, 1, 2, 3])))
    files = list((tmp_path / "store").rglob("*_k"))
    assert len(files) == 4 and all(p.stat().st_size == 1 << 20 for p in files)
    pool.fill(5)
    assert all(connector.batch_get_v1(keys(4), pool.indices([0, 1, 2, 3])))
    assert torch.equal(pool.kv_buffer, before)


def test_with_a_cap_large_blocks_are_packed_and_evicted(make):
    connector = make(storage_config=storage_config(), max_bytes="16 MiB")
    pool = PagePool(4, part_bytes=1 << 20)
    connector.register_mem_pool_host(pool)
    before = pool.fill(4)
    for i in range(5):
        assert all(connector.batch_set_v1(keys(4, f"{i}"), pool.indices([0, 1, 2, 3])))
    assert connector.get_stats()["live_bytes"] <= 16 << 20
    assert connector.batch_exists(keys(4, "4")) == 4 and connector.batch_exists(keys(4, "0")) == 0
    pool.fill(5)
    assert all(connector.batch_get_v1(keys(4, "4"), pool.indices([0, 1, 2, 3])))
    assert torch.equal(pool.kv_buffer, before)


def test_an_irregular_pool_is_asked_page_by_page(make, caplog):
    class Odd(PagePool):
        def get_page_buffer_meta(self, indices):
            mixed = indices.clone()
            pages = mixed // self.page_size
            mixed += ((pages == 5).long() - (pages == 3).long() * 1) * 0
            swap = {5: 6, 6: 5}
            first = [swap.get(int(p), int(p)) for p in pages[:: self.page_size]]
            return super().get_page_buffer_meta(self.indices(first))

    connector = make(storage_config=storage_config())
    pool = Odd(32)
    connector.register_mem_pool_host(pool)
    before = pool.fill(1)
    names, everything = keys(32), pool.indices(list(range(32)))
    for _ in range(40):  # until a spot check meets one of the odd pages
        assert all(connector.batch_get_v1(names, everything)) or True
    assert all(connector.batch_set_v1(names, everything))
    pool.fill(2)
    assert all(connector.batch_get_v1(names, everything))
    assert torch.equal(pool.kv_buffer, before)


def test_several_pools_and_their_hit_policies(make):
    connector = make(storage_config=storage_config())
    kv, swa, mamba = PagePool(16), PagePool(16), PagePool(16, layout="layer_first")
    connector.register_mem_pool_host(kv)
    connector.register_mem_host_pool_v2(swa, "swa")
    connector.register_mem_host_pool_v2(mamba, "mamba")
    names = keys(10)
    pages = list(range(10))
    connector.batch_set_v1(names, kv.indices(pages))
    before = [pool.fill(i) for i, pool in enumerate((swa, mamba))]
    done = connector.batch_set_v2(
        [
            transfer("swa", names[:7], swa.indices(pages[:7])),
            transfer("mamba", [names[4], names[8]], mamba.indices([4, 8])),
        ]
    )
    assert done == {"swa": [True] * 7, "mamba": [True, True]}

    def ask(*transfers):
        return connector.batch_exists_v2(names, list(transfers))

    assert ask().kv_hit_pages == 10
    assert ask(transfer("swa", None)).kv_hit_pages == 7
    result = ask(transfer("mamba", [names[0]], policy="trailing_pages"))
    assert result.kv_hit_pages == 9 and result.restorable_prefix_pages == [5, 9]
    both = ask(transfer("swa", None), transfer("mamba", [names[0]], policy="trailing_pages"))
    assert both.kv_hit_pages == 5
    assert both.extra_pool_hit_pages == {"kv": 10, "swa": 7, "mamba": 9}
    groups = transfer("swa", names, policy="block_groups", block_pages=4, group_pages=3)
    grouped = ask(groups)
    assert grouped.kv_hit_pages == 10 and grouped.extra_pool_hit_pages["swa"] == 8
    assert ask(transfer("unknown", None)).kv_hit_pages == 0

    for pool in (swa, mamba):
        pool.kv_buffer.zero_()
    got = connector.batch_get_v2(
        [
            transfer("swa", names[:7], swa.indices(pages[:7])),
            transfer("mamba", [names[8], names[9]], mamba.indices([8, 9])),
        ]
    )
    assert got == {"swa": [True] * 7, "mamba": [True, False]}
    assert torch.equal(swa.kv_buffer[:, :28], before[0][:, :28])
    assert torch.equal(mamba.kv_buffer[..., 32:36, :], before[1][..., 32:36, :])


def test_a_logical_anchor_pool_stores_markers(make):
    connector = make(storage_config=storage_config())
    anchor = types.SimpleNamespace(kv_buffer=None, page_size=4, layout="page_first", dtype="none")
    connector.register_mem_pool_host(anchor)
    indices = torch.arange(8)
    assert connector.batch_set_v1(keys(2), indices) == [True, True]
    assert connector.batch_exists(keys(3)) == 2
    assert connector.batch_get_v1(keys(2), indices) == [True, True]


def test_telemetry_is_a_file_where_it_is_enabled(make, tmp_path, monkeypatch):
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", "y")
    monkeypatch.setenv("NIXL_TELEMETRY_DIR", str(tmp_path))
    connector = make(storage_config=storage_config())
    pool = PagePool(4)
    connector.register_mem_pool_host(pool)
    connector.batch_set_v1(keys(4), pool.indices([0, 1, 2, 3]))
    connector.batch_get_v1(keys(5), pool.indices([0, 1, 2, 3, 3]))
    connector.close()
    (file,) = tmp_path.glob("*.prom")
    text = file.read_text()
    assert "# TYPE nixl_hicache_hits_total counter" in text
    lines = {line.split("{")[0]: line for line in text.splitlines() if "{" in line}
    assert lines["nixl_hicache_hits_total"].endswith(" 4")
    assert lines["nixl_hicache_misses_total"].endswith(" 1")
    assert 'operation="page_set",le="+Inf"} 1' in text and connector.agent_name in text


def test_statistics_count_what_happened(make):
    connector = make(storage_config=storage_config())
    pool = PagePool(8)
    connector.register_mem_pool_host(pool)
    connector.batch_set_v1(keys(4), pool.indices([0, 1, 2, 3]))
    connector.batch_get_v1(keys(6), pool.indices([0, 1, 2, 3, 4, 5]))
    connector.batch_exists(keys(4))
    stats = connector.get_stats()
    assert (stats["set_pages"], stats["get_pages"]) == (4, 4)
    assert (stats["hits"], stats["misses"]) == (4, 2)
    assert stats["set_bytes"] == stats["get_bytes"] == 4 * 8192
    assert stats["latency"]["page_get"]["count"] == 1
    assert sum(stats["latency"]["exists"]["counts"]) == 1
    assert stats.backup_pgs == [4] and stats.prefetch_pgs == [4]
    assert stats.backup_bandwidth[0] > 0
    assert connector.get_stats().backup_pgs == []
    assert stats["evictions"] == 0 and stats["blocks"] == 4
