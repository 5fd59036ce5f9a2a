"""Transfers and notifications in asyncio.

``await handle`` waits for one transfer without a thread: the loop watches ``agent.fileno()``.
A program that watches the same descriptor itself should use one of the two ways, not both.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import Any

from . import _bindings as nixlBind
from ._notifs import NotificationCalls
from .arguments import handles_of, seconds_of
from .errors import nixlError, nixlTimeoutError


class _Watch:
    """Everything in one event loop that waits for one raw agent; exists while something waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop, raw: Any) -> None:
        self.loop = loop
        self.raw = raw
        self.descriptor = raw._fileno()
        self.wakers: set[asyncio.Future[None]] = set()

    def wake(self) -> None:
        with contextlib.suppress(nixlError):  # a closed agent: whoever waits finds out by itself
            self.raw._drain()
        for waker in self.wakers:
            if not waker.done():
                waker.set_result(None)


_watches: dict[tuple[int, int], _Watch] = {}  # by loop and raw agent
_lock = threading.Lock()


async def _sleep(raw: Any, timeout: float) -> None:
    """Until something of this agent completed or arrived, or `timeout` passed."""
    loop = asyncio.get_running_loop()
    key = (id(loop), id(raw))
    with _lock:
        watch = _watches.get(key)
        if watch is None:
            watch = _watches[key] = _Watch(loop, raw)
            loop.add_reader(watch.descriptor, watch.wake)
    waker: asyncio.Future[None] = loop.create_future()
    watch.wakers.add(waker)
    try:
        await asyncio.wait([waker], timeout=timeout)
    finally:
        watch.wakers.discard(waker)
        if not watch.wakers:
            loop.remove_reader(watch.descriptor)
            with _lock:
                _watches.pop(key, None)


# While a transfer is pending, its state is looked at this often even if nothing wakes the loop:
# another user of the agent's descriptor may have taken the wake-up.
_LOOK_AGAIN = 0.05


async def wait_handle(handle: nixlBind.nixlXferHandle, timeout: float | None = None) -> str:
    """What ``await handle`` does: "DONE", or the transfer's error is raised."""
    (handle,) = handles_of([handle])
    raw = handle._agent
    limit = seconds_of(timeout)
    deadline = None if limit is None else time.monotonic() + limit
    while True:
        state = raw._check(handle)
        if state != "PROC":
            return state
        left = _LOOK_AGAIN
        if deadline is not None:
            left = min(left, deadline - time.monotonic())
            if left <= 0:
                raise nixlTimeoutError(f"{handle!r} is still in progress after {timeout} s")
        await _sleep(raw, left)


async def wait_notifs(
    agent: NotificationCalls,
    tag: bytes | str,
    count: int = 1,
    timeout: float | None = None,
    *,
    exact: bool = False,
) -> list[tuple[str, bytes]]:
    """As ``agent.wait_notifs``, for asyncio."""
    limit = seconds_of(timeout)
    deadline = None if limit is None else time.monotonic() + limit
    while True:
        found = agent._take_tagged(tag, count, exact)
        if found is not None:
            return found
        left = _LOOK_AGAIN
        if deadline is not None:
            left = min(left, deadline - time.monotonic())
            if left <= 0:
                raise agent._notifs_missing(tag, count, timeout)
        await _sleep(agent.agent, left)
