"""Vectors whose sums can be checked: whole numbers, which float32 adds without rounding."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .errors import Refused

_MOST = 10_000  # times 1,000 ranks stays below 2**24


def check_sizes(sizes: Iterable[int], parts: int = 1) -> None:
    """Refuses what is no whole number of float32, or has none of them for each part."""
    for size in sizes:
        if size % 4:
            raise Refused(f"--buffer_sizes {size}: a vector of float32 is a multiple of 4 bytes")
        if size < 4 * parts:
            raise Refused(f"--buffer_sizes {size}: no float32 for each of {parts} ranks")


def vector(rank: int, version: int, count: int) -> np.ndarray:
    """What a rank adds; another version has other numbers."""
    random = np.random.default_rng((rank, version))
    return random.integers(0, _MOST, count, dtype=np.int32).astype(np.float32)


def total(ranks: int, version: int, count: int) -> np.ndarray:
    """The sum over all ranks, made without any transfer."""
    sums = np.zeros(count, dtype=np.int64)
    for rank in range(ranks):
        sums += vector(rank, version, count).astype(np.int64)
    return sums.astype(np.float32)
