"""Both ends of LMCache's own transfer channels, and its storage agents, over this package.

Run as a program: `lmcache_ends.py FUNCTION ARGUMENT…`. The channels, the handshake over ZeroMQ and
the storage agents are LMCache's code as published; hollow is what it has around them (memory
objects of the engine, observation). Exits with 0 when everything was as it should be.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import hollow
import numpy as np

PAGE, PAGES = 1 << 16, 64


def lmcache() -> None:
    sys.meta_path.insert(
        0,
        hollow.HollowFinder(
            [
                "lmcache.lmcache_native",
                "lmcache.v1.distributed.serde",
                "lmcache.v1.memory_management",
                "lmcache.v1.mp_observability",
                "lmcache.v1.platform",
            ]
        ),
    )
    hollow.without_their_init(
        "lmcache", "v1", "v1.distributed", "v1.distributed.l2_adapters", "v1.transfer_channel"
    )


def pages() -> np.ndarray:
    """PAGES x PAGE bytes at an address that direct I/O takes."""
    raw = np.zeros((PAGES + 1) * PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE
    return raw[start : start + PAGES * PAGE].reshape(PAGES, PAGE)


def memory_of(cache: np.ndarray):
    from lmcache.v1.distributed.internal_api import L1MemoryDesc

    return L1MemoryDesc(ptr=cache.ctypes.data, size=cache.nbytes, align_bytes=PAGE)


def start_far(function: str, url: str) -> subprocess.Popen:
    far = subprocess.Popen(
        [sys.executable, __file__, function, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while "ready" not in (line := far.stdout.readline()):
        assert line, "the other end did not start"
    return far


def ask(far: subprocess.Popen) -> list[int]:
    """The first byte of each page over there."""
    far.stdin.write("\n")
    far.stdin.flush()
    while not (line := far.stdout.readline()).startswith("["):
        assert line, "the other end is gone"
    return json.loads(line)


def answer(cache: np.ndarray, _channel: object) -> None:
    """For as long as it is asked; does not return."""
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(cache[:, 0].tolist()), flush=True)
    os._exit(0)  # LMCache's own close waits for a thread that waits for messages


def channel_of(cache: np.ndarray, role: str, url: str | None):
    from lmcache.v1.transfer_channel.nixl_channel import NixlChannel

    channel = NixlChannel(
        role=role,
        buffer_ptr=cache.ctypes.data,
        buffer_size=cache.nbytes,
        align_bytes=PAGE,
        tp_rank=3,
        peer_init_url=url,
        device="cpu",
        backends=None,
    )
    channel.get_local_mem_indices = lambda objects: objects
    return channel


def channel_far(url: str) -> None:
    cache = pages()
    answer(cache, channel_of(cache, "receiver", url))


def channel_near(url: str) -> None:
    far = start_far("channel_far", url)
    cache = pages()
    cache[:] = np.arange(1, PAGES + 1, dtype=np.uint8)[:, None]
    near = channel_of(cache, "sender", None)
    near.lazy_init_peer_connection("near", "far", url)
    there = {"receiver_id": "far", "sender_id": "far", "remote_indexes": [40, 9, 10, 11]}
    assert near.batched_write([0, 1, 2, 63], there) == 4
    told = ask(far)
    assert [told[at] for at in there["remote_indexes"]] == [1, 2, 3, 64] and sum(told) == 70
    assert near.batched_read([20, 21, 22, 23], there) == 4
    assert cache[20:24, 0].tolist() == [1, 2, 3, 64] and (cache[23] == 64).all()
    asyncio.run(near.async_batched_write([5], there | {"remote_indexes": [0]}))
    asyncio.run(near.async_batched_read([6], there | {"remote_indexes": [0]}))
    assert ask(far)[0] == 6 and cache[6, 0] == 6
    far.kill()
    far.wait()
    try:
        for _ in range(3):
            near.batched_write([0], there | {"remote_indexes": [0]})
        raise AssertionError("writing to a killed peer went well")
    except Exception as error:
        assert type(error).__name__ == "nixlRemoteDisconnectError", repr(error)
    near.zmq_context.destroy(linger=0)
    near.close()


def context_of(cache: np.ndarray, url: str):
    from lmcache.v1.distributed.transfer_channel import initialize_transfer_channel_context

    return initialize_transfer_channel_context(
        "nixl",
        l1_memory_desc=memory_of(cache),
        listen_url=url,
        advertise_url=url,
        backends=["UCX"],
    )


def context_far(url: str) -> None:
    cache = pages()
    cache[:] = np.arange(1, PAGES + 1, dtype=np.uint8)[:, None]
    answer(cache, context_of(cache, url))


def context_near(url: str, own: str) -> None:
    from lmcache.v1.distributed.transfer_channel import (
        TransferChannelAddress,
        delete_transfer_channel_context,
    )

    far = start_far("context_far", url)
    cache = pages()
    context = context_of(cache, own)
    client = context.get_transfer_channel_client(url)
    source = [TransferChannelAddress(at * PAGE, 2 * PAGE) for at in (10, 50, 30)]
    target = [TransferChannelAddress(at * PAGE, 2 * PAGE) for at in (0, 2, 4)]
    task = client.submit_read(target, source)
    while not (result := client.query_read_status(task)).is_finished():
        pass
    assert result.succeeded_mask == [True] * 3
    assert cache[:8, 0].tolist() == [11, 12, 51, 52, 31, 32, 0, 0]
    far.kill()
    far.wait()
    delete_transfer_channel_context()


def key_of(number: int):
    from lmcache.v1.distributed.api import ObjectKey

    return ObjectKey(chunk_hash=bytes([number]) * 16, model_name="maker/model", kv_rank=1)


def in_all_modes(store: str, folder: str) -> None:
    for direct in ("false", "true"):
        for mode in ("use_uring", "use_aio", "use_posix_aio"):
            place = os.path.join(folder, f"{mode}-{direct}")
            params = {mode: "true", "use_direct_io": direct, "file_path": place}
            globals()[store](place, params)


def a_file_per_object(folder: str, settings: dict[str, str]) -> None:
    """The storage agent that registers a file for each transfer."""
    from lmcache.v1.distributed.l2_adapters.nixl_store_agents import (
        file_dynamic_nixl_store_agent as module,
    )

    cache = pages()
    cache[:] = np.random.default_rng(1).integers(1, 255, (PAGES, 1), np.uint8)
    wanted = cache.copy()
    agent = module.FileDynamicNixlStorageAgent("cpu", "POSIX", settings, memory_of(cache))
    for number in range(8):
        first = number * 8
        asyncio.run(agent.dynamic_store(list(range(first, first + 8)), key_of(number)))
        assert agent.get_stored_size(key_of(number)) == 8 * PAGE
    cache[:] = 0
    for number in range(8):
        first = 56 - number * 8
        asyncio.run(agent.dynamic_load(list(range(first, first + 8)), key_of(number)))
    assert (cache.reshape(8, -1) == wanted.reshape(8, -1)[::-1]).all()
    agent.dynamic_delete(key_of(0))
    assert len(os.listdir(folder)) == 7
    with open(os.path.join(folder, os.listdir(folder)[0]), "r+b") as file:
        file.truncate(5 * PAGE)
    failed = 0
    for number in range(1, 8):
        try:
            asyncio.run(agent.dynamic_load(list(range(8)), key_of(number)))
        except Exception as error:
            assert "end of file" in str(error), repr(error)
            failed += 1
    assert failed == 1
    agent.close()


def a_pool_of_files(folder: str, settings: dict[str, str]) -> None:
    """The storage agent with files that are registered once, pages at offsets in them."""
    from lmcache.v1.distributed.l2_adapters.nixl_store_l2_adapter import NixlStorageAgent

    cache = pages()
    settings = settings | {"file_size": str(4 * PAGE)}
    agent = NixlStorageAgent("cpu", "POSIX", settings, 16, memory_of(cache))
    cache[:] = np.arange(1, PAGES + 1, dtype=np.uint8)[:, None]
    handle = agent.get_mem_to_storage_handle(list(range(32)), list(range(20, 52)))
    agent.post_blocking(handle)
    agent.release_handle(handle)
    cache[:] = 0
    handle = agent.get_storage_to_mem_handle(list(range(32, 64)), list(range(51, 19, -1)))
    asyncio.run(agent.post_non_blocking(handle))
    agent.release_handle(handle)
    assert cache[:, 0].tolist() == [0] * 32 + list(range(32, 0, -1))
    agent.close()


if __name__ == "__main__":
    lmcache()
    globals()[sys.argv[1]](*sys.argv[2:])
    print("as it should be", flush=True)
