"""What HiCache asks of an agent: register host memory once, register the storage side, run one
transfer and wait for it. Thread-safe."""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

logger = logging.getLogger("nixl.hicache")

#: A file's length as far as its registration is concerned: reads past the end come short.
WHOLE_FILE = 1 << 46
#: Device ids from here on mark the O_DIRECT twin of a segment.
DIRECT_BIT = 1 << 62
MAX_OPEN_SEGMENTS = 256
SWEEP_SECONDS = 1.0


class TransferError(RuntimeError):
    """A transfer that did not end in DONE, with the agent's reason."""


def rows_of(triples: Sequence[tuple[int, int, int]]) -> np.ndarray:
    return np.array(triples, dtype=np.uint64).reshape(-1, 3)


class Mover:
    """One agent with one storage backend, and what is registered with it."""

    def __init__(self, agent: Any, backend: str, storage: str, timeout: float = 0.0):
        self.agent = agent
        self.backend = backend
        self.storage = storage  # FILE or OBJ
        self.timeout = timeout
        self._lock = threading.Lock()
        self._next_device = 1
        self._starts: list[int] = []  # sorted; parallel to _ends
        self._ends: list[int] = []
        self._host: list[Any] = []

    def devices(self, count: int) -> int:
        """The first of `count` device ids nobody else uses."""
        with self._lock:
            first = self._next_device
            self._next_device += count
            return first

    # -- host memory ---------------------------------------------------------------------------

    def register_host(
        self, ranges: Sequence[tuple[int, int]], mem: str = "DRAM", dev: int = 0
    ) -> Any:
        """Registers (address, length) ranges until close(); known ones are not registered again."""
        fresh = [(a, n) for a, n in ranges if n and not (mem == "DRAM" and self.covers(a, n))]
        if not fresh:
            return True
        descs = self.agent.get_reg_descs([(a, n, dev, "") for a, n in fresh], mem)
        registered = self.agent.register_memory(descs, backends=[self.backend])
        with self._lock:
            self._host.append(registered)
            if mem == "DRAM":
                for address, length in fresh:
                    self._remember(address, address + length)
        return registered

    def _remember(self, start: int, end: int) -> None:
        at = bisect.bisect_left(self._starts, start)
        self._starts.insert(at, start)
        self._ends.insert(at, end)

    def covers(self, address: int, length: int) -> bool:
        """Whether a registration made by register_host holds the whole range."""
        at = bisect.bisect_right(self._starts, address)
        # Ranges rarely overlap: the nearest few to the left decide.
        return any(
            self._starts[i] <= address and address + length <= self._ends[i]
            for i in range(at - 1, max(-1, at - 9), -1)
        )

    def region_of(self, address: int, length: int) -> tuple[int, int]:
        """The (start, end) of a registration that holds the range; else the range itself."""
        with self._lock:
            at = bisect.bisect_right(self._starts, address)
            for i in range(at - 1, max(-1, at - 9), -1):
                if address + length <= self._ends[i]:
                    return self._starts[i], self._ends[i]
        return address, address + length

    @contextmanager
    def host(self, rows: np.ndarray, mem: str = "DRAM") -> Iterator[None]:
        """Registers for the time of a transfer what register_host does not cover yet."""
        fresh = [
            (int(a), int(n), int(d), "")
            for a, n, d in rows
            if n and not (mem == "DRAM" and self.covers(int(a), int(n)))
        ]
        if not fresh:
            yield
            return
        descs = self.agent.get_reg_descs(fresh, mem)
        registered = self.agent.register_memory(descs, backends=[self.backend])
        try:
            yield
        finally:
            self._quietly(self.agent.deregister_memory, registered)

    # -- storage -------------------------------------------------------------------------------

    @contextmanager
    def registered(self, tuples: list[tuple[int, int, int, str]]) -> Iterator[None]:
        """Registers (offset, length, device, path spec or key) for the time of a transfer."""
        descs = self.agent.get_reg_descs(tuples, self.storage)
        registered = self.agent.register_memory(descs, backends=[self.backend])
        try:
            yield
        finally:
            self._quietly(self.agent.deregister_memory, registered)

    def register_storage(self, tuples: list[tuple[int, int, int, str]]) -> Any:
        descs = self.agent.get_reg_descs(tuples, self.storage)
        return self.agent.register_memory(descs, backends=[self.backend])

    def deregister(self, registered: Any) -> None:
        self._quietly(self.agent.deregister_memory, registered)

    # -- transfers -----------------------------------------------------------------------------

    def start(self, op: str, host: np.ndarray, storage: np.ndarray, mem: str = "DRAM") -> Any:
        """Posts one transfer between two Nx3 arrays; finish() waits for it."""
        handle = self.agent.initialize_xfer(
            op,
            self.agent.get_xfer_descs(host, mem),
            self.agent.get_xfer_descs(storage, self.storage),
            self.agent.name,
            backends=[self.backend],
        )
        try:
            state = self.agent.transfer(handle)
        except BaseException:
            self._quietly(self.agent.release_xfer_handle, handle)
            raise
        return handle, state

    def finish(self, op: str, started: Any) -> None:
        handle, state = started
        try:
            if state == "PROC":
                state = self._wait(handle)
            if state != "DONE":
                reason = getattr(handle, "error", None) or "no reason given"
                if state == "PROC":
                    reason = f"not done after {self.timeout} s"
                raise TransferError(f"{op} through {self.backend} failed: {reason}")
        finally:
            self._quietly(self.agent.release_xfer_handle, handle)

    def run(self, op: str, host: np.ndarray, storage: np.ndarray, mem: str = "DRAM") -> None:
        self.finish(op, self.start(op, host, storage, mem))

    def _wait(self, handle: Any) -> str:
        wait = getattr(handle, "wait", None)
        if wait is not None:
            wait(self.timeout or None)
            return self.agent.check_xfer_state(handle)
        end = time.monotonic() + self.timeout if self.timeout else None
        pause = 20e-6
        while (state := self.agent.check_xfer_state(handle)) == "PROC":
            if end is not None and time.monotonic() > end:
                raise TransferError(f"no end after {self.timeout} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 1e-3)
        return state

    @staticmethod
    def _quietly(call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except Exception as error:
            logger.debug("%s: %s", getattr(call, "__name__", "call"), error)

    def close(self) -> None:
        with self._lock:
            host, self._host = self._host, []
            self._starts, self._ends = [], []
        for registered in host:
            self.deregister(registered)


class OpenSegments:
    """Segment files registered by path, so that a batch registers nothing; the coldest close."""

    def __init__(
        self,
        mover: Mover,
        path_of: Callable[[int], str],
        is_gone: Callable[[int], bool],
        limit: int = MAX_OPEN_SEGMENTS,
    ):
        self._mover = mover
        self._path_of = path_of
        self._is_gone = is_gone
        self._limit = limit
        self._swept = time.monotonic()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._users: dict[int, int] = {}

    @contextmanager
    def use(self, devices: Sequence[int]) -> Iterator[None]:
        """Holds the segments open; raises if one cannot be opened."""
        taken: list[int] = []
        try:
            for device in devices:
                self._take(device)
                taken.append(device)
            yield
        finally:
            with self._lock:
                for device in taken:
                    self._users[device] -= 1
                self._shrink()

    def _take(self, device: int) -> None:
        with self._lock:
            if device not in self._open:
                self._open[device] = self._register(device)
                self._users[device] = 0
            self._open.move_to_end(device)
            self._users[device] += 1

    def _register(self, device: int) -> Any:
        path = self._path_of(device & ~DIRECT_BIT)
        direct = ",direct" if device & DIRECT_BIT else ""
        if self._mover.storage == "OBJ":
            return self._mover.register_storage([(0, WHOLE_FILE, device, path)])
        try:
            return self._mover.register_storage([(0, WHOLE_FILE, device, f"rw{direct}:{path}")])
        except Exception:  # not ours to write
            return self._mover.register_storage([(0, WHOLE_FILE, device, f"ro{direct}:{path}")])

    def _shrink(self) -> None:
        if len(self._open) > self._limit:
            idle = [d for d in self._open if self._users[d] == 0]
            for device in idle[: len(self._open) - self._limit]:
                self._close(device)
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._sweep()

    def _close(self, device: int) -> None:
        self._mover.deregister(self._open.pop(device))
        del self._users[device]

    def _sweep(self) -> None:
        self._swept = time.monotonic()
        for device in list(self._open):
            if self._users[device] == 0 and self._is_gone(device & ~DIRECT_BIT):
                self._close(device)

    def sweep(self) -> None:
        """Closes segments that were removed: an open file keeps its room on the disk."""
        with self._lock:
            self._sweep()

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._mover.deregister(self._open.popitem()[1])
            self._users.clear()
            self._path_of = self._is_gone = _closed


def _closed(_: int) -> Any:
    raise RuntimeError("the connector is closed")
