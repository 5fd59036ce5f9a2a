"""The packed layout of blocks on storage: many in one segment, with a native index (for one file or
object a key see keyed.py). A block is made of `parts`: rows (address, length, device) of host
memory, `per` of them for each key. Thread-safe."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nixl import _hicache

from .direct import REFUSED, DirectIo, aligned
from .stats import Statistics
from .transfers import DIRECT_BIT, Mover, OpenSegments

logger = logging.getLogger("nixl.hicache")

_REFUSED = (*REFUSED, errno.EFAULT)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class PackedBlocks:
    """Blocks in append-only segments; the index and the books are native (nixl._hicache)."""

    def __init__(
        self,
        store: Any,
        mover: Mover,
        stats: Statistics,
        *,
        verify: bool = True,
        direct: DirectIo | None = None,
        folders: Sequence[str] = (),
        own: bool = False,
    ):
        self.store = store
        self.mover = mover
        self.stats = stats
        self.verify = verify
        self.direct = direct or DirectIo(False, mover.region_of)
        self.folders = folders
        self.own = own  # the store moves the payload itself
        self.owners: Sequence[str] = ("",)  # whose the blocks are: what their suffixes begin with
        #: Asked where a disk is full for so many bytes more; says whether there is more room now.
        self.make_room: Callable[[int], bool] = lambda _: False
        self.segments = OpenSegments(mover, store.segment_path, store.segment_dropped)

    def put(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, *, replace: bool = False,
        names: Sequence[str] = (),
    ) -> list[bool]:  # fmt: skip
        done, full = self._put(keys, suffix, rows, per, replace)
        left = [i for i, ok in enumerate(done) if not ok] if full else []
        if left and self.make_room(int(rows.reshape(-1, per, 3)[left][:, :, 1].sum())):
            mine = rows.reshape(-1, per, 3)[left].reshape(-1, 3)
            again, _ = self._put([keys[i] for i in left], suffix, mine, per, replace)
            for i, ok in zip(left, again, strict=True):
                done[i] = ok
        self.stats.count("set_failures", done.count(False))
        return done

    def _put(
        self, keys: list[str], suffix: str, rows: np.ndarray, per: int, replace: bool
    ) -> tuple[list[bool], bool]:
        """What was stored, and whether a disk had no room for the rest."""
        lengths = rows[:, 1].reshape(-1, per).sum(axis=1, dtype=np.uint64)
        owner = max((o for o in self.owners if suffix.startswith(o)), key=len, default="")
        batch, reason = self.store.reserve(keys, suffix, lengths, replace, owner)
        if reason:
            logger.error("set: %s", reason)
        why = reason
        try:
            why += self._write(batch, rows, per)
        except Exception as error:
            why += str(error)
            logger.warning("set of %d blocks: %s; trying them one by one", len(keys), error)
            self.store.reclaim_dead()  # the disk may be full
            self._write_singly(batch, rows, per)
        reason = self.store.commit(batch)
        if reason:
            logger.error("set: %s", reason)
        done = [state == _hicache.STORED for state in batch.states()]
        return done, any(os.strerror(number) in why + reason for number in _FULL)

    def _sides(self, batch: Any, state: int, rows: np.ndarray, per: int) -> tuple[Any, Any]:
        host, storage = self.store.describe(batch, state, rows, per)
        if len(host) and self._direct(host):
            storage[:, 2] |= np.uint64(DIRECT_BIT)
        return host, storage

    def _direct(self, rows: np.ndarray) -> bool:
        direct = self.direct
        return (
            direct.wanted
            and aligned(rows)
            and all(direct.takes(folder) for folder in self.folders)
            and all(direct.pins(int(row[0]), int(row[1])) for row in rows)
        )

    def _move(
        self, call: str, batch: Any, state: int, rows: np.ndarray, per: int, verify: bool
    ) -> str:
        """By the store's own calls; logs and gives the first reason why something failed."""
        reason = self._try_move(batch, state, rows, per, verify)
        if reason:
            failed = batch.states().count(_hicache.FAILED)
            logger.error("%s: %d of %d blocks failed: %s", call, failed, len(batch), reason)
        return reason

    def _try_move(self, batch: Any, state: int, rows: np.ndarray, per: int, verify: bool) -> str:
        """Through the page cache where O_DIRECT is refused; the first reason why something
        failed."""
        direct = self._direct(rows)
        reason = self.store.move(batch, state, rows, per, verify, direct)
        if not direct or not any(os.strerror(number) in reason for number in _REFUSED):
            return reason
        failed = [i for i, s in enumerate(batch.states()) if s == _hicache.FAILED]
        for i in failed:
            batch.set_state(i, state)
        again = self.store.move(batch, state, rows, per, verify, False)
        if os.strerror(errno.EFAULT) not in reason:
            named = [folder for folder in self.folders if f" {folder}/" in reason]
            for folder in named or self.folders:
                self.direct.refuse(folder, reason.rpartition(": ")[2])
        elif not again:
            for i in failed:
                for row in rows[i * per : (i + 1) * per]:
                    self.direct.unpin(self.direct.region_of(int(row[0]), int(row[1])))
        return again

    def _write(self, batch: Any, rows: np.ndarray, per: int) -> str:
        """The first reason why something failed; a transfer that fails raises."""
        if self.own:
            return self._move("set", batch, _hicache.NEW, rows, per, True)
        host, storage = self._sides(batch, _hicache.NEW, rows, per)
        if not len(host):
            self.store.checksum(batch, rows, per)
            return ""
        with self.segments.use(np.unique(storage[:, 2]).tolist()):
            started = self.mover.start("WRITE", host, storage)
            try:
                self.store.checksum(batch, rows, per)  # while the bytes travel
            finally:
                self.mover.finish("WRITE", started)
        return ""

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
            for at, i in enumerate(todo):
                found[i] = after[at] == _hicache.HIT
                if before[at] == _hicache.HIT and after[at] == _hicache.MISS:
                    again.append(i)
            todo = again
            if not todo:
                break
        self.stats.count("hits", found.count(True))
        self.stats.count("misses", found.count(False))
        return found

    def _read(self, batch: Any, rows: np.ndarray, per: int) -> None:
        if self.own:
            self._move("get", batch, _hicache.HIT, rows, per, self.verify)
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

    def count_prefix(
        self, keys: list[str], suffix: str, names: Sequence[str] = (), sizes: Any = None
    ) -> int:
        return self.store.contains_prefix(keys, suffix)

    def present(
        self, keys: list[str], suffix: str, names: Sequence[str] = (), sizes: Any = None
    ) -> list[bool]:
        return [state == _hicache.HIT for state in self.store.find(keys, suffix).states()]

    def clear(self) -> None:
        """Removes what the owners stored, whoever wrote it; the blocks of others stay."""
        self.store.clear(list(self.owners))
        self.segments.sweep()

    def trim(self, size: int, directory: int) -> int:
        """Evicts the oldest blocks of this process until so many bytes of all are left; gives what
        went."""
        gone = self.store.trim(size, directory)
        self.segments.sweep()
        return gone

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
