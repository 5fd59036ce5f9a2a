"""The page interface that SGLang calls: pools of KV pages stored and fetched by hash, in batches.
Mixed into HiCacheNixl; set and get may run on different threads."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .pools import HostPool

logger = logging.getLogger("nixl.hicache")


@dataclass
class PageHits:
    """What batch_exists_v2 gives where SGLang's own class is not importable."""

    kv_hit_pages: int
    extra_pool_hit_pages: dict[str, int] = field(default_factory=dict)
    restorable_prefix_pages: list[int] | None = None


def _result(pages: int, hits: dict[str, int], restorable: list[int]) -> Any:
    try:
        from sglang.srt.mem_cache.hicache_storage import PoolTransferResult
    except Exception:
        return PageHits(pages, hits, restorable)
    try:
        return PoolTransferResult(pages, hits, restorable)
    except TypeError:  # before restorable prefixes were known
        return PoolTransferResult(pages, hits)


def _plain(name: Any) -> str:
    return str(getattr(name, "value", name))


def _counts_all_ranks(rank: int, width: int, of: Callable[[str, Any], Any]) -> bool:
    """Whether tensor-parallel ranks are counted over all context-parallel ones, as without
    data-parallel attention. SGLang is asked where it runs; else the numbers have to tell, which
    they do not for all ranks."""
    module = sys.modules.get("sglang.srt.layers.dp_attention")
    asked = getattr(module, "is_dp_attention_enabled", None)
    if int(of("dp_rank", 0)) > 0:
        return False
    if asked is not None:
        with contextlib.suppress(Exception):  # before SGLang has set itself up
            return not asked()
    return rank // width == int(of("attn_cp_rank", 0))


def _is_writer(config: Any, of: Callable[[str, Any], Any]) -> bool:
    """Whether this rank writes the pages that all tensor-parallel ranks of its suffix hold.

    Every context-parallel rank holds a slice of its own, under a suffix of its own, so each has a
    writer: the first of its tensor-parallel ranks, whether those are counted over all ranks or,
    with data-parallel attention, within one context-parallel rank.
    """
    rank, size = int(of("tp_rank", 0)), int(of("tp_size", 1))
    slices = int(of("attn_cp_size", 1))
    if slices <= 1:
        told = getattr(config, "is_storage_writer", None)
        return rank == 0 if told is None else bool(told)
    width = max(1, size // slices)
    return rank % width == 0 if _counts_all_ranks(rank, width, of) else rank == 0


class PageInterface:
    """register_mem_pool_host … batch_set_v2 over the connector's block layouts."""

    def _set_up_pages(self, storage_config: Any) -> None:
        self._host_pools: dict[str, HostPool] = {}
        self.registered_pools: dict[Any, Any] = {}
        self.config_suffix = self.tp_config_suffix = ""
        self.is_mla_model = False
        self.backup_skip = False
        if storage_config is None:
            return
        c = storage_config

        def of(name: str, default: Any) -> Any:
            value = getattr(c, name, default)
            return default if value is None else value

        self.is_mla_model = bool(of("is_mla_model", False))
        self.backup_skip = self.is_mla_model and not _is_writer(c, of)
        model = "-".join(of("model_name", "").split("/"))
        shard = ""
        if of("pp_size", 1) > 1:
            shard += f"_{c.pp_size}_{of('pp_rank', 0)}"
        if of("attn_cp_size", 1) > 1:
            shard += f"_cp{of('attn_cp_rank', 0)}_{c.attn_cp_size}"
        if of("dcp_size", 1) > 1:
            shard += f"_tp{of('tp_size', 1)}_dcp{c.dcp_rank}_{c.dcp_size}_page{c.logical_page_size}"
        self.tp_config_suffix = f"_{model}_{of('tp_rank', 0)}_{of('tp_size', 1)}{shard}"
        self.config_suffix = f"_{model}{shard}" if self.is_mla_model else self.tp_config_suffix

    # -- pools ---------------------------------------------------------------------------------

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Registers the KV pool's memory once; every later batch registers nothing."""
        super().register_mem_pool_host(mem_pool_host)
        self._host_pools["kv"] = HostPool(mem_pool_host, None, self.mover)
        self._announce("kv")

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        name = _plain(host_pool_name)
        if name == "kv":
            return
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        self._host_pools[name] = HostPool(host_pool, name, self.mover)
        self._announce(name)

    def _announce(self, name: str) -> None:
        pool = self._host_pools[name]
        packed = self._pool_blocks(pool) is self.packed
        logger.info(
            "HiCacheNixl: pool %s, layout %s, %s, %d bytes a block, stored %s", name,
            pool.layout or "none", "zero copy" if pool.zero_copy else "bounce buffer",
            pool.block_bytes, "packed" if packed else "in files",
        )  # fmt: skip

    @property
    def is_zero_copy(self) -> bool:
        pool = self._host_pools.get("kv")
        return pool is not None and pool.zero_copy

    def _pool_blocks(self, pool: HostPool) -> Any:
        return self._blocks_for(pool.block_bytes)

    def _pool_suffix(self, pool: HostPool) -> str:
        """What follows the hash: rank and model, and for packed blocks pool and byte format."""
        # Mamba state is split over tensor-parallel ranks even where the KV pages are not.
        suffix = self.tp_config_suffix if pool.name == "mamba" else self.config_suffix
        if self._pool_blocks(pool) is not self.packed:
            return suffix
        return f"{suffix}{'_' + pool.name if pool.name else ''}{pool.format_tag}"

    def _pool(self, name: Any, what: str) -> HostPool | None:
        pool = self._host_pools.get(_plain(name))
        if pool is None:
            logger.error("%s: host pool %s was not registered", what, _plain(name))
        return pool

    # -- version 1: the KV pool ----------------------------------------------------------------

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        """How many of the keys, from the first on, are stored without a gap."""
        pool = self._host_pools.get("kv")
        keys = list(keys)
        if not keys:
            return 0
        try:
            count = 0
            if pool is not None:
                with self.stats.timed("exists"):
                    count = self._pool_blocks(pool).count_prefix(
                        keys, self._pool_suffix(pool), pool.names, pool.sizes
                    )
            # Without `interface_v1` SGLang stores whole pages by set().
            if count < len(keys) and self._present(keys[count : count + 1])[0]:
                found = self._present(keys[count:])
                count += found.index(False) if False in found else len(found)
            return count
        except Exception as error:
            logger.error("exists of %d keys: %s", len(keys), error)
            return 0

    def batch_set_v1(
        self, keys: list[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        if self.backup_skip:
            return [True] * len(keys)
        return self._pages("set", "kv", list(keys), host_indices)

    def batch_get_v1(
        self, keys: list[str], host_indices: Any, extra_info: Any = None
    ) -> list[bool]:
        return self._pages("get", "kv", list(keys), host_indices)

    def _pages(self, op: str, name: Any, keys: list[str], indices: Any) -> list[bool]:
        pool = self._pool(name, op)
        if pool is None or not keys:
            return [False] * len(keys)
        blocks = self._pool_blocks(pool)
        start = time.perf_counter()
        try:
            with self.stats.timed(f"page_{op}"):
                move = pool.put if op == "set" else pool.get
                done = move(blocks, keys, self._pool_suffix(pool), indices)
        except Exception as error:
            logger.error("%s of %d pages of pool %s: %s", op, len(keys), _plain(name), error)
            return [False] * len(keys)
        pages = sum(done)
        self.stats.moved(op, pages, pool.bytes_of(pages), time.perf_counter() - start)
        self._exporter.maybe()
        if op == "set":
            self._upkeep.wake()
            if pages != len(keys):
                logger.error(
                    "set: %d of %d pages of pool %s were not stored", len(keys) - pages, len(keys),
                    _plain(name),
                )  # fmt: skip
        return done

    # -- version 2: several pools --------------------------------------------------------------

    def batch_set_v2(self, transfers: list[Any], extra_info: Any = None) -> dict[str, list[bool]]:
        return {t.name: self._pool_transfer("set", t) for t in transfers}

    def batch_get_v2(self, transfers: list[Any], extra_info: Any = None) -> dict[str, list[bool]]:
        return {t.name: self._pool_transfer("get", t) for t in transfers}

    def _pool_transfer(self, op: str, transfer: Any) -> list[bool]:
        keys = list(transfer.keys or [])
        if op == "set" and self.backup_skip and _plain(transfer.name) != "mamba":
            return [True] * len(keys)
        return self._pages(op, transfer.name, keys, transfer.host_indices)

    def batch_exists_v2(
        self, keys: list[str], pool_transfers: list[Any] | None = None, extra_info: Any = None
    ) -> Any:
        """The usable prefix of KV pages, given what each further pool must hold."""
        keys = list(keys)
        kv_pages = self.batch_exists(keys, extra_info)
        hits: dict[Any, int] = {"kv": kv_pages} if kv_pages else {}
        restorable = list(range(1, kv_pages + 1))
        for transfer in pool_transfers or []:
            if not restorable:
                break
            policy = _plain(transfer.hit_policy)
            pool = self._host_pools.get(_plain(transfer.name))
            if pool is None:
                restorable = []
                break
            if policy == "block_groups":
                pages = self._group_pages(pool, transfer)
                if pages:
                    hits[transfer.name] = pages
                continue
            there = self._pool_blocks(pool).present(
                keys[:kv_pages], self._pool_suffix(pool), pool.names, pool.sizes
            )
            allowed = _allowed_prefixes(policy, there, transfer)
            if allowed:
                hits[transfer.name] = max(allowed)
            restorable = [pages for pages in restorable if pages in allowed]
        return _result(restorable[-1] if restorable else 0, hits, restorable)

    def _group_pages(self, pool: HostPool, transfer: Any) -> int:
        """Pages covered by the leading whole groups of the pool's own keys."""
        keys = list(transfer.keys or [])
        size = int(getattr(transfer, "group_pages", 0) or 0)
        block = int(getattr(transfer, "block_pages", 0) or 0)
        if not keys or size <= 0 or block <= 0:
            return 0
        count = self._pool_blocks(pool).count_prefix(
            keys, self._pool_suffix(pool), pool.names, pool.sizes
        )
        return count // size * block


def _allowed_prefixes(policy: str, there: list[bool], transfer: Any) -> set[int]:
    """Lengths of the prefixes that the pool's pages allow."""
    if policy == "trailing_pages":
        tail = max(1, len(transfer.keys) if transfer.keys else 1)
        allowed, run = set(), 0
        for i, ok in enumerate(there, 1):
            run = run + 1 if ok else 0
            if run >= min(tail, i):
                allowed.add(i)
        return allowed
    if policy != "all_pages":
        raise ValueError(f"unknown pool hit policy {policy!r}")
    boundary = there.index(False) if False in there else len(there)
    return set(range(1, boundary + 1))
