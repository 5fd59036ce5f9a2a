"""The part of nixl_agent about notifications.

Notifications wait in the agent until they are taken: get_new_notifs gives them to the caller,
everything else moves them into `notifs`, a plain dict that clients edit in place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import nixlInvalidParamError, nixlTimeoutError

if TYPE_CHECKING:
    from ._bindings import nixlAgent


def text_of(name: str | bytes) -> str:
    """An agent's name as str."""
    return name.decode() if isinstance(name, (bytes, bytearray, memoryview)) else name


def bytes_of(tag: str | bytes) -> bytes:
    """A notification or tag as bytes."""
    if isinstance(tag, str):
        return tag.encode()
    if isinstance(tag, (bytes, bytearray, memoryview)):
        return bytes(tag)
    raise TypeError(f"a notification's tag must be bytes or str, not {type(tag).__name__}")


class NotificationCalls:
    """Methods of nixl_agent."""

    agent: nixlAgent
    name: str
    notifs: dict[str, list[bytes]]

    def _init_notifs(self) -> None:
        self.notifs = {}
        self._notifs_changed = threading.Condition(threading.Lock())
        self._somebody_waits_in_core = False

    def get_new_notifs(self, backends: Sequence[str] = ()) -> dict[str, list[bytes]]:
        """Takes what arrived since the last call: {agent: [message, ...]}, in order per sender."""
        return self.agent.getNotifs({}, backends)

    def update_notifs(self, backends: Sequence[str] = ()) -> dict[str, list[bytes]]:
        """Adds what arrived to ``notifs`` and returns it."""
        with self._notifs_changed:
            self._pull(backends)
        return self.notifs

    def check_remote_xfer_done(
        self,
        remote_agent_name: str | bytes,
        lookup_tag: bytes | str,
        backends: Sequence[str] = (),
        tag_is_prefix: bool = True,
        *,
        exact: bool = False,
    ) -> bool:
        """Whether a notification of that agent has come, and removes it from ``notifs``.

        It matches when it starts with ``lookup_tag``, with ``tag_is_prefix=False`` when it
        contains it, with ``exact=True`` when it is equal to it.
        """
        tag = bytes_of(lookup_tag)
        with self._notifs_changed:
            self._pull(backends)
            messages = self.notifs.get(text_of(remote_agent_name), [])
            for at, message in enumerate(messages):
                if exact:
                    hit = message == tag
                elif tag_is_prefix:
                    hit = message.startswith(tag)
                else:
                    hit = tag in message
                if hit:
                    del messages[at]
                    return True
        return False

    def send_notif(
        self,
        remote_agent_name: str | bytes,
        notif_msg: bytes | str,
        backend: str | None = None,
    ) -> None:
        """Sends a notification of its own; the peer may be one that only sent to us so far."""
        self.agent.genNotif(remote_agent_name, notif_msg, () if backend is None else (backend,))

    def wait_notifs(
        self, tag: bytes | str, count: int = 1, timeout: float | None = None
    ) -> list[tuple[str, bytes]]:
        """Waits until ``count`` notifications that start with ``tag`` came, from any agents.

        Returns them as (agent, message) and removes them from ``notifs``. Raises nixlTimeoutError,
        with how many have come, when ``timeout`` seconds pass first; then none is removed. Do not
        take notifications with get_new_notifs while somebody waits.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            found = self._take_tagged(tag, count)
            if found is not None:
                return found
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise self._notifs_missing(tag, count, timeout)
            self._wait_for_change(left)

    # One thread at a time sleeps in the core; whatever it brings in wakes the others.
    def _wait_for_change(self, left: float | None) -> None:
        with self._notifs_changed:
            if self._somebody_waits_in_core:
                self._notifs_changed.wait(left)
                return
            self._somebody_waits_in_core = True
        try:
            self.agent._waitNotifications(left)
        finally:
            with self._notifs_changed:
                self._somebody_waits_in_core = False
                self._pull(())
                self._notifs_changed.notify_all()

    def _pull(self, backends: Sequence[str]) -> None:
        self.agent.getNotifs(self.notifs, backends)
        self._notifs_changed.notify_all()

    def _take_tagged(self, tag: bytes | str, count: int) -> list[tuple[str, bytes]] | None:
        """The first `count` notifications of a tag, removed, or None while there are fewer."""
        if count < 1:
            raise nixlInvalidParamError(f"count={count}: must be at least 1")
        prefix = bytes_of(tag)
        with self._notifs_changed:
            self._pull(())
            places: list[tuple[str, int]] = []
            for name, messages in self.notifs.items():
                for at, message in enumerate(messages):
                    if len(places) < count and message.startswith(prefix):
                        places.append((name, at))
            if len(places) < count:
                return None
            found = [(name, self.notifs[name][at]) for name, at in places]
            for name, at in reversed(places):
                del self.notifs[name][at]
            return found

    def _notifs_missing(self, tag: bytes | str, count: int, timeout: Any) -> nixlTimeoutError:
        prefix = bytes_of(tag)
        with self._notifs_changed:
            here = sum(m.startswith(prefix) for messages in self.notifs.values() for m in messages)
        return nixlTimeoutError(
            f"agent {self.name!r}: {here} of {count} notifications tagged {prefix!r} came within"
            f" {timeout} s",
            agent=self.name,
        )
