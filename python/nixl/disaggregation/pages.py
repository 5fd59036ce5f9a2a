"""Numbers of pages as callers give them, and counts of what arrived."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt


def as_pages(indices: Any, what: str = "kv_indices") -> npt.NDArray[np.int32]:
    """As int32, the same array where it is one; TypeError for anything but whole numbers,
    ValueError for more dimensions or numbers beyond 32 bits."""
    array = indices if isinstance(indices, np.ndarray) else np.asarray(indices)
    if array.ndim != 1:
        raise ValueError(f"{what}: an array of {array.ndim} dimensions, not one")
    if array.dtype == np.int32:
        return array
    if array.size == 0:
        return np.empty(0, dtype=np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{what}: {array.dtype} are not numbers of pages")
    if int(array.max()) >= 1 << 31 or int(array.min()) < -(1 << 31):
        raise ValueError(f"{what}: {array.max()} is no number of a page")
    return array.astype(np.int32)


def check_range(indices: npt.NDArray[np.int32], pages: int, what: str) -> None:
    """ValueError where one is outside 0 ... pages-1; names it and its place."""
    if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= pages):
        at = int(np.flatnonzero((indices < 0) | (indices >= pages))[0])
        raise ValueError(f"{what}: page {indices[at]} at {at} is not one of {pages} pages")


@dataclasses.dataclass
class TransferStatus:
    """What arrived of a room at a decode rank.

    Each source (a prefill rank) counts its chunks from 0 and marks its last one.
    """

    received_kvs: set[Any] = dataclasses.field(default_factory=set)  # chunks, of all sources
    num_kvs_expected: int | None = None  # None until every source has told its last
    received_aux: bool = False
    sources_expected: int = 1
    lasts: dict[str, int] = dataclasses.field(default_factory=dict)  # source -> chunks of it

    def is_done(self) -> bool:
        return (
            self.num_kvs_expected is not None
            and self.received_aux
            and len(self.received_kvs) == self.num_kvs_expected
        )

    def add(self, source: str, chunk: int, is_last: bool) -> None:
        self.received_kvs.add((source, chunk))
        if is_last:
            self.finish(source, chunk + 1)

    def finish(self, source: str, chunks: int) -> None:
        """A source has said how many chunks it sends in all."""
        self.lasts[source] = chunks
        if len(self.lasts) >= self.sources_expected:
            self.num_kvs_expected = sum(self.lasts.values())
