"""The part of nixl_agent about notifications.

Notifications wait in the agent until they are taken: get_new_notifs gives them to the caller,
everything else moves them into `notifs`, a plain dict that clients edit in place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .arguments import bytes_of, count_of, retold, seconds_of, text_of
from .errors import nixlTimeoutError

if TYPE_CHECKING:
    from ._bindings import nixlAgent


_LOOK_AGAIN = 1.0  # seconds


def _place_of(tag: bytes, messages: list[bytes], is_prefix: bool, exact: bool) -> int | None:
    """Where the message is that a look-up takes: one that is the tag itself before all others."""
    if tag in messages:
        return messages.index(tag)
    if exact:
        return None
    for at, message in enumerate(messages):
        if message.startswith(tag) if is_prefix else tag in message:
            return at
    return None


class NotificationCalls:
    """Methods of nixl_agent."""

    agent: nixlAgent
    name: str
    notifs: dict[str, list[bytes]]

    def _init_notifs(self) -> None:
        self.notifs = {}
        self._notifs_changed = threading.Condition(threading.Lock())
        self._somebody_waits_in_core = False
        self._news = 0  # how often some came in

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

        It matches when it is equal to ``lookup_tag``; else, with ``exact=False``, when it starts
        with it (``tag_is_prefix=False``: contains it), so "req-1" may take "req-10".
        """
        tag = bytes_of(lookup_tag, "lookup_tag")
        name = text_of(remote_agent_name, "remote_agent_name")
        with self._notifs_changed:
            self._pull(backends)
            messages = self.notifs.get(name, [])
            at = _place_of(tag, messages, tag_is_prefix, exact)
            if at is None:
                return False
            del messages[at]
            return True

    def send_notif(
        self,
        remote_agent_name: str | bytes,
        notif_msg: bytes | str,
        backend: str | None = None,
    ) -> None:
        """Sends a notification of its own; the peer may be one that only sent to us so far."""
        try:
            self.agent.genNotif(remote_agent_name, notif_msg, () if backend is None else (backend,))
        except TypeError as error:
            raise retold(error, remote_agent_name=remote_agent_name, notif_msg=notif_msg) from None

    def wait_notifs(
        self,
        tag: bytes | str,
        count: int = 1,
        timeout: float | None = None,
        *,
        exact: bool = False,
    ) -> list[tuple[str, bytes]]:
        """Waits until ``count`` notifications that start with ``tag`` came, from any agents; with
        ``exact=True``, that are equal to it.

        Returns them as (agent, message) and removes them from ``notifs``. Raises nixlTimeoutError,
        with how many have come, when ``timeout`` seconds pass first; then none is removed. Do not
        take notifications with get_new_notifs while somebody waits.
        """
        limit = seconds_of(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            seen = self._news
            found = self._take_tagged(tag, count, exact)
            if found is not None:
                return found
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise self._notifs_missing(tag, count, timeout)
            self._wait_for_change(left, seen)

    # One thread at a time sleeps in the core; however that ends, the others look again.
    def _wait_for_change(self, left: float | None, seen: int) -> None:
        with self._notifs_changed:
            if self._news != seen:
                return  # another thread brought some in since this one looked
            if self._somebody_waits_in_core:
                self._notifs_changed.wait(left)
                return
            self._somebody_waits_in_core = True
        try:
            # Not longer: another call may bring in what this one waits for, unseen by the core.
            self.agent._waitNotifications(_LOOK_AGAIN if left is None else min(left, _LOOK_AGAIN))
        finally:
            with self._notifs_changed:
                self._somebody_waits_in_core = False
                self._notifs_changed.notify_all()

    def _pull(self, backends: Sequence[str]) -> None:
        # Only news wake the others: each who looks comes by here, and two would wake for ever.
        news = self.agent.getNotifs({}, backends)
        if news:
            for name, messages in news.items():
                self.notifs.setdefault(name, []).extend(messages)
            self._news += 1
            self._notifs_changed.notify_all()

    def _take_tagged(
        self, tag: bytes | str, count: int, exact: bool = False
    ) -> list[tuple[str, bytes]] | None:
        """The first `count` notifications of a tag, removed, or None while there are fewer."""
        count = count_of(count, "count", 1)
        prefix = bytes_of(tag, "tag")
        with self._notifs_changed:
            self._pull(())
            places: list[tuple[str, int]] = []
            for name, messages in self.notifs.items():
                for at, message in enumerate(messages):
                    hit = message == prefix if exact else message.startswith(prefix)
                    if hit and len(places) < count:
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
