"""What callers may pass for keys, values, locations and sizes, as columns of one length."""

from __future__ import annotations

from typing import Any

import numpy as np

from .values import is_tensor


def first(sizes: Any) -> Any:
    return sizes[0] if isinstance(sizes, (list, tuple)) else sizes


def check_keys(keys: list[str]) -> None:
    for key in keys:
        if not isinstance(key, str):
            raise TypeError(f"key {key!r}: expected str, got {type(key).__name__}")


def columns(keys: list[str], given: Any, locations: Any, sizes: Any) -> list[tuple[Any, Any, Any]]:
    """One (value, location, size) for each key; lists of another length are refused."""
    made = []
    for label, column in (("values", given), ("locations", locations), ("sizes", sizes)):
        if column is None:
            made.append([None] * len(keys))
            continue
        if isinstance(column, (int, np.integer)) and label == "sizes":
            column = [column] * len(keys)
        column = [column] if is_tensor(column) and len(keys) == 1 else list(column)
        if len(column) != len(keys):
            raise ValueError(f"{len(keys)} keys with {len(column)} {label}")
        made.append(column)
    return list(zip(*made, strict=True))
