"""`max_bytes` in the layout `files`: what the files of all connectors on the same directories may
take together. Room is reserved before anything is written, and the least recently used pages go
first, all their parts and ranks together. Thread-safe."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from .cleaner import Page, pages_of
from .ledger import Book, Ledger

if TYPE_CHECKING:
    from .files import NixlFileManager

logger = logging.getLogger("nixl.hicache")

BLOCK = 4096
#: What frees room frees this part of the cap more than is needed, so that not every set does.
SLACK = 64
#: Looking at all files finds what to remove next, up to this part of the cap.
AHEAD = 8
#: That a file was read is noted in its time at most so often (seconds).
TOUCH_SECONDS = 60.0
#: The files are counted anew after so many seconds, and after so many times what that takes: others
#: may have stored or removed some without a word.
RECOUNT_SECONDS = 300.0
RECOUNT_SHARE = 100.0


class AboveCap(ValueError):
    """More at once than the cap allows."""


def on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _size_of(path: str) -> int:
    try:
        return on_disk(os.lstat(path).st_size)
    except OSError:
        return 0


class Room:
    """`is_ours` knows the names of files that nothing else tells to be ours."""

    def __init__(
        self,
        files: NixlFileManager,
        max_bytes: int,
        is_ours: Callable[[str], bool] = lambda _: False,
    ):
        self.files = files
        self.max_bytes = max_bytes
        self.evictions = 0
        self.evicted_bytes = 0
        self._is_ours = is_ours
        self._ledger = Ledger(files.base_dirs, files.file_mode, files.folder_mode)
        self._oldest: deque[Page] = deque()  # used under the ledger's lock only

    # -- storing -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def storing(self, lengths: Sequence[int]) -> Iterator[Callable[[list[str], list[str]], None]]:
        """Makes room for files of these lengths. Gives what renames them to their names; what was
        not renamed gives its room back."""
        wanted = sum(map(on_disk, lengths))
        owner = self.files.owner()
        with self._ledger.held() as book:
            self._reserve(book, wanted)
            book.writing[owner] = book.writing.get(owner, 0) + wanted

        def rename(sources: list[str], targets: list[str]) -> None:
            nonlocal wanted
            with self._ledger.held() as book:
                try:
                    for source, target in zip(sources, targets, strict=True):
                        old, new = _size_of(target), _size_of(source)
                        os.replace(source, target)
                        if book.stored is not None:
                            book.stored = max(0, book.stored + new - old)
                finally:
                    self._settle(book, owner, wanted)
                    wanted = 0
                # Others may have stored since the reservation.
                self._shrink(book, self.max_bytes)

        try:
            yield rename
        finally:
            if wanted:
                with self._ledger.held() as book:
                    self._settle(book, owner, wanted)

    def check(self, wanted: int) -> None:
        if wanted > self.max_bytes:
            where = ", ".join(self.files.base_dirs)
            raise AboveCap(
                f"{where}: files of {wanted} bytes at once are above the cap of {self.max_bytes}"
            )

    def _reserve(self, book: Book, wanted: int) -> None:
        # With what others are about to store: what is too much then goes when they have.
        self._shrink(book, self.max_bytes - min(wanted + book.in_hand(), self.max_bytes))

    @staticmethod
    def _settle(book: Book, owner: str, size: int) -> None:
        left = book.writing.pop(owner, 0) - size
        if left > 0:
            book.writing[owner] = left

    # -- removing ------------------------------------------------------------------------------

    def _shrink(self, book: Book, goal: int) -> int:
        """Removes the oldest pages until so many bytes are left; gives what went. What the ledger
        says is looked after before the first goes that was not seen to be old."""
        target = max(0, goal - self.max_bytes // SLACK)
        looked = book.stored is None
        stored = self._count(book, target) if book.stored is None else book.stored
        gone = 0
        if stored <= goal:
            return gone
        while stored > target:
            if self._oldest:
                size = self._remove(self._oldest.popleft())
                book.stored = stored = max(0, stored - size)
                gone += size
            elif looked:
                break  # nothing is left that may go
            else:
                stored = self._count(book, target)
                looked = True
                if stored <= goal:
                    break
        return gone

    def _remove(self, page: Page) -> int:
        """Removes a page unless it was used or written since it was looked at."""
        for path in [path for _, path, _ in page.files]:
            with contextlib.suppress(OSError):
                if os.stat(path).st_mtime > page.age:
                    return 0
        total = 0
        for _, path, _ in page.files:
            size = _size_of(path)
            with contextlib.suppress(OSError):
                os.unlink(path)
                total += size
        self.evictions += total > 0
        self.evicted_bytes += total
        return total

    def _count(self, book: Book, target: int) -> int:
        """Looks at all files: what they take, and which go next, down to so many bytes and more."""
        start = time.monotonic()
        self.files.collect()  # what ended writers had in hand goes with them
        for owner in [owner for owner in book.writing if not self.files.is_owner(owner)]:
            del book.writing[owner]
        pages = pages_of(self.files, self._is_ours)
        stored = sum(on_disk(size) for page in pages for _, _, size in page.files)
        book.stored = stored
        book.counted, book.took = self._ledger.now(), time.monotonic() - start
        self._oldest.clear()
        ahead = stored - target + self.max_bytes // AHEAD
        for page in pages:
            if ahead <= 0:
                break
            self._oldest.append(page)
            ahead -= sum(on_disk(size) for _, _, size in page.files)
        return stored

    def free(self, wanted: int) -> int:
        """The disk is full though the cap is not reached: room for so many bytes, all the same."""
        with self._ledger.held() as book:
            stored = book.stored
            if stored is None:
                stored = self._count(book, self.max_bytes)
            return self._shrink(book, max(0, stored - wanted))

    # -- beside --------------------------------------------------------------------------------

    def used(self, path: str, info: os.stat_result) -> None:
        """A file was read, or stored again as it is."""
        if time.time() - info.st_mtime >= TOUCH_SECONDS:
            with contextlib.suppress(OSError):  # not ours to change
                os.utime(path)

    def removed(self, size: int) -> None:
        """A file of so many bytes was removed."""
        with contextlib.suppress(OSError), self._ledger.held() as book:
            if book.stored is not None:
                book.stored = max(0, book.stored - on_disk(size))

    def forget(self) -> None:
        self._ledger.forget()

    def maintain(self) -> bool:
        """Counts anew where that is due, and keeps the cap; whether something went."""
        with self._ledger.held() as book:
            wait = max(RECOUNT_SECONDS, RECOUNT_SHARE * book.took)
            if not 0 <= self._ledger.now() - book.counted < wait:
                self._count(book, self.max_bytes)
            return self._shrink(book, self.max_bytes) > 0

    def stats(self) -> dict[str, int]:
        stored = 0
        with contextlib.suppress(OSError), self._ledger.held() as book:
            stored = book.stored or 0
        return {
            "stored_bytes": stored,
            "evictions": self.evictions,
            "evicted_bytes": self.evicted_bytes,
        }
