"""The two layouts of blocks on storage behind one interface: `PackedBlocks` (many in one segment,
native index) and `KeyedBlocks` (one file or object a key and part). A block is made of `parts`:
rows (address, length, device) of host memory, `per` of them for each key. Thread-safe."""

from __future__ import annotations

import errno
import logging
import os
import resource
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from nixl import _hicache

from .keys import TEMPORARY
from .stats import Statistics
from .transfers import DIRECT_BIT, Mover, OpenSegments

logger = logging.getLogger("nixl.hicache")

XATTR = "user.nixl.crc32c"
VERIFY_FILES_BELOW = 1 << 20
ALIGNMENT = 4096


def aligned(rows: np.ndarray) -> bool:
    """Whether O_DIRECT can move these rows as they are."""
    return not bool(((rows[:, 0] | rows[:, 1]) & np.uint64(ALIGNMENT - 1)).any())


class PackedBlocks:
    """Blocks in append-only segments; the index and the books are native (nixl._hicache)."""

    def __init__(
        self,
        store: Any,
        mover: Mover,
        stats: Statistics,
        *,
        verify: bool = True,
        direct: bool = False,
        own: bool = False,
    ):
        self.store = store
        self.mover = mover
        self.stats = stats
        self.verify = verify
        self.direct = direct
        self.own = own  # the store moves the payload itself
        self.segments = OpenSegments(mover, store.segment_path, store.segment_dropped)

    def put(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, *, replace: bool = False,
        names: Sequence[str] = (),
    ) -> list[bool]:  # fmt: skip
        lengths = rows[:, 1].reshape(-1, per).sum(axis=1, dtype=np.uint64)
        batch, reason = self.store.reserve(keys, suffix, lengths, replace)
        if reason:
            logger.error("set: %s", reason)
        try:
            self._write(batch, rows, per)
        except Exception as error:
            logger.warning("set of %d blocks: %s; trying them one by one", len(keys), error)
            self._write_singly(batch, rows, per)
        reason = self.store.commit(batch)
        if reason:
            logger.error("set: %s", reason)
        done = [state == _hicache.STORED for state in batch.states()]
        self.stats.count("set_failures", done.count(False))
        return done

    def _sides(self, batch: Any, state: int, rows: np.ndarray, per: int) -> tuple[Any, Any]:
        host, storage = self.store.describe(batch, state, rows, per)
        if self.direct and len(host) and aligned(host):
            storage[:, 2] |= np.uint64(DIRECT_BIT)
        return host, storage

    def _direct(self, rows: np.ndarray) -> bool:
        return self.direct and aligned(rows)

    def _write(self, batch: Any, rows: np.ndarray, per: int) -> None:
        if self.own:
            reason = self.store.move(batch, _hicache.NEW, rows, per, True, self._direct(rows))
            if reason:
                failed = batch.states().count(_hicache.FAILED)
                logger.error("set: %d of %d blocks failed: %s", failed, len(batch), reason)
            return
        host, storage = self._sides(batch, _hicache.NEW, rows, per)
        if not len(host):
            self.store.checksum(batch, rows, per)
            return
        with self.segments.use(np.unique(storage[:, 2]).tolist()):
            started = self.mover.start("WRITE", host, storage)
            try:
                self.store.checksum(batch, rows, per)  # while the bytes travel
            finally:
                self.mover.finish("WRITE", started)

    def _write_singly(self, batch: Any, rows: np.ndarray, per: int) -> None:
        """After a failure: every block by itself, so that only the guilty ones fail."""
        self.store.checksum(batch, rows, per)
        self._singly(batch, _hicache.NEW, "WRITE", rows, per)

    def _singly(self, batch: Any, state: int, op: str, rows: np.ndarray, per: int) -> None:
        members = [i for i, s in enumerate(batch.states()) if s == state]
        failed: dict[int, Exception] = {}
        for i in members:
            for j in members:
                batch.set_state(j, state if j == i else _hicache.MISS)
            try:
                host, storage = self._sides(batch, state, rows, per)
                if len(host):
                    with self.segments.use(np.unique(storage[:, 2]).tolist()):
                        self.mover.run(op, host, storage)
            except Exception as error:
                failed[i] = error
        for i in members:
            batch.set_state(i, _hicache.FAILED if i in failed else state)
        if failed:
            first = next(iter(failed))
            logger.error("%d of %d blocks failed; block %d: %s", len(failed), len(members), first,
                         failed[first])  # fmt: skip

    def get(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, names: Sequence[str] = ()
    ) -> list[bool]:
        found = [False] * len(keys)
        todo = list(range(len(keys)))
        for _ in range(3):  # a block that moved while it was read is looked up again
            some = todo if len(todo) != len(keys) else None
            part = keys if some is None else [keys[i] for i in some]
            mine = rows if some is None else rows.reshape(-1, per, 3)[some].reshape(-1, 3)
            batch = self.store.find(part, suffix)
            before = batch.states()
            self._read(batch, mine, per)
            after = batch.states()
            again = []
            for slot, i in enumerate(todo):
                found[i] = after[slot] == _hicache.HIT
                if before[slot] == _hicache.HIT and after[slot] == _hicache.MISS:
                    again.append(i)
            todo = again
            if not todo:
                break
        self.stats.count("hits", found.count(True))
        self.stats.count("misses", found.count(False))
        return found

    def _read(self, batch: Any, rows: np.ndarray, per: int) -> None:
        if self.own:
            reason = self.store.move(
                batch, _hicache.HIT, rows, per, self.verify, self._direct(rows)
            )
            if reason:
                failed = batch.states().count(_hicache.FAILED)
                logger.error("get: %d of %d blocks failed: %s", failed, len(batch), reason)
            self._report_sizes(batch)
        else:
            self._read_through_backend(batch, rows, per)
        # Said last: whatever was overwritten or evicted while it was read is a miss.
        corrupt = batch.states().count(_hicache.CORRUPT)
        if corrupt:
            self._sort_out(batch, corrupt)
        self.store.confirm(batch)

    def _read_through_backend(self, batch: Any, rows: np.ndarray, per: int) -> None:
        host, storage = self._sides(batch, _hicache.HIT, rows, per)
        self._report_sizes(batch)
        try:
            if len(host):
                with self.segments.use(np.unique(storage[:, 2]).tolist()):
                    self.mover.run("READ", host, storage)
        except Exception as error:
            logger.warning("get of %d blocks: %s; trying them one by one", len(batch), error)
            self._singly(batch, _hicache.HIT, "READ", rows, per)
        if self.verify:
            self.store.checksum(batch, rows, per)

    def _sort_out(self, batch: Any, corrupt: int) -> None:
        """A block that differs is corrupt only if it still has its place; else it just moved."""
        bad = [i for i, state in enumerate(batch.states()) if state == _hicache.CORRUPT]
        for i in bad:
            batch.set_state(i, _hicache.HIT)
        self.store.confirm(batch)
        states = batch.states()
        stay = [i for i in bad if states[i] == _hicache.HIT]
        for i in stay:
            batch.set_state(i, _hicache.CORRUPT)
        if stay:
            self.stats.count("corrupt", len(stay))
            logger.error(
                "get: %d of %d blocks are corrupt (CRC32C differs); they are misses now", len(stay),
                len(batch),
            )  # fmt: skip
            self.store.forget_corrupt(batch)

    def _report_sizes(self, batch: Any) -> None:
        wrong = batch.states().count(_hicache.SIZE)
        if wrong:
            i = batch.states().index(_hicache.SIZE)
            logger.warning(
                "get: %d blocks have another length than asked for (block %d: %d bytes); "
                "they count as misses", wrong, i, batch.lengths()[i],
            )  # fmt: skip

    def count_prefix(self, keys: list[str], suffix: str, names: Sequence[str] = ()) -> int:
        return self.store.contains_prefix(keys, suffix)

    def present(self, keys: list[str], suffix: str, names: Sequence[str] = ()) -> list[bool]:
        return [state == _hicache.HIT for state in self.store.find(keys, suffix).states()]

    def clear(self) -> None:
        self.store.clear()
        self.segments.sweep()

    def maintain(self, dead_fraction: float) -> bool:
        more = self.store.maintain(dead_fraction)
        self.segments.sweep()
        return more

    def close(self) -> None:
        self.segments.close()
        self.store = _ClosedStore()  # the logs' locks go with the last batch


class _ClosedStore:
    def stats(self) -> dict[str, int]:
        return {}

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("the connector is closed")


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
        direct: bool = False,
        durable: bool = False,
        own: bool = False,
    ):
        self.files = files  # a NixlFileManager, or None for objects
        self.mover = mover
        self.stats = stats
        self.verify = verify
        self.direct = direct
        self.durable = durable
        self.own = own  # host memory goes to files by calls of the store, not by transfers
        self._told_xattr = False

    def _verifies(self, length: int) -> bool:
        if self.files is None or self.verify == "false":
            return False
        return self.verify == "true" or length < VERIFY_FILES_BELOW

    def _spec(self, rights: str, row: np.ndarray) -> str:
        fits = self.direct and (int(row[0]) | int(row[1])) % ALIGNMENT == 0
        return f"{rights},direct:" if fits else f"{rights}:"

    def _chunks(self, count: int, per: int) -> list[range]:
        step = max(1, _descriptor_budget() // per)
        return [range(i, min(i + step, count)) for i in range(0, count, step)]

    def put(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, *, replace: bool = False,
        names: Sequence[str] = ("",), mem: str = "DRAM",
    ) -> list[bool]:  # fmt: skip
        done = [False] * len(keys)
        for chunk in self._chunks(len(keys), per):
            todo = [
                i for i in chunk if replace or not self._all_there(keys[i] + suffix, names, rows, i)
            ]
            for i in chunk:
                done[i] = i not in todo if len(todo) < len(chunk) else False
            for i, ok in zip(
                todo, self._put_some(keys, suffix, rows, per, names, mem, todo), strict=True
            ):
                done[i] = ok
        self.stats.count("set_failures", done.count(False))
        return done

    def _all_there(self, key: str, names: Sequence[str], rows: np.ndarray, i: int) -> bool:
        if self.files is None:
            return False  # asking costs as much as writing
        try:
            return all(
                os.stat(self.files.get_file_path(key + name)).st_size
                == int(rows[i * len(names) + p][1])
                for p, name in enumerate(names)
            )
        except OSError:
            return False

    def _put_some(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, names: Sequence[str],
        mem: str, todo: list[int],
    ) -> list[bool]:  # fmt: skip
        if not todo:
            return []
        try:
            self._put_once(keys, suffix, rows, per, names, mem, todo)
            return [True] * len(todo)
        except Exception as error:
            if len(todo) == 1:
                logger.error("set of %r: %s", keys[todo[0]], error)
                return [False]
            logger.warning("set of %d keys: %s; trying them one by one", len(todo), error)
        return [self._put_some(keys, suffix, rows, per, names, mem, [i])[0] for i in todo]

    def _put_once(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, names: Sequence[str],
        mem: str, todo: list[int],
    ) -> None:  # fmt: skip
        mine = rows.reshape(-1, per, 3)[todo].reshape(-1, 3)
        targets = [keys[i] + suffix + name for i in todo for name in names]
        first = self.mover.devices(len(mine))
        storage = np.zeros_like(mine)
        storage[:, 1] = mine[:, 1]
        storage[:, 2] = np.arange(first, first + len(mine), dtype=np.uint64)
        if self.files is None:
            with self.mover.registered(
                [(0, int(r[1]), first + n, targets[n]) for n, r in enumerate(mine)]
            ):
                self.mover.run("WRITE", mine, storage, mem)
            return
        paths = [self.files.get_file_path(name) for name in targets]
        temporary = [
            os.path.join(os.path.dirname(p), f"{TEMPORARY}{uuid.uuid4().hex}") for p in paths
        ]
        try:
            for path in paths:
                self.files.make_parent(path)
            if self.own and mem == "DRAM":
                direct = self.direct and aligned(mine)
                _hicache.move_files(temporary, mine, True, direct)
            else:
                tuples = [
                    (0, int(r[1]), first + n, self._spec("rw,create", r) + temporary[n])
                    for n, r in enumerate(mine)
                ]
                with self.mover.registered(tuples):
                    keep = mine[:, 1] != 0
                    if keep.any():
                        self.mover.run("WRITE", mine[keep], storage[keep], mem)
            self._seal(mine if mem == "DRAM" else None, temporary)
            for source, target in zip(temporary, paths, strict=True):
                os.replace(source, target)
        except BaseException:
            for path in temporary:
                self.files.remove(path)
            raise

    def _seal(self, rows: np.ndarray | None, paths: list[str]) -> None:
        """Checksums (where they are checked) and, if wanted, the disk, before the name counts."""
        checked = []
        if rows is not None:  # memory of a GPU cannot be read here
            checked = [n for n, r in enumerate(rows) if self._verifies(int(r[1]))]
        if checked:
            sums = _hicache.checksums(np.ascontiguousarray(rows[checked]), 1)
            for n, value in zip(checked, sums, strict=True):
                self._set_sum(paths[n], int(rows[n][1]), value)
        if self.durable:
            for path in paths:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def _set_sum(self, path: str, length: int, value: int) -> None:
        try:
            os.setxattr(path, XATTR, f"{length}:{value:08x}".encode())
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.ENOSPC, errno.EACCES):
                raise
            if not self._told_xattr:
                self._told_xattr = True
                logger.info("%s: no extended attributes (%s): files are not verified", path, error)

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
            try:
                there = os.stat(self.files.get_file_path(key + name)).st_size
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    logger.error("get of %r: %s", key + name, error)
                return False
            if there != wanted:
                logger.warning(
                    "get of %r: %d bytes are stored, %d were asked for: a miss", key + name, there,
                    wanted,
                )  # fmt: skip
                return False
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
        targets = [keys[i] + suffix + name for i in todo for name in names]
        first = self.mover.devices(len(mine))
        storage = np.zeros_like(mine)
        storage[:, 1] = mine[:, 1]
        storage[:, 2] = np.arange(first, first + len(mine), dtype=np.uint64)
        paths = targets
        if self.files is None:
            tuples = [(0, int(r[1]), first + n, targets[n]) for n, r in enumerate(mine)]
        else:
            paths = [self.files.get_file_path(name) for name in targets]
            tuples = [
                (0, int(r[1]), first + n, self._spec("ro", r) + paths[n])
                for n, r in enumerate(mine)
            ]
        sums: list[int | None] = [None] * len(mine)
        if mem == "DRAM":
            sums = [self._stored_sum(p, int(r[1])) for p, r in zip(paths, mine, strict=True)]
        if self.own and mem == "DRAM":
            _hicache.move_files(paths, mine, False, self.direct and aligned(mine))
        else:
            with self.mover.registered(tuples):
                keep = mine[:, 1] != 0
                if keep.any():
                    self.mover.run("READ", mine[keep], storage[keep], mem)
        ok = self._compare(mine, paths, sums)
        return [all(ok[n * per : (n + 1) * per]) for n in range(len(todo))]

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
        return ok

    def count_prefix(self, keys: list[str], suffix: str, names: Sequence[str] = ("",)) -> int:
        if self.files is None:
            there = self.present(keys, suffix, names)
            return there.index(False) if False in there else len(there)
        for i, key in enumerate(keys):
            if not all(os.path.exists(self.files.get_file_path(key + suffix + n)) for n in names):
                return i
        return len(keys)

    def present(self, keys: list[str], suffix: str, names: Sequence[str] = ("",)) -> list[bool]:
        if self.files is not None:
            path = self.files.get_file_path
            return [all(os.path.exists(path(k + suffix + n)) for n in names) for k in keys]
        asked = [(0, 0, 0, key + suffix + name) for key in keys for name in names]
        answers = self.mover.agent.query_memory(asked, self.mover.backend, "OBJ") if asked else []
        there = [answer is not None for answer in answers]
        per = len(names)
        return [all(there[i * per : (i + 1) * per]) for i in range(len(keys))]

    def clear(self) -> None:
        if self.files is not None:
            self.files.clear()
            return
        removed = getattr(self.mover.agent, "remove_storage", None)
        if removed is None:
            logger.warning("clear: this build cannot remove objects; nothing was removed")

    def close(self) -> None:
        pass
