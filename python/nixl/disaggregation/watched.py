"""What the rooms of both sides are to the C++ watch that poll() asks: a status and a deadline."""

from __future__ import annotations

from typing import Any

from .types import FINAL


class WatchedRoom:
    """Its subclass sets the attributes, `watch` before the first status."""

    mgr: Any
    room: int
    watch: Any

    def set(self, status: int) -> None:
        self.watch.status = status
        self.mgr.request_status[self.room] = status
        if status in FINAL:
            self.watch.end()

    @property
    def status(self) -> int:
        return self.watch.status

    @property
    def deadline(self) -> float:
        return self.watch.deadline

    @deadline.setter
    def deadline(self, when: float) -> None:
        self.watch.deadline = when
