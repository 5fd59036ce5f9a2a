"""The layout `files` of blocks on storage: one file or object for each part of a key, whose name is
the key and the part's name. A block is made of `parts`: rows (address, length, device) of host
memory, `per` of them for each key. Thread-safe."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import resource
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nixl import _hicache

from . import payload
from .direct import ALIGNMENT, DirectIo
from .files import XATTR, sync
from .keys import is_page, mark_of, tails
from .objects import remove_objects
from .room import AboveCap, Room, on_disk
from .stats import Statistics
from .transfers import Mover

logger = logging.getLogger("nixl.hicache")

VERIFY_FILES_BELOW = 1 << 20


def _descriptor_budget() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 512 if soft == resource.RLIM_INFINITY else max(8, min(512, soft // 4))


class KeyedBlocks:
    """One file or object for each part of a key; its name is the key and the part's name."""

    def __init__(
        self,
        files: Any,
        mover: Mover,
        stats: Statistics,
        *,
        verify: str = "auto",
        direct: DirectIo | None = None,
        durable: bool = False,
        own: bool = False,
    ):
        self.files = files  # a NixlFileManager, or None for objects
        self.mover = mover
        self.stats = stats
        self.verify = verify
        self.direct = direct or DirectIo(False, mover.region_of)
        self.durable = durable
        self.own = own  # host memory goes to files by calls of the store, not by transfers
        #: Asked where a disk is full for so many bytes more; says whether there is more room now.
        self.make_room: Callable[[int], bool] = lambda _: False
        self.room: Room | None = None  # what the files may take together
        self._unmarked: set[bytes] = set()  # names of ours that nothing else tells to be so

    def _verifies(self, length: int) -> bool:
        if self.files is None or self.verify == "false":
            return False
        return self.verify == "true" or length < VERIFY_FILES_BELOW

    def _spec(self, rights: str, row: np.ndarray) -> str:
        fits = self.direct.wanted and (int(row[0]) | int(row[1])) % ALIGNMENT == 0
        return f"{rights},direct:" if fits else f"{rights}:"

    def _chunks(self, count: int, per: int) -> list[range]:
        step = max(1, _descriptor_budget() // per)
        return [range(i, min(i + step, count)) for i in range(0, count, step)]

    def put(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, *, replace: bool = False,
        names: Sequence[str] = ("",), mem: str = "DRAM",
    ) -> list[bool]:  # fmt: skip
        done = [False] * len(keys)
        if self._above_cap(keys, suffix, rows, per, replace, names):
            self.stats.count("set_failures", len(keys))
            return done
        for chunk in self._chunks(len(keys), per):
            todo = [
                i for i in chunk if replace or not self._all_there(keys[i] + suffix, names, rows, i)
            ]
            there = [i for i in chunk if i not in todo] if len(todo) < len(chunk) else []
            for i in there:
                done[i] = self._resolved([keys[i] + suffix + name for name in names])
            for i, ok in zip(
                todo, self._put_some(keys, suffix, rows, per, names, mem, todo), strict=True
            ):
                done[i] = ok
        self.stats.count("set_failures", done.count(False))
        return done

    def _above_cap(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, replace: bool,
        names: Sequence[str],
    ) -> bool:  # fmt: skip
        """Whether what is to be stored is more than may ever be."""
        everything = range(len(keys))
        if self.room is None or self._bytes(rows, per, everything) <= self.room.max_bytes:
            return False
        todo = [
            i
            for i in everything
            if replace or not self._all_there(keys[i] + suffix, names, rows, i)
        ]
        try:
            self.room.check(self._bytes(rows, per, todo))
        except AboveCap as error:
            logger.error("set: %s", error)
            return True
        return False

    def _all_there(self, key: str, names: Sequence[str], rows: np.ndarray, i: int) -> bool:
        if self.files is None:
            return False  # asking costs as much as writing
        found = []
        for p, name in enumerate(names):
            path = self.files.get_file_path(key + name)
            try:
                info = os.stat(path)
            except OSError:
                return False
            if info.st_size != int(rows[i * len(names) + p][1]):
                return False
            found.append((path, info))
        self._used(found)
        return True

    def _used(self, found: list[tuple[str, os.stat_result]]) -> None:
        if self.room is not None:
            for path, info in found:
                self.room.used(path, info)

    def _resolved(self, names: list[str]) -> bool:
        """What was stored before, perhaps by somebody who did not wait for the disk."""
        if self.durable and self.files is not None:
            paths = [self.files.get_file_path(name) for name in names]
            try:
                self._sync(paths, paths)
            except OSError as error:
                logger.error("set of %r: %s", names[0], error)
                return False
        return True

    def _put_some(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, names: Sequence[str],
        mem: str, todo: list[int],
    ) -> list[bool]:  # fmt: skip
        if not todo:
            return []
        try:
            try:
                self._put_once(keys, suffix, rows, per, names, mem, todo)
            except Exception as error:
                if not (_is_full(error) and self.make_room(self._bytes(rows, per, todo))):
                    raise
                self._put_once(keys, suffix, rows, per, names, mem, todo)
            return [True] * len(todo)
        except Exception as error:
            if len(todo) == 1:
                logger.error("set of %r: %s", keys[todo[0]], error)
                return [False]
            logger.warning("set of %d keys: %s; trying them one by one", len(todo), error)
        return [self._put_some(keys, suffix, rows, per, names, mem, [i])[0] for i in todo]

    @staticmethod
    def _bytes(rows: np.ndarray, per: int, todo: Sequence[int]) -> int:
        lengths = rows[:, 1].reshape(-1, per)[list(todo)].reshape(-1)
        return sum(map(on_disk, lengths.tolist()))

    def _put_once(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, names: Sequence[str],
        mem: str, todo: list[int],
    ) -> None:  # fmt: skip
        mine = rows.reshape(-1, per, 3)[todo].reshape(-1, 3)
        targets = [keys[i] + suffix + name for i in todo for name in names]
        if self.files is None:
            self._write(mine, targets, mem)
            self._remember(targets, suffix, names)
            return
        paths = [self.files.get_file_path(name) for name in targets]
        with contextlib.ExitStack() as held:
            rename: Callable[[list[str], list[str]], None] = _rename
            if self.room is not None:
                rename = held.enter_context(self.room.storing(mine[:, 1].tolist()))
            marked = self._store_files(mine, paths, mem, suffix, rename)
        if not marked:
            self._remember([os.path.basename(path) for path in paths], suffix, names)

    def _store_files(
        self, mine: np.ndarray, paths: list[str], mem: str, suffix: str,
        rename: Callable[[list[str], list[str]], None],
    ) -> bool:  # fmt: skip
        """Whether all files carry a mark that they are ours."""
        temporary = self.files.temporaries(paths)
        try:
            if self.own and mem == "DRAM":
                folders = [self.files.base_of(path) for path in paths]
                payload.move(self.direct, temporary, folders, mine, True)
            else:
                self._write(mine, temporary, mem)
            marked = self._seal(mine if mem == "DRAM" else None, temporary, mark_of(suffix))
            if self.durable:
                for path in temporary:
                    sync(path)
            rename(temporary, paths)
        except BaseException:
            for path in temporary:
                self.files.remove(path)
            raise
        if self.durable:
            self._sync([], paths)
        return marked

    def _write(self, rows: np.ndarray, names: list[str], mem: str) -> None:
        """Through the backend: to files that are made, or to objects."""
        first = self.mover.devices(len(rows))
        storage = np.zeros_like(rows)
        storage[:, 1] = rows[:, 1]
        storage[:, 2] = np.arange(first, first + len(rows), dtype=np.uint64)
        whole = self.files is None  # an object is written also where it is empty
        tuples = [
            (0, int(r[1]), first + n, name if whole else self._spec("rw,create", r) + name)
            for n, (r, name) in enumerate(zip(rows, names, strict=True))
        ]
        with self.mover.registered(tuples):
            keep = np.ones(len(rows), dtype=bool) if whole else rows[:, 1] != 0
            if keep.any():
                self.mover.run("WRITE", rows[keep], storage[keep], mem)

    def _seal(self, rows: np.ndarray | None, paths: list[str], mark: bytes) -> bool:
        """Rights, marks and (where they are checked) checksums, before the name counts."""
        sums: list[str | None] = [None] * len(paths)
        if rows is not None:  # memory of a GPU cannot be read here
            checked = [n for n, r in enumerate(rows) if self._verifies(int(r[1]))]
            if checked:
                values = _hicache.checksums(np.ascontiguousarray(rows[checked]), 1)
                for n, value in zip(checked, values, strict=True):
                    sums[n] = f"{int(rows[n][1])}:{value:08x}"
        marked = [self.files.seal(p, mark, s) for p, s in zip(paths, sums, strict=True)]
        return all(marked)

    @staticmethod
    def _sync(files: list[str], within: list[str]) -> None:
        """Files, and then the folders that name files, to the disk."""
        for path in files:
            sync(path)
        for folder in sorted({os.path.dirname(path) for path in within}):
            sync(folder)

    def _remember(self, targets: list[str], suffix: str, names: Sequence[str]) -> None:
        ends = tails([suffix], names, self.files is not None)
        self._unmarked.update(_digest(name) for name in targets if not is_page(name, ends))

    def get(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, *,
        names: Sequence[str] = ("",), mem: str = "DRAM",
    ) -> list[bool]:  # fmt: skip
        done = [False] * len(keys)
        for chunk in self._chunks(len(keys), per):
            todo = [i for i in chunk if self._readable(keys[i] + suffix, names, rows, i)]
            for i, ok in zip(
                todo, self._get_some(keys, suffix, rows, per, names, mem, todo), strict=True
            ):
                done[i] = ok
        self.stats.count("hits", done.count(True))
        self.stats.count("misses", done.count(False))
        return done

    def _readable(self, key: str, names: Sequence[str], rows: np.ndarray, i: int) -> bool:
        if self.files is None:
            return True
        for p, name in enumerate(names):
            wanted = int(rows[i * len(names) + p][1])
            path = self.files.get_file_path(key + name)
            try:
                info = os.stat(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    logger.error("get of %r: %s", key + name, error)
                return False
            if info.st_size != wanted:
                logger.warning(
                    "get of %r: %d bytes are stored, %d were asked for: a miss", key + name,
                    info.st_size, wanted,
                )  # fmt: skip
                return False
            self._used([(path, info)])
        return True

    def _get_some(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, names: Sequence[str],
        mem: str, todo: list[int],
    ) -> list[bool]:  # fmt: skip
        if not todo:
            return []
        if self.files is None:
            there = self.present([keys[i] for i in todo], suffix, names)
            if not all(there):
                kept = [i for i, ok in zip(todo, there, strict=True) if ok]
                results = iter(self._get_some(keys, suffix, rows, per, names, mem, kept))
                return [next(results) if ok else False for ok in there]
        try:
            return self._get_once(keys, suffix, rows, per, names, mem, todo)
        except Exception as error:
            if len(todo) == 1:
                logger.error("get of %r: %s", keys[todo[0]], error)
                return [False]
            logger.warning("get of %d keys: %s; trying them one by one", len(todo), error)
        return [self._get_some(keys, suffix, rows, per, names, mem, [i])[0] for i in todo]

    def _get_once(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, names: Sequence[str],
        mem: str, todo: list[int],
    ) -> list[bool]:  # fmt: skip
        mine = rows.reshape(-1, per, 3)[todo].reshape(-1, 3)
        paths = [keys[i] + suffix + name for i in todo for name in names]
        if self.files is not None:
            paths = [self.files.get_file_path(name) for name in paths]
        sums: list[int | None] = [None] * len(mine)
        if mem == "DRAM":
            sums = [self._stored_sum(p, int(r[1])) for p, r in zip(paths, mine, strict=True)]
        if self.own and mem == "DRAM":
            folders = [self.files.base_of(path) for path in paths]
            payload.move(self.direct, paths, folders, mine, False)
        else:
            self._read(mine, paths, mem)
        ok = self._compare(mine, paths, sums)
        return [all(ok[n * per : (n + 1) * per]) for n in range(len(todo))]

    def _read(self, rows: np.ndarray, names: list[str], mem: str) -> None:
        """Through the backend."""
        first = self.mover.devices(len(rows))
        storage = np.zeros_like(rows)
        storage[:, 1] = rows[:, 1]
        storage[:, 2] = np.arange(first, first + len(rows), dtype=np.uint64)
        tuples = [
            (0, int(r[1]), first + n, name if self.files is None else self._spec("ro", r) + name)
            for n, (r, name) in enumerate(zip(rows, names, strict=True))
        ]
        with self.mover.registered(tuples):
            keep = rows[:, 1] != 0
            if keep.any():
                self.mover.run("READ", rows[keep], storage[keep], mem)

    def _stored_sum(self, path: str, length: int) -> int | None:
        if not self._verifies(length):
            return None
        try:
            size, _, value = os.getxattr(path, XATTR).decode().partition(":")
            return int(value, 16) if int(size) == length else None
        except (OSError, ValueError):
            return None  # written by somebody else: nothing to compare with

    def _compare(self, rows: np.ndarray, paths: list[str], sums: list[int | None]) -> list[bool]:
        ok = [True] * len(rows)
        checked = [n for n, value in enumerate(sums) if value is not None]
        if not checked:
            return ok
        for n, value in zip(
            checked, _hicache.checksums(np.ascontiguousarray(rows[checked]), 1), strict=True
        ):
            # The name may have moved on to a newer file between the two reads: then compare again.
            if value != sums[n] and value != self._stored_sum(paths[n], int(rows[n][1])):
                ok[n] = False
                self.stats.count("corrupt")
                logger.error("get: %s is corrupt (CRC32C differs): a miss", paths[n])
                self.files.remove(paths[n])  # or it would count as stored for ever
                if self.room is not None:
                    self.room.removed(int(rows[n][1]))
        return ok

    def count_prefix(
        self, keys: list[str], suffix: str, names: Sequence[str] = ("",),
        sizes: Sequence[int] | None = None,
    ) -> int:  # fmt: skip
        if self.files is None:
            there = self.present(keys, suffix, names)
            return there.index(False) if False in there else len(there)
        for i, key in enumerate(keys):
            if not self._stored(key + suffix, names, sizes):
                return i
        return len(keys)

    def present(
        self, keys: list[str], suffix: str, names: Sequence[str] = ("",),
        sizes: Sequence[int] | None = None,
    ) -> list[bool]:  # fmt: skip
        """Which keys are stored, of these lengths where they are known: what a get can deliver."""
        if self.files is not None:
            return [self._stored(key + suffix, names, sizes) for key in keys]
        asked = [(0, 0, 0, key + suffix + name) for key in keys for name in names]
        answers = self.mover.agent.query_memory(asked, self.mover.backend, "OBJ") if asked else []
        there = [answer is not None for answer in answers]
        per = len(names)
        return [all(there[i * per : (i + 1) * per]) for i in range(len(keys))]

    def _stored(self, key: str, names: Sequence[str], sizes: Sequence[int] | None) -> bool:
        path, readable = self.files.get_file_path, self.files.readable
        return all(
            readable(path(key + name), sizes[p] if sizes else None) for p, name in enumerate(names)
        )

    def is_unmarked(self, name: str) -> bool:
        """Whether a file of that name is ours, though nothing on it tells so."""
        return _digest(name) in self._unmarked

    def clear(self, suffixes: Sequence[str], parts: Sequence[str]) -> None:
        """Removes what was stored under these suffixes, and nothing else."""
        ends = tails(suffixes, parts, self.files is not None)

        def is_ours(name: str) -> bool:
            return is_page(name, ends) or _digest(name) in self._unmarked

        if self.files is not None:
            unknown = self.files.clear([mark_of(suffix) for suffix in suffixes], is_ours)
        else:
            names = list(self.mover.agent.list_storage(self.mover.backend))
            mine = [name for name in names if is_ours(name)]
            unknown = len(names) - len(mine)
            remove_objects(self.mover, mine)
        self._unmarked.clear()
        if unknown:
            what = "objects" if self.files is None else "files"
            logger.info(
                "clear: %d %s were left, as nothing tells that they are ours", unknown, what
            )

    def close(self) -> None:
        if self.files is not None:
            self.files.close()
        self.direct.bounce.close()


def _rename(sources: list[str], targets: list[str]) -> None:
    for source, target in zip(sources, targets, strict=True):
        os.replace(source, target)


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _is_full(error: Exception) -> bool:
    """Whether a file system had no room; a transfer only says so in words."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    return any(os.strerror(number) in str(error) for number in full)
