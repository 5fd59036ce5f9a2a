"""agent.trace(): what one agent's transfers did during a `with` block.

While it is on, transfer() of this agent goes through Trace; otherwise nothing is recorded and
nothing costs anything.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from .errors import nixlError
from .handles import nixl_xfer_handle


class Traced(Protocol):
    """What Trace uses of an agent."""

    name: str
    agent: Any

    def transfer(self, handle: nixl_xfer_handle, notif_msg: bytes | str = b"") -> str: ...
    def explain(self, handle: nixl_xfer_handle) -> dict[str, Any]: ...
    def get_xfer_telemetry(self, handle: nixl_xfer_handle) -> Any: ...


class Trace:
    """Posts of one agent, one event each.

    An event is a dict: start (µs since 1970), post and duration (µs), bytes, descriptors, segments,
    backend, lane, state ("DONE", "PROC" where it had not ended when the block did, or the error's
    text).
    """

    def __init__(self, agent: Traced) -> None:
        self.agent = agent
        self.events: list[dict[str, Any]] = []
        self._open: dict[int, nixl_xfer_handle] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Trace:
        self.agent.transfer = self._transfer  # type: ignore[method-assign]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self.agent.transfer  # the class's own is back
        for handle in list(self._open.values()):
            self._note(handle)
        self._open.clear()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the events as a file for chrome://tracing or ui.perfetto.dev."""
        shown = [
            {
                "name": f"{event['bytes']} bytes, {event['lane'] or event['backend']}",
                "ph": "X",
                "pid": self.agent.name,
                "tid": event["backend"],
                "ts": event["start"],
                "dur": event["duration"],
                "args": event,
            }
            for event in self.events
        ]
        Path(path).write_text(json.dumps({"traceEvents": shown}))

    def _transfer(self, handle: nixl_xfer_handle, notif_msg: bytes | str = b"") -> str:
        # What the handle did before is told now: its figures are about to be replaced.
        if self._open.pop(id(handle), None) is not None:
            self._note(handle)
        state = type(self.agent).transfer(self.agent, handle, notif_msg)
        with self._lock:
            self._open[id(handle)] = handle
        return state

    def _note(self, handle: nixl_xfer_handle) -> None:
        """Adds the event of a handle's last post; a released handle has none any more."""
        try:
            error = handle.error
            told = self.agent.explain(handle)
            state = "DONE" if error is None else str(error)
            try:
                figures = self.agent.get_xfer_telemetry(handle)
                start, post, duration = (
                    figures.startTime,
                    figures.postDuration,
                    figures.xferDuration,
                )
            except nixlError:
                start = post = duration = 0
                if error is None and self.agent.agent._pending(handle):
                    state = "PROC"
        except nixlError:
            return
        event = {
            "start": start,
            "post": post,
            "duration": duration,
            "bytes": told["bytes"],
            "descriptors": told["descriptors"],
            "segments": told["segments"],
            "backend": told["backend"],
            "lane": told["lane"],
            "state": state,
        }
        with self._lock:
            self.events.append(event)
