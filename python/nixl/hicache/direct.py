"""Where O_DIRECT can be used: folders whose file system takes it, memory that the kernel can pin.
What was refused once is remembered, by folder and by region. Thread-safe."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

logger = logging.getLogger("nixl.hicache")

ALIGNMENT = 4096
#: How much memory that cannot be pinned is copied at once.
BOUNCE_BYTES = 32 << 20
#: Regions that are remembered at most; one that was forgotten is found out again.
MAX_REGIONS = 4096
#: What a file system answers that has no O_DIRECT, at opening or at the first call.
REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)


def aligned(rows: np.ndarray) -> bool:
    """Whether O_DIRECT can move these rows as they are."""
    return not bool(((rows[:, 0] | rows[:, 1]) & np.uint64(ALIGNMENT - 1)).any())


class DirectIo:
    """What is known of folders and memory. `region_of` gives the (start, end) of the registered
    region around an address and length."""

    def __init__(self, wanted: bool, region_of: Callable[[int, int], tuple[int, int]]):
        self.wanted = wanted
        self.region_of = region_of
        self.bounce = Bounce()
        self._lock = threading.Lock()
        self._refused: set[str] = set()
        self._unpinned: set[tuple[int, int]] = set()

    def takes(self, folder: str) -> bool:
        return self.wanted and folder not in self._refused

    def refuse(self, folder: str, error: object) -> None:
        """From now on files of the folder are read and written through the page cache."""
        with self._lock:
            if folder not in self._refused:
                self._refused.add(folder)
                logger.warning("%s: no O_DIRECT here (%s); buffered from now on", folder, error)

    def pins(self, address: int, length: int) -> bool:
        """Whether the kernel can pin this memory, as far as is known."""
        if not self._unpinned:
            return True
        end = address + length
        with self._lock:
            return not any(a < end and address < b for a, b in self._unpinned)

    def unpin(self, region: tuple[int, int]) -> None:
        """From now on this memory takes another path; the first is reported."""
        with self._lock:
            if region not in self._unpinned:
                if len(self._unpinned) >= MAX_REGIONS:
                    self._unpinned.pop()
                self._unpinned.add(region)
                start, end = region
                first = len(self._unpinned) == 1
                logger.log(
                    logging.WARNING if first else logging.DEBUG,
                    "%d bytes of memory at %#x cannot be pinned for O_DIRECT (%s); they are copied "
                    "from now on", end - start, start, os.strerror(errno.EFAULT),
                )  # fmt: skip


class Bounce:
    """Memory that can be pinned, in front of memory that cannot. The kernel copies between the two,
    so that memory which is not there is an error, not a signal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = -1
        self._process = os.getpid()
        self._memory: mmap.mmap | None = None

    def run(self, rows: np.ndarray, write: bool, move: Callable[[list[int], Any], None]) -> None:
        """Calls `move` with the numbers of some rows and rows to use in their place, until all are
        through. Lengths and offsets are aligned."""
        if self._process != os.getpid():  # a forked child: the lock may be one left locked
            self._lock = threading.Lock()
        with self._lock:
            for some in _batches(rows[:, 1].tolist()):
                mine = rows[some].copy()
                offsets = np.concatenate(([0], np.cumsum(mine[:, 1], dtype=np.uint64)))
                mine[:, 0] = self._room(int(offsets[-1])) + offsets[:-1]
                if write:
                    for i, offset in zip(some, offsets, strict=False):
                        self._load(int(rows[i][0]), int(rows[i][1]), int(offset))
                move(some, mine)
                if not write:
                    for i, offset in zip(some, offsets, strict=False):
                        self._store(int(rows[i][0]), int(rows[i][1]), int(offset))

    def _room(self, size: int) -> np.uint64:
        """The address of at least so many bytes."""
        mine = self._process == os.getpid()  # a forked child shares what it inherited
        if self._memory is None or len(self._memory) < size or not mine:
            self.close()
            self._process = os.getpid()
            self._fd = os.memfd_create("nixl-hicache-bounce", os.MFD_CLOEXEC)
            os.ftruncate(self._fd, size)
            self._memory = mmap.mmap(self._fd, size)
        return np.uint64(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)))

    def _load(self, address: int, length: int, offset: int) -> None:
        view = memoryview((ctypes.c_char * length).from_address(address)).cast("B")
        done = 0
        while done < length:
            done += os.pwrite(self._fd, view[done:], offset + done)

    def _store(self, address: int, length: int, offset: int) -> None:
        view = memoryview((ctypes.c_char * length).from_address(address)).cast("B")
        done = 0
        while done < length:
            done += os.preadv(self._fd, [view[done:]], offset + done)

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            os.close(self._fd)
        self._memory, self._fd = None, -1


def _batches(lengths: list[int]) -> list[list[int]]:
    """Numbers of rows in groups of at most BOUNCE_BYTES, or of one row that is larger."""
    out: list[list[int]] = []
    size = BOUNCE_BYTES + 1
    for i, length in enumerate(lengths):
        if size + length > BOUNCE_BYTES:
            out.append([])
            size = 0
        out[-1].append(i)
        size += length
    return out
