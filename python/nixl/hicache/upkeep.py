"""What a connector does beside its callers, on a thread of its own while there is something to do:
the packed store is trimmed and compacted, disks get their room, what writers left is collected."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("nixl.hicache")

_RUNNING: weakref.WeakSet[Upkeep] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """No thread of ours may be in native code while the interpreter goes down."""
    for upkeep in list(_RUNNING):
        upkeep.stop()


@dataclass
class Task:
    """One kind of work. It is done `seconds` after somebody stored something, and with `always`
    every so many seconds; `run` says whether there is more to do at once."""

    name: str
    run: Callable[[], bool]
    seconds: float
    always: bool
    due: float = 0.0  # 0: nothing to do


class Upkeep:
    """Thread-safe; starts with the first wake()."""

    def __init__(self, tasks: list[Task]):
        self.tasks = tasks
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Something was stored."""
        if not self.tasks or (self._thread is not None and self._changed.is_set()):
            return
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="nixl-hicache", daemon=True)
                self._thread.start()
                _RUNNING.add(self)
        self._changed.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            now = time.monotonic()
            if self._changed.is_set():
                self._changed.clear()
                for task in self.tasks:
                    task.due = task.due or now + task.seconds
            for task in self.tasks:
                if task.due and task.due <= time.monotonic():
                    task.due = time.monotonic() + task.seconds if task.always else 0.0
                    self._do(task)
            due = [task.due for task in self.tasks if task.due]
            left = max(0.0, min(due) - time.monotonic()) if due else None
            # While all tasks are due, what is stored meanwhile changes nothing.
            (self._stop if len(due) == len(self.tasks) else self._changed).wait(left)

    def _do(self, task: Task) -> None:
        try:
            while not self._stop.is_set() and task.run():
                pass
        except Exception as error:
            logger.warning("upkeep (%s): %s", task.name, error)

    def stop(self) -> None:
        self._stop.set()
        self._changed.set()
        thread = self._thread
        if thread is not None and threading.current_thread() is not thread:
            thread.join(10)
