"""The packed layout over an object store: a batch is one object, blocks are read from it by range.
The index and its logs lie in the storage directory. Thread-safe."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from typing import Any

import numpy as np

from nixl import _hicache

from .blocks import PackedBlocks
from .transfers import Mover

logger = logging.getLogger("nixl.hicache")


def remove_objects(mover: Mover, names: list[str]) -> list[str]:
    """Removes objects from the bucket; gives the names of those that are still there."""
    from nixl.errors import nixlNotFoundError

    if not names:
        return []
    try:
        errors = mover.agent.remove_storage(mover.backend, names)
    except Exception as error:
        logger.warning("%d objects were not removed: %s", len(names), error)
        return names
    left = [name for name, error in errors.items() if not isinstance(error, nixlNotFoundError)]
    if left:
        reason = errors[left[0]]
        logger.warning("%d of %d objects were not removed: %s", len(left), len(names), reason)
    return left


class PackedObjects(PackedBlocks):
    """PackedBlocks whose segments are objects, each written whole by one set."""

    def object_key(self, device: int) -> str:
        """The object behind a segment: unlike its path, the same wherever the logs lie."""
        return "nixl-hicache/" + os.path.basename(self.store.segment_path(device))

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.segments._path_of = self.object_key
        self._lock = threading.Lock()
        self._to_remove: set[str] = set()  # dropped by the store, not yet gone from the bucket

    def _write(self, batch: Any, rows: np.ndarray, per: int) -> str:
        self.store.checksum(batch, rows, per)
        host, storage = self.store.describe(batch, _hicache.NEW, rows, per)
        for device in np.unique(storage[:, 2]).tolist():
            chosen = storage[:, 2] == device
            self._write_object(device, host[chosen], storage[chosen])
        return ""

    def _write_object(self, device: int, host: np.ndarray, storage: np.ndarray) -> None:
        """An object cannot be written in pieces: gather it, gaps of the alignment included."""
        size = int((storage[:, 0] + storage[:, 1]).max())
        image = np.zeros(size, dtype=np.uint8)
        base = image.ctypes.data
        for (address, length, _), (offset, _, _) in zip(
            host.tolist(), storage.tolist(), strict=True
        ):
            ctypes.memmove(base + offset, address, length)
        whole = np.array([[base, size, 0]], dtype=np.uint64)
        target = np.array([[0, size, device]], dtype=np.uint64)
        key = self.object_key(device)
        with self.mover.host(whole), self.mover.registered([(0, size, device, key)]):
            self.mover.run("WRITE", whole, target)

    def _write_singly(self, batch: Any, rows: np.ndarray, per: int) -> None:
        for i, state in enumerate(batch.states()):
            if state == _hicache.NEW:
                batch.set_state(i, _hicache.FAILED)  # one object: all of it or nothing

    def put(self, *args: Any, **kwargs: Any) -> list[bool]:
        done = super().put(*args, **kwargs)
        self.remove_dropped()  # what this replaced
        return done

    def maintain(self, dead_fraction: float) -> bool:
        more = super().maintain(dead_fraction)
        self.remove_dropped()
        return more

    def remove_dropped(self) -> None:
        """Removes objects without a live block; what cannot be removed now is tried again."""
        with self._lock:
            for path in self.store.take_dropped_segments():
                self._to_remove.add("nixl-hicache/" + os.path.basename(path))
            keys, self._to_remove = self._to_remove, set()
            self._to_remove = set(remove_objects(self.mover, sorted(keys)))

    def clear(self) -> None:
        super().clear()
        self.remove_dropped()
