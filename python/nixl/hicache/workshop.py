"""Files being written: each owner has a folder DIR/.nixl-tmp/OWNER for them, with a lock that it
holds while it lives. What owners left that are gone is collected. Thread-safe."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import shutil
import threading
import time
import uuid

from .keys import TEMPORARY, WORKSHOP

logger = logging.getLogger("nixl.hicache")

LOCK = "lock"
#: What nobody's lock speaks for is left alone for so long.
UNKNOWN_AGE = 3600.0


def make_folders(path: str, mode: int) -> list[str]:
    """Makes a folder and those above it that are missing; gives those that were made."""
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        parent = os.path.dirname(path)
        path = "" if parent == path else parent
    made = []
    for folder in reversed(missing):
        try:
            os.mkdir(folder, mode)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise
            continue
        os.chmod(folder, mode)  # whatever the umask says
        made.append(folder)
    return made


class Workshop:
    """The folder of one owner in one storage directory."""

    def __init__(self, base: str, folder_mode: int):
        self.base = base
        self._process = os.getpid()
        self._mode = folder_mode
        self._lock = threading.Lock()
        self._folder = ""
        self._fd = -1
        self._names = itertools.count()

    def names(self, count: int) -> list[str]:
        """Paths for more files; their folder is there."""
        folder = self._folder
        mine = self._process == os.getpid()
        if not mine:  # a forked child has a folder of its own; the lock may be one left locked
            self._lock = threading.Lock()
        if not folder or not mine or not os.path.isdir(folder):  # or removed underneath
            folder = self._open()
        return [f"{folder}/{next(self._names)}" for _ in range(count)]

    def owner(self) -> str:
        """The name of the folder, which is there."""
        return os.path.basename(os.path.dirname(self.names(1)[0]))

    def _open(self) -> str:
        with self._lock:
            mine = self._process == os.getpid()
            if mine and self._folder and os.path.isdir(self._folder):
                return self._folder
            self._let_go()
            self._process = os.getpid()
            while True:
                folder = os.path.join(self.base, WORKSHOP, uuid.uuid4().hex)
                make_folders(folder, self._mode)
                fd = _locked(os.path.join(folder, LOCK), create=True)
                if fd is not None:
                    self._folder, self._fd = folder, fd
                    return folder

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._folder = -1, ""

    def close(self) -> None:
        """Gives the folder up; what is in it was not finished."""
        if self._process != os.getpid():
            return
        with self._lock:
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._let_go()


def _locked(path: str, create: bool) -> int | None:
    """The descriptor of a lock that nobody else holds, or None."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except OSError:
        if create:
            raise
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:  # no locks here: an owner goes on, and nobody collects
        if create:
            return fd
        os.close(fd)
        return None
    try:
        if os.path.samestat(os.fstat(fd), os.stat(path)):  # not collected in between
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def collect(base: str, age: float = UNKNOWN_AGE) -> tuple[int, int]:
    """Removes what owners left that are gone, and what nobody's lock speaks for once it is `age`
    seconds old: (files, bytes)."""
    files = size = 0
    root = os.path.join(base, WORKSHOP)
    try:
        owners = [entry.path for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return 0, 0
    for folder in owners:
        lock = os.path.join(folder, LOCK)
        fd = _locked(lock, create=False)
        if fd is None and (os.path.exists(lock) or not _older(folder, age)):
            continue
        try:
            count, total = _empty(folder)
            files, size = files + count, size + total
        finally:
            if fd is not None:
                os.close(fd)
    return files, size


def _empty(folder: str) -> tuple[int, int]:
    files = size = 0
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name == LOCK):
        with contextlib.suppress(OSError):
            info = entry.stat(follow_symlinks=False)
            os.unlink(entry.path)  # the lock goes last
            if entry.name != LOCK:
                files, size = files + 1, size + info.st_blocks * 512
    with contextlib.suppress(OSError):
        os.rmdir(folder)
    return files, size


def _older(path: str, age: float) -> bool:
    try:
        return time.time() - os.lstat(path).st_mtime >= age
    except OSError:
        return False


def collect_beside(folder: str, names: list[str], age: float = UNKNOWN_AGE) -> tuple[int, int]:
    """Removes files of a folder that were being written beside their target and are `age` old."""
    files = size = 0
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith(TEMPORARY) and _older(path, age):
            with contextlib.suppress(OSError):
                size += os.lstat(path).st_blocks * 512
                os.unlink(path)
                files += 1
    return files, size
