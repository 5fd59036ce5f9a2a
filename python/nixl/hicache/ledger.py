"""What the files of some directories take together: a small file beside them that all connectors
read and change under its lock, so that none has to look at every file. Thread-safe."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .keys import WORKSHOP
from .workshop import make_folders

NAME = "room"


@dataclass
class Book:
    """What the ledger says."""

    stored: int | None = None  # bytes of the files that have their names; None: to be counted
    counted: float = 0.0  # when they were counted last
    took: float = 0.0  # how many seconds that took
    writing: dict[str, int] = field(default_factory=dict)  # bytes that owners are about to store

    def in_hand(self) -> int:
        return sum(self.writing.values())


def _read(fd: int) -> Book:
    """A ledger that is empty, damaged or of another kind says nothing."""
    try:
        raw = json.loads(os.pread(fd, 1 << 20, 0) or b"{}")
        book = Book(raw["stored"], float(raw["counted"]), float(raw["took"]), dict(raw["writing"]))
        numbers = [0 if book.stored is None else book.stored, *book.writing.values()]
        if all(isinstance(number, int) and number >= 0 for number in numbers):
            return book
    except (ValueError, KeyError, TypeError):
        pass
    return Book()


def _write(fd: int, book: Book) -> None:
    text = json.dumps(vars(book), separators=(",", ":")).encode()
    try:
        os.pwrite(fd, text, 0)
        os.ftruncate(fd, len(text))
    except OSError:  # a full disk: the next one counts
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)


class Ledger:
    """The ledger of these directories. Every use opens it anew: a lock belongs to an open file, and
    neither threads nor forked children may share one."""

    def __init__(self, base_dirs: Sequence[str], file_mode: int, folder_mode: int):
        self._folder = os.path.join(min(base_dirs), WORKSHOP)
        self._path = os.path.join(self._folder, NAME)
        self._file_mode = file_mode
        self._folder_mode = folder_mode

    @contextlib.contextmanager
    def held(self) -> Iterator[Book]:
        """What it says, locked; changes are written at the end."""
        fd = self._open()
        try:
            book = _read(fd)
            before = json.dumps(vars(book))
            try:
                yield book
            finally:
                if json.dumps(vars(book)) != before:
                    _write(fd, book)
        finally:
            os.close(fd)

    def forget(self) -> None:
        """Files went that nobody counted: who needs to know counts anew."""
        if os.path.exists(self._path):
            with contextlib.suppress(OSError), self.held() as book:
                book.stored = None

    def _open(self) -> int:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            try:
                fd = os.open(self._path, flags, self._file_mode)
            except FileNotFoundError:
                make_folders(self._folder, self._folder_mode)
                fd = os.open(self._path, flags, self._file_mode)
            with contextlib.suppress(OSError):  # no locks here: then each for itself
                fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.fstat(fd), os.stat(self._path)):
                    return fd
            except OSError:
                pass  # removed underneath
            os.close(fd)

    @staticmethod
    def now() -> float:
        return time.time()
