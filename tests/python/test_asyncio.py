"""Transfers and notifications in asyncio."""

from __future__ import annotations

import asyncio

import pytest
from nixl import aio
from nixl.errors import nixlNotPostedError, nixlTimeoutError
from nixl_support import Pair


async def begun() -> None:
    """Until something waits."""
    while not aio._watches:
        await asyncio.sleep(0)


def test_await_a_transfer(pair):
    async def run():
        handle = pair.write((0, 4096))
        with pytest.raises(nixlNotPostedError):
            await handle
        pair.near.transfer(handle)
        return await handle

    assert asyncio.run(run()) == "DONE"


def test_await_many_large_transfers(make_agent, memory):
    pair = Pair(make_agent, memory, size=32 << 20)

    async def run():
        part = 4 << 20
        handles = [pair.write((i * part, part)) for i in range(8)]
        for handle in handles:
            pair.near.transfer(handle)
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticker = asyncio.create_task(tick())
        states = await asyncio.wait_for(asyncio.gather(*handles), 30)
        ticker.cancel()
        return states

    assert asyncio.run(run()) == ["DONE"] * 8
    assert pair.far_memory.get(31 << 20) == b"\x11" * (1 << 20)


def test_notifications(pair):
    async def run():
        waiting = asyncio.create_task(aio.wait_notifs(pair.far, b"ping", 2, timeout=10))
        await begun()
        pair.near.send_notif(pair.far.name, b"ping1")
        pair.near.send_notif(pair.far.name, b"ping2")
        return await waiting

    assert asyncio.run(run()) == [(pair.near.name, b"ping1"), (pair.near.name, b"ping2")]


def test_deadline_and_nothing_left_behind(pair):
    async def run():
        with pytest.raises(nixlTimeoutError, match="0 of 1"):
            await aio.wait_notifs(pair.far, b"never", timeout=0.05)
        task = asyncio.create_task(aio.wait_notifs(pair.far, b"never"))
        await begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert aio._watches == {}
