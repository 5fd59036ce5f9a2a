"""The packed store of HiCache (internal; use nixl.hicache).

Made by tools/make_stub.py from the module and its stub.pat.
"""

# ruff: noqa: C408, I001

from collections.abc import Sequence
from typing import Annotated

import numpy
from numpy.typing import NDArray

MISS: int = 0
HIT: int = 1
NEW: int = 2
STORED: int = 3
REFUSED: int = 4
CORRUPT: int = 5
FAILED: int = 6
SIZE: int = 7

def checksums(
    rows: Annotated[
        NDArray[numpy.uint64], dict(shape=(None, 3), order="C", device="cpu", writable=False)
    ],
    per_block: int,
) -> list[int]: ...
def move_files(
    paths: Sequence[str],
    rows: Annotated[
        NDArray[numpy.uint64], dict(shape=(None, 3), order="C", device="cpu", writable=False)
    ],
    write: bool,
    direct: bool,
) -> None: ...

class Batch:
    def states(self) -> bytes: ...
    def lengths(self) -> list[int]: ...
    def set_state(self, index: int, state: int) -> None: ...
    def __len__(self) -> int: ...

class Store:
    def __init__(
        self,
        directories: Sequence[str],
        segment_bytes: int = 268435456,
        max_bytes: int = 0,
        durable: bool = False,
        read_only: bool = False,
        segment_per_batch: bool = False,
        external_segments: bool = False,
        file_mode: int = 384,
    ) -> None: ...
    def find(self, keys: list, suffix: str = "") -> Batch: ...
    def contains_prefix(self, keys: list, suffix: str = "") -> int: ...
    def reserve(
        self,
        keys: list,
        suffix: str,
        lengths: Annotated[
            NDArray[numpy.uint64], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        replace: bool,
        owner: str = "",
    ) -> tuple[Batch, str]: ...
    def commit(self, batch: Batch) -> str: ...
    def describe(
        self,
        batch: Batch,
        state: int,
        parts: Annotated[
            NDArray[numpy.uint64], dict(shape=(None, 3), order="C", device="cpu", writable=False)
        ],
        per_item: int,
    ) -> tuple[object, object]: ...
    def move(
        self,
        batch: Batch,
        state: int,
        parts: Annotated[
            NDArray[numpy.uint64], dict(shape=(None, 3), order="C", device="cpu", writable=False)
        ],
        per_item: int,
        verify: bool,
        direct: bool,
    ) -> str: ...
    def checksum(
        self,
        batch: Batch,
        parts: Annotated[
            NDArray[numpy.uint64], dict(shape=(None, 3), order="C", device="cpu", writable=False)
        ],
        per_item: int,
    ) -> None: ...
    def confirm(self, batch: Batch) -> None: ...
    def forget_corrupt(self, batch: Batch) -> None: ...
    def erase(self, keys: Sequence[str]) -> None: ...
    def clear(self, owners: Sequence[str] | None = None) -> None: ...
    def reclaim_dead(self) -> int: ...
    def trim(self, bytes: int, directory: int | None = None) -> int: ...
    def live_bytes(self, directory: int) -> int: ...
    def maintain(self, dead_fraction: float = 0.5) -> bool: ...
    def segment_path(self, device: int) -> str: ...
    def segment_dropped(self, device: int) -> bool: ...
    def take_dropped_segments(self) -> list[str]: ...
    def stats(self) -> dict: ...
    def check(self, directory: int, start: int, max_bytes: int) -> tuple: ...
    @property
    def directories(self) -> int: ...
