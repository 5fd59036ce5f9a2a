"""Files of one or several storage directories: their names, rights and marks, what is being
written, and whose they are. Thread-safe."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from .keys import OURS, WORKSHOP, file_name, mark_of, route
from .ledger import Ledger
from .workshop import Workshop, collect, make_folders

logger = logging.getLogger("nixl.hicache")

#: What a file's checksum and its owner are kept in, where the file system keeps such things.
XATTR = "user.nixl.crc32c"
MARK = "user.nixl.own"
FILE_MODE = 0o600

_BUCKET = re.compile(r"[0-9a-f]{2}\Z")
_NO_MARKS = (errno.ENOTSUP, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.E2BIG)


def folder_mode(file_mode: int) -> int:
    """The rights of a folder for files of those rights: whoever may read may look."""
    return file_mode | (file_mode & 0o444) >> 2


def sync(path: str) -> None:
    """A file or folder to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def mark_on(path: str) -> bytes | None:
    """Whose a file is marked as; None where it has no mark."""
    try:
        return os.getxattr(path, MARK)
    except OSError:
        return None


class NixlFileManager:
    """Files of one or several base directories, with safe names for any key.

    With one directory given as a string a key's file lies directly in it. With `buckets` (what the
    page interface uses) keys spread over the directories and 256 folders in each, named as SGLang's
    own connector names them. `file_mode` is what others may do with the files; folders that are
    made fit it. With `durable` what is made is on the disk when a call returns.
    """

    def __init__(
        self,
        base_dir: str | os.PathLike[str] | Sequence[str],
        use_direct_io: bool = False,
        buckets: bool = False,
        *,
        file_mode: int = FILE_MODE,
        durable: bool = False,
    ):
        one = isinstance(base_dir, (str, os.PathLike))
        given: Any = [base_dir] if one else base_dir
        bases = [os.fspath(path) for path in given]
        self.base_dirs = [directory for directory in bases if directory]
        self.base_dir = self.base_dirs[0] if self.base_dirs else ""
        self.use_direct_io = use_direct_io
        self.buckets = buckets or len(self.base_dirs) > 1
        self.file_mode = file_mode
        self.folder_mode = folder_mode(file_mode)
        self.durable = durable
        self._told_marks = False
        self._told_direct: set[str] = set()
        self._lock = threading.Lock()
        self._parents: set[str] = set()
        for directory in self.base_dirs:
            self._make(directory)
        self._workshops = {base: Workshop(base, self.folder_mode) for base in self.base_dirs}

    def _make(self, folder: str) -> None:
        made = make_folders(folder, self.folder_mode)
        if self.durable:
            for path in made:
                sync(os.path.dirname(path) or ".")

    # -- names ---------------------------------------------------------------------------------

    def get_file_path(self, key: str) -> str:
        """The file of a key. Different keys never share one, and none leaves the directory."""
        if not self.base_dirs:
            return key
        if not self.buckets:
            return f"{self.base_dir}/{file_name(key)}"
        index, bucket = route(key, len(self.base_dirs))
        return f"{self.base_dirs[index]}/{bucket}/{file_name(key)}"

    def base_of(self, path: str) -> str:
        """The base directory of a path that get_file_path() gave."""
        folder = os.path.dirname(path)
        return os.path.dirname(folder) if self.buckets else folder

    def temporaries(self, paths: Sequence[str]) -> list[str]:
        """Where the files that become `paths` are written; all folders are there."""
        for path in {os.path.dirname(path): path for path in paths}.values():
            self.make_parent(path)
        out = [""] * len(paths)
        for base in dict.fromkeys(map(self.base_of, paths)):
            mine = [i for i, path in enumerate(paths) if self.base_of(path) == base]
            for i, name in zip(mine, self._workshops[base].names(len(mine)), strict=True):
                out[i] = name
        return out

    def owner(self) -> str:
        """Who this is among those that write files here: holds a lock while it lives."""
        return self._workshops[min(self.base_dirs)].owner()

    def is_owner(self, name: str) -> bool:
        """Whether an owner of that name is there; collect() removes those that ended."""
        return os.path.isdir(os.path.join(min(self.base_dirs), WORKSHOP, name))

    def make_parent(self, file_path: str) -> None:
        parent = os.path.dirname(file_path)
        if parent and (parent not in self._parents or not os.path.isdir(parent)):
            self._make(parent)
            with self._lock:
                self._parents.add(parent)

    def iter_all_base_dirs(self) -> list[str]:
        return list(self.base_dirs)

    def entries(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Every regular file where files of keys lie, with its base directory; no link is
        followed."""
        for base in self.base_dirs:
            for folder in self._folders(base):
                with contextlib.suppress(OSError), os.scandir(folder) as found:
                    for entry in found:
                        if not entry.name.startswith(OURS) and entry.is_file(follow_symlinks=False):
                            yield base, entry

    def _folders(self, base: str) -> list[str]:
        if not self.buckets:
            return [base]
        with contextlib.suppress(OSError), os.scandir(base) as found:
            return sorted(
                entry.path
                for entry in found
                if _BUCKET.match(entry.name) and entry.is_dir(follow_symlinks=False)
            )
        return []

    # -- what a file says of itself ------------------------------------------------------------

    def seal(self, path: str, mark: bytes, checksum: str | None) -> bool:
        """Gives a file that was written its rights, its mark and its checksum; False where the file
        system keeps no marks."""
        os.chmod(path, self.file_mode)
        try:
            os.setxattr(path, MARK, mark)
            if checksum is not None:
                os.setxattr(path, XATTR, checksum.encode())
        except OSError as error:
            if error.errno not in _NO_MARKS:
                raise
            if not self._told_marks:
                self._told_marks = True
                logger.info("%s: no extended attributes (%s): files are not verified", path, error)
            return False
        return True

    @staticmethod
    def readable(path: str, size: int | None = None) -> bool:
        """Whether a get of the file can deliver: a regular file that may be read and, where the
        length is known, of that length."""
        try:
            info = os.stat(path)
        except OSError:
            return False
        if not stat.S_ISREG(info.st_mode) or (size is not None and info.st_size != size):
            return False
        user = os.geteuid()
        mine = info.st_uid == user and info.st_mode & stat.S_IRUSR
        return user == 0 or bool(mine) or os.access(path, os.R_OK)

    # -- one file ------------------------------------------------------------------------------

    def create_file(self, file_path: str) -> bool:
        """Creates a file (and its directory) unless it exists."""
        try:
            self.make_parent(file_path)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            os.close(os.open(file_path, flags, self.file_mode))
            return True
        except (OSError, ValueError) as error:
            logger.error("create %s: %s", file_path, error)
            return False

    def open_file(self, file_path: str, create: bool = False) -> int | None:
        """A descriptor to read and write the file, or None with the reason logged."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        try:
            if create:
                self.make_parent(file_path)
            if self.use_direct_io:
                try:
                    return os.open(file_path, flags | os.O_DIRECT, self.file_mode)
                except OSError as error:
                    self._tell_direct(file_path, error)
            return os.open(file_path, flags, self.file_mode)
        except (OSError, ValueError) as error:
            logger.error("open %s: %s", file_path, error)
            return None

    def _tell_direct(self, path: str, error: OSError) -> None:
        folder = os.path.dirname(path)
        if error.errno == errno.EINVAL and folder not in self._told_direct:
            self._told_direct.add(folder)
            logger.warning("%s: no O_DIRECT here (%s); buffered", folder, error.strerror)

    def close_file(self, fd: int) -> bool:
        try:
            os.close(fd)
            return True
        except (OSError, TypeError) as error:
            logger.error("close descriptor %s: %s", fd, error)
            return False

    def files_to_nixl_tuples(
        self, file_paths: Sequence[str], open_file: bool = True
    ) -> list[tuple[int, int, int, str]]:
        """(offset, length, descriptor, path) for each file; without `open_file` the descriptor is
        0. Where one cannot be opened, those already open are closed and the list is empty."""
        tuples: list[tuple[int, int, int, str]] = []
        for path in file_paths:
            fd = self.open_file(path) if open_file else 0
            if fd is None:
                for _, _, other, _ in tuples:
                    self.close_file(other)
                return []
            try:
                length = os.fstat(fd).st_size if open_file else os.stat(path).st_size
            except OSError:
                length = 0
            tuples.append((0, length, fd, path))
        return tuples

    def remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)

    # -- upkeep --------------------------------------------------------------------------------

    def collect(self) -> int:
        """Removes what writers left that are gone; gives the bytes."""
        total = 0
        for base in self.base_dirs:
            files, size = collect(base)
            total += size
            if files:
                logger.info("%s: %d unfinished files of ended writers removed", base, files)
        return total

    def clear(
        self,
        marks: Collection[bytes] = (mark_of(""),),
        is_ours: Callable[[str], bool] = lambda _: False,
    ) -> int:
        """Removes the files that have one of the marks (by default that of single keys), and those
        without a mark for whose name `is_ours` says so; gives how many it could not tell."""
        unknown = 0
        for _, entry in self.entries():
            mark = mark_on(entry.path)
            mine = is_ours(entry.name) if mark is None else mark in marks
            unknown += mark is None and not mine
            if mine:
                try:
                    os.unlink(entry.path)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    logger.warning("remove %s: %s", entry.path, error)
        if self.base_dirs:
            Ledger(self.base_dirs, self.file_mode, self.folder_mode).forget()
        return unknown

    def close(self) -> None:
        for workshop in self._workshops.values():
            workshop.close()
