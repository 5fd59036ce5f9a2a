"""Payload of the layout `files` between memory and files by calls of our own: directly where folder
and memory allow it, through the page cache or a bounce buffer where they do not. Thread-safe."""

from __future__ import annotations

import contextlib
import errno
import os

import numpy as np

from nixl import _hicache

from .direct import ALIGNMENT, REFUSED, DirectIo

DIRECT, BUFFERED, BOUNCED = "direct", "buffered", "bounced"


def move(
    direct: DirectIo, paths: list[str], folders: list[str], rows: np.ndarray, write: bool
) -> None:
    """Each row into a file that is made, or from one. `folders` are the storage directories of the
    paths. OSError of the first that failed."""
    if not direct.wanted:
        _hicache.move_files(paths, rows, write, False)
        return
    one = _Move(direct, paths, folders, rows, write)
    paths_taken: dict[str, list[int]] = {}
    for i in range(len(rows)):
        paths_taken.setdefault(one.path_of(i), []).append(i)
    for path, members in paths_taken.items():
        one.go(path, members)


class _Move:
    """One call of move()."""

    def __init__(
        self, direct: DirectIo, paths: list[str], folders: list[str], rows: np.ndarray, write: bool
    ):
        self.direct = direct
        self.paths = paths
        self.folders = folders
        self.rows = rows
        self.write = write

    def path_of(self, i: int) -> str:
        address, length = int(self.rows[i][0]), int(self.rows[i][1])
        if not length or (address | length) % ALIGNMENT or not self.direct.takes(self.folders[i]):
            return BUFFERED
        return DIRECT if self.direct.pins(address, length) else BOUNCED

    def go(self, path: str, members: list[int]) -> None:
        try:
            self._attempt(path, members)
        except OSError as error:
            if path == BUFFERED or error.errno not in (*REFUSED, errno.EFAULT):
                raise
            self._again(path, members, error)

    def _again(self, path: str, members: list[int], error: OSError) -> None:
        """After a refusal: every folder and region by itself, and what refused another path."""
        if self.write:
            for i in members:
                with contextlib.suppress(OSError):
                    os.unlink(self.paths[i])
        groups: dict[tuple[str, tuple[int, int]], list[int]] = {}
        for i in members:
            region = self.direct.region_of(int(self.rows[i][0]), int(self.rows[i][1]))
            groups.setdefault((self.folders[i], region), []).append(i)
        if len(groups) > 1:
            for some in groups.values():
                self.go(path, some)
            return
        ((folder, region),) = groups
        if error.errno != errno.EFAULT:
            self.direct.refuse(folder, os.strerror(error.errno or errno.EIO))
            self.go(BUFFERED, members)
        elif path == BOUNCED:
            raise error  # there is no such memory
        else:
            self.go(BOUNCED, members)
            self.direct.unpin(region)

    def _attempt(self, path: str, members: list[int]) -> None:
        paths = [self.paths[i] for i in members]
        rows = self.rows[members]
        if path != BOUNCED:
            _hicache.move_files(paths, rows, self.write, path == DIRECT)
            return
        self.direct.bounce.run(
            rows,
            self.write,
            lambda some, mine: _hicache.move_files(
                [paths[i] for i in some], mine, self.write, True
            ),
        )
