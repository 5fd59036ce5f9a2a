"""Keeps room on the disks: above a high watermark, or below a floor of free space, the oldest pages
of the layout `files` go, all their parts and ranks together, and then the oldest packed blocks. One
process at a time cleans a directory, whichever connector that is. Thread-safe."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .files import NixlFileManager, mark_on
from .keys import PACKED, WORKSHOP, page_of
from .workshop import make_folders

if TYPE_CHECKING:
    from .blocks import PackedBlocks

logger = logging.getLogger("nixl.hicache")

#: The packed layout may hold so much of each disk, however full that is.
MIN_CAP = 1 << 30


@dataclass
class Page:
    """The files of all parts and ranks of a page, wherever they lie."""

    age: float = 0.0  # when the newest of them was written
    files: list[tuple[str, str, int]] = field(default_factory=list)  # directory, path, bytes


class Disk:
    """How full the file system of a directory is, as df says it."""

    def __init__(self, path: str):
        info = os.statvfs(path)
        self.free = info.f_bavail * info.f_frsize
        self.used = (info.f_blocks - info.f_bfree) * info.f_frsize
        self.size = self.used + self.free

    @property
    def percent(self) -> float:
        return 100.0 * self.used / self.size if self.size else 0.0


def _below(path: str) -> Iterator[os.stat_result]:
    for root, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(root, name))


def pages_of(
    files: NixlFileManager, is_ours: Callable[[str], bool] = lambda _: False, taken: bool = False
) -> list[Page]:
    """What lies in the directories, the oldest first: pages with all their parts and ranks, and as
    a page by itself what is none by its name but marked as ours, or so by `is_ours`. The bytes of a
    file are its length, or with `taken` what it takes on the disk."""
    pages: dict[str, Page] = {}
    for base, entry in files.entries():
        name = page_of(entry.name)
        if name is None and not is_ours(entry.name) and mark_on(entry.path) is None:
            continue
        with contextlib.suppress(OSError):
            info = entry.stat(follow_symlinks=False)
            page = pages.setdefault(name or entry.path, Page())
            page.age = max(page.age, info.st_mtime)
            size = info.st_blocks * 512 if taken else info.st_size
            page.files.append((base, entry.path, size))
    return sorted(pages.values(), key=lambda page: page.age)


class Cleaner:
    """Cleans the directories of a file manager; percentages are of a disk's use."""

    def __init__(
        self,
        files: NixlFileManager,
        high: float,
        low: float,
        min_free: int = 0,
        disk: Callable[[str], Disk] = Disk,
    ):
        self.files = files
        self.high = high
        self.low = low
        self.min_free = min_free
        self._disk = disk
        self._lock = threading.Lock()
        self._told: set[str] = set()  # directories that cannot be given room

    def excess(self, base: str) -> int:
        """The bytes that are to go from the disk of a directory; 0 while there is room enough."""
        try:
            disk = self._disk(base)
        except OSError:
            return 0
        if disk.percent < self.high and disk.free >= self.min_free:
            return 0
        return max(1, *self._above(disk))

    def _above(self, disk: Disk) -> tuple[int, int]:
        return disk.used - int(disk.size * self.low / 100), self.min_free - disk.free

    def _enough(self, base: str) -> bool:
        try:
            return max(self._above(self._disk(base))) <= 0
        except OSError:
            return True

    def clean(self, wait: bool = False) -> int:
        """Removes the oldest pages from disks that are too full; gives the bytes that went. While
        another process does so, nothing, or with `wait` what is left to do then."""
        with self._lock, self._alone(wait) as alone:
            over = {base: self.excess(base) for base in self.files.base_dirs} if alone else {}
            goal = {base: size for base, size in over.items() if size}
            return self._remove(goal) if goal else 0

    def trim(self, packed: PackedBlocks, wait: bool = False) -> int:
        """Evicts the oldest packed blocks of this process from disks that are too full; gives the
        bytes. Each writer gives its part: a page is of use only with those of all ranks."""
        with self._lock, self._alone(wait) as alone:
            total = 0
            store = packed.store
            for i, base in enumerate(self.files.base_dirs if alone else ()):
                excess = self.excess(base)
                if excess:
                    part = -(-excess // max(1, store.stats()["writers"] // store.directories))
                    total += packed.trim(max(0, store.live_bytes(i) - part), i)
            return total

    def packed_cap(self) -> int:
        """What the packed layout beside may hold, so that the disks stay below the high watermark
        and above the floor with all that others have there now."""
        disks: dict[int, list[str]] = {}
        for base in self.files.base_dirs:
            disks.setdefault(os.stat(base).st_dev, []).append(base)
        caps = []  # of a directory; the store shares its cap equally between them
        for bases in disks.values():
            disk = self._disk(bases[0])
            most = min(int(disk.size * self.high / 100), disk.size - self.min_free)
            mine = sum(
                info.st_blocks * 512 for b in bases for info in _below(os.path.join(b, PACKED))
            )
            caps.append(max(MIN_CAP, most - (disk.used - mine)) // len(bases))
        return min(caps) * len(self.files.base_dirs)

    def _remove(self, goal: dict[str, int]) -> int:
        """Oldest first, until each directory's disk has room again, or as many bytes went as it
        had too many: some file systems tell late what is free."""
        count = total = 0
        left = dict(goal)
        for page in self._pages(set(goal)):
            if not left:
                break
            if not any(base in left for base, _, _ in page.files):
                continue
            for base, path, size in page.files:
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    logger.debug("cleaner: %s", error)
                    continue
                total += size
                if base in left:
                    left[base] -= size
            count += 1
            for base in [base for base in left if left[base] <= 0 or self._enough(base)]:
                del left[base]
        if count:
            where = ", ".join(goal)
            logger.info("cleaner: %d pages of %d bytes removed from %s", count, total, where)
        for base in set(left) - self._told:
            self._told.add(base)
            logger.warning(
                "cleaner: %s: the disk is still %.0f %% full, and no page is left here to remove",
                base, self._disk(base).percent,
            )  # fmt: skip
        self._told &= set(left)
        return total

    def _pages(self, hot: set[str]) -> list[Page]:
        """Pages with a file in one of the directories, the oldest first."""
        pages = pages_of(self.files, taken=True)
        return [page for page in pages if any(base in hot for base, _, _ in page.files)]

    @contextlib.contextmanager
    def _alone(self, wait: bool) -> Iterator[bool]:
        """Whether no other process cleans these directories now."""
        how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
        descriptors = []
        try:
            for base in self.files.base_dirs:
                make_folders(os.path.join(base, WORKSHOP), self.files.folder_mode)
                path = os.path.join(base, WORKSHOP, "cleaner")
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                descriptors.append(os.open(path, flags, self.files.file_mode))
                fcntl.flock(descriptors[-1], how)
            alone = True
        except OSError:
            alone = False
        try:
            yield alone
        finally:
            for fd in descriptors:
                os.close(fd)
