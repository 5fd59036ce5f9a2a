"""Counted notifications: wait until N writes of a tag have arrived, in whatever order.

A message belongs to a tag when it is the tag, or begins with the tag and "#": b"layer3#7" counts
for b"layer3", which lets writers tell their messages apart.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from ..arguments import bytes_of

if TYPE_CHECKING:
    from ..agent import nixl_agent

_LOOK_AGAIN = 0.05


class NotificationCounter:
    """Counts an agent's notifications by tag. Usable from any thread.

    It takes all notifications of the agent; those of tags that nobody expects are kept for `expect`
    until there are `keep` of them, then the oldest are dropped.
    """

    def __init__(self, agent: nixl_agent | None, keep: int = 100_000) -> None:
        self._agent = agent
        self._lock = threading.Lock()
        self._wanted: dict[bytes, int] = {}
        self._counts: dict[bytes, int] = {}
        self._early: deque[tuple[str, bytes]] = deque(maxlen=keep)

    def expect(self, tag: str | bytes, count: int) -> None:
        """From now on `done(tag)` means that `count` writes came, counted from the last expect."""
        name = bytes_of(tag, "tag")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count: {count!r} must be a whole number from 1 on")
        with self._lock:
            if name in self._wanted:
                raise ValueError(f"tag {name!r} is expected already")
            self._wanted[name] = count
            self._counts[name] = 0
            early, self._early = self._early, deque(maxlen=self._early.maxlen)
            for source, message in early:
                self._count(source, message)

    def add(self, source: str, message: bytes) -> None:
        """Counts a message that somebody else took from the agent."""
        with self._lock:
            self._count(source, message)

    def _count(self, source: str, message: bytes) -> None:
        tag = message
        while tag not in self._wanted:
            tag, found, _ = tag.rpartition(b"#")
            if not found:
                self._early.append((source, message))
                return
        self._counts[tag] += 1

    def _pull(self) -> None:
        if self._agent is not None:
            for source, messages in self._agent.get_new_notifs().items():
                for message in messages:
                    self._count(source, message)

    def count(self, tag: str | bytes) -> int:
        """How many have come; KeyError for a tag that is not expected."""
        name = bytes_of(tag, "tag")
        with self._lock:
            self._pull()
            if name not in self._counts:
                raise KeyError(f"tag {name!r} is not expected")
            return self._counts[name]

    def done(self, tag: str | bytes) -> bool:
        """Whether as many have come as were expected. More than those are an error."""
        name, came = bytes_of(tag, "tag"), self.count(tag)
        if came > self._wanted[name]:
            raise RuntimeError(f"tag {name!r}: {came} writes came, {self._wanted[name]} expected")
        return came == self._wanted[name]

    def wait(self, tag: str | bytes, timeout: float | None = None) -> None:
        """Waits until all have come; TimeoutError says how many are missing."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self.done(tag):
            if end is not None and time.monotonic() >= end:
                name = bytes_of(tag, "tag")
                raise TimeoutError(
                    f"tag {name!r}: {self.count(tag)} of {self._wanted[name]} writes came within "
                    f"{timeout:g} s"
                )
            self._rest(_LOOK_AGAIN if end is None else min(_LOOK_AGAIN, end - time.monotonic()))

    def _rest(self, seconds: float) -> None:
        if self._agent is not None:
            self._agent.agent._waitNotifications(max(0.0, seconds))
        else:
            time.sleep(max(0.0, min(seconds, 0.001)))  # sleeps: somebody else feeds it

    def forget(self, tag: str | bytes) -> None:
        """The tag may be expected again."""
        name = bytes_of(tag, "tag")
        with self._lock:
            self._wanted.pop(name, None)
            self._counts.pop(name, None)
