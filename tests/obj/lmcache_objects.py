"""LMCache's storage agent over objects, run as a program: `lmcache_objects.py ENDPOINT BUCKET`. The
keys come from the environment, as its own configuration leaves them there. Exits with 0 when
everything was as it should be."""

from __future__ import annotations

import asyncio
import sys

import lmcache_ends
import numpy as np


def main(endpoint: str, bucket: str) -> None:
    lmcache_ends.lmcache()
    from lmcache.v1.distributed.l2_adapters.nixl_store_l2_adapter import NixlStorageAgent

    cache = lmcache_ends.pages()
    settings = {"endpoint_override": endpoint, "bucket": bucket, "region": "us-east-1"}
    agent = NixlStorageAgent("cpu", "OBJ", settings, 64, lmcache_ends.memory_of(cache))
    cache[:] = np.arange(1, len(cache) + 1, dtype=np.uint8)[:, None]
    handle = agent.get_mem_to_storage_handle(list(range(32)), list(range(20, 52)))
    agent.post_blocking(handle)
    agent.release_handle(handle)
    cache[:] = 0
    handle = agent.get_storage_to_mem_handle(list(range(32, 64)), list(range(51, 19, -1)))
    asyncio.run(agent.post_non_blocking(handle))
    agent.release_handle(handle)
    assert cache[:, 0].tolist() == [0] * 32 + list(range(32, 0, -1))
    assert (cache == cache[:, :1]).all()
    agent.close()
    print("as it should be", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
