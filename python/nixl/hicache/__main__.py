"""python -m nixl.hicache stat|verify|compact|clear DIR…: looks at, checks and tidies what HiCache
stored in directories, both layouts."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence

from nixl import _hicache

from .files import XATTR, mark_on
from .keys import OURS, TEMPORARY, WORKSHOP, page_of
from .workshop import LOCK, collect, collect_beside

CHECK_BYTES = 64 << 20


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, tuple("-" * w for w in widths), *rows]:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


class Progress:
    """A bar on standard error where that is a terminal."""

    def __init__(self, what: str, total: int):
        self.what = what
        self.total = max(1, total)
        self.live = sys.stderr.isatty()

    def at(self, done: int) -> None:
        if self.live:
            part = min(1.0, done / self.total)
            bar = "#" * int(part * 40)
            print(f"\r{self.what} [{bar:<40}] {part:4.0%}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.live:
            print("\r" + " " * 70 + "\r", end="", file=sys.stderr, flush=True)


def has_packed(path: str) -> bool:
    return os.path.isdir(os.path.join(path, ".nixl-packed"))


class Damaged(RuntimeError):
    """The packed layout of a directory cannot be opened."""


def open_packed(path: str, read_only: bool = False) -> _hicache.Store:
    try:
        return _hicache.Store([path], read_only=read_only)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        raise Damaged(
            f"the packed blocks cannot be opened: {error}\n"
            f"  If {path}/.nixl-packed/format is damaged or empty, put a copy of it back where you "
            "have one: without it nothing there can be found.\n"
            f"  Else give the room back, blocks are made anew: python -m nixl.hicache clear {path}"
        ) from error


def files(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """The files of the `files` layout: (path, stat)."""
    for root, folders, names in os.walk(path):
        folders[:] = sorted(folder for folder in folders if not folder.startswith(OURS))
        for name in sorted(names):
            if not name.startswith(OURS):
                whole = os.path.join(root, name)
                with contextlib.suppress(OSError):
                    info = os.lstat(whole)
                    if os.path.isfile(whole) and not os.path.islink(whole):
                        yield whole, info


def unfinished(path: str) -> tuple[int, int]:
    """Files that are, or were, being written: (count, bytes on the disk)."""
    count = size = 0
    for root, _, names in os.walk(path):
        inside = os.path.basename(os.path.dirname(root)) == WORKSHOP
        for name in names:
            if name.startswith(TEMPORARY) or (inside and name != LOCK):
                with contextlib.suppress(OSError):
                    size += os.lstat(os.path.join(root, name)).st_blocks * 512
                    count += 1
    return count, size


def owner(path: str) -> str | None:
    """Whose a file is, for people: a model, or single keys; None where nothing tells that HiCache
    made it."""
    page = page_of(os.path.basename(path))
    if page is not None:
        return f"pages of {page.partition('_')[2] or 'a model without a name'}"
    return None if mark_on(path) is None else "single keys"


def stat(path: str) -> int:
    rows = []
    count = total = taken = 0
    for _, info in files(path):
        count += 1
        total += info.st_size
        taken += info.st_blocks * 512
    left, left_bytes = unfinished(path)
    rows += [
        ("files: keys", str(count)),
        ("files: bytes", size(total)),
        ("files: bytes on the disk", size(taken)),
        ("unfinished files", str(left)),
        ("unfinished files: bytes on the disk", size(left_bytes)),
    ]
    damage = None
    if has_packed(path):
        try:
            rows += packed_rows(open_packed(path, read_only=True))
        except Damaged as error:
            damage = error
    print(path)
    table(rows, ("what", "value"))
    if damage:
        raise damage
    return 0


def packed_rows(store: _hicache.Store) -> list[tuple[str, str]]:
    stats = store.stats()
    dead = stats["disk_bytes"] - stats["live_bytes"]
    return [
        ("packed: blocks", str(stats["blocks"])),
        ("packed: live bytes", size(stats["live_bytes"])),
        ("packed: dead bytes", size(dead)),
        ("packed: segments", str(stats["segments"])),
        ("packed: writers", str(stats["writers"])),
        ("packed: log bytes", size(stats["log_bytes"])),
        ("packed: damaged log bytes", size(stats["damaged_log_bytes"])),
    ]


def verify(path: str) -> int:
    bad: list[str] = []
    checked = unchecked = 0
    damage = None
    if has_packed(path):
        try:
            checked, bad = verify_packed(path)
        except Damaged as error:
            damage = error
    found = list(files(path))
    progress = Progress(f"{path} files", len(found))
    for i, (name, info) in enumerate(found):
        result = verify_file(name, info.st_size)
        checked += result is not None
        unchecked += result is None
        if result is False:
            bad.append(f"file: {name}")
        progress.at(i + 1)
    progress.end()
    print(path)
    rows = [("checked", str(checked)), ("without checksum", str(unchecked)), ("bad", str(len(bad)))]
    table(rows, ("blocks", "count"))
    for name in bad:
        print(f"CORRUPT {name}")
    if damage:
        raise damage
    return 1 if bad else 0


def verify_packed(path: str) -> tuple[int, list[str]]:
    """How many packed blocks there are, and the bad ones."""
    store = open_packed(path, read_only=True)
    progress = Progress(f"{path} packed", store.stats()["blocks"])
    bad: list[str] = []
    checked, at = 0, 0
    while at is not None:
        at, blocks, _, names = store.check(0, at, CHECK_BYTES)
        checked += blocks
        bad += [f"packed: {name!r}" for name in names]
        progress.at(checked)
    progress.end()
    return checked, bad


def verify_file(path: str, length: int) -> bool | None:
    """Whether a file is what was stored; None where no checksum says."""
    try:
        wanted, _, value = os.getxattr(path, XATTR).decode().partition(":")
        if int(wanted) != length:
            return False
        expected = int(value, 16)
    except (OSError, ValueError):
        return None
    import numpy as np

    data = np.fromfile(path, dtype=np.uint8)
    row = np.array([[data.ctypes.data, data.nbytes, 0]], dtype=np.uint64)
    return _hicache.checksums(row, 1)[0] == expected


def compact(path: str, fraction: float) -> int:
    removed, room = collect(path)
    for root, _, names in os.walk(path):
        count, total = collect_beside(root, names)
        removed, room = removed + count, room + total
    left, _ = unfinished(path)
    rows = [("unfinished files removed", f"{removed} ({size(room)})")]
    if left:
        rows.append(("unfinished files of running writers, left alone", str(left)))
    damage = None
    if has_packed(path):
        try:
            rows += compact_packed(path, fraction)
        except Damaged as error:
            damage = error
    print(path)
    table(rows, ("compact", "value"))
    if damage:
        raise damage
    return 0


def compact_packed(path: str, fraction: float) -> list[tuple[str, str]]:
    store = open_packed(path)
    before = store.stats()
    progress = Progress(f"{path} compact", before["segments"])
    steps = 0
    while store.maintain(fraction):
        steps += 1
        progress.at(steps)
    progress.end()
    after = store.stats()
    rows = [
        ("segments", f"{before['segments']} -> {after['segments']}"),
        ("disk bytes", f"{size(before['disk_bytes'])} -> {size(after['disk_bytes'])}"),
        ("log bytes", f"{size(before['log_bytes'])} -> {size(after['log_bytes'])}"),
    ]
    others = after["writers"] - after["owned_writers"]
    if others:
        rows.append(("writers at work, left alone", str(others)))
    return rows


def clear(path: str, everything: bool, yes: bool) -> int:
    """Lists what goes, and removes it once that is confirmed."""
    mine: dict[str, list[str]] = {}
    room: dict[str, int] = {}
    foreign = []
    for name, info in files(path):
        label = owner(name) or ("files that HiCache did not make" if everything else None)
        if label is None:
            foreign.append(name)
        else:
            mine.setdefault(label, []).append(name)
            room[label] = room.get(label, 0) + info.st_blocks * 512
    rows = [(what, str(len(mine[what])), size(room[what])) for what in sorted(mine)]
    store, blocks = None, 0
    if has_packed(path):
        try:
            store = open_packed(path)
            stats = store.stats()
            blocks = stats["blocks"]
            rows.append(("packed blocks", str(blocks), size(stats["disk_bytes"])))
        except Damaged:
            taken = sum(info.st_blocks * 512 for info in below(os.path.join(path, ".nixl-packed")))
            rows.append(("packed blocks that are no longer indexed", "?", size(taken)))
    print(path)
    table(rows, ("to be removed", "number", "on the disk"))
    if foreign:
        print(f"{len(foreign)} other files stay (--all: they go, too), such as {foreign[0]}")
    if not yes and not confirmed(path):
        return 0
    if store is not None:
        store.clear()
    elif has_packed(path):
        remove_damaged(path)
    for name in (name for names in mine.values() for name in names):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    collect(path)
    count = sum(len(names) for names in mine.values())
    print(f"{path}: {blocks + count} blocks removed")
    return 0


def below(path: str) -> Iterator[os.stat_result]:
    for root, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(root, name))


def remove_damaged(path: str) -> None:
    """Removes a packed layout that cannot be opened, unless somebody still writes there."""
    root = os.path.join(path, ".nixl-packed")
    for folder, _, names in os.walk(os.path.join(root, "logs")):
        for name in names:
            with open(os.path.join(folder, name), "rb") as log:
                try:
                    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise RuntimeError(
                        f"{log.name} belongs to a running writer: end it first"
                    ) from None
    shutil.rmtree(root)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nixl.hicache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("stat", "what is stored, in numbers"),
        ("verify", "read every block and compare checksums; status 1 if one is corrupt"),
        ("compact", "give the room of dead blocks back; blocks of running writers are left alone"),
        ("clear", "list what HiCache stored, of all models, and remove it"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("directory", nargs="+", metavar="DIR")
        if name == "compact":
            command.add_argument(
                "--dead", type=float, default=0.1, help="compact segments with more dead than this"
            )
        if name == "clear":
            command.add_argument("--yes", action="store_true", help="do not ask")
            command.add_argument(
                "--all", action="store_true", help="other files in the directory, too"
            )
    options = parser.parse_args(arguments)
    status = 0
    for path in options.directory:
        if not os.path.isdir(path):
            print(f"{path}: not a directory", file=sys.stderr)
            status = 2
            continue
        try:
            if options.command == "compact":
                done = compact(path, options.dead)
            elif options.command == "clear":
                done = clear(path, options.all, options.yes)
            else:
                done = {"stat": stat, "verify": verify}[options.command](path)
        except (OSError, RuntimeError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            done = 2
        status = max(status, done)
    return status


def confirmed(path: str) -> bool:
    if not sys.stdin.isatty():
        print(f"{path}: nothing was removed; confirm with --yes", file=sys.stderr)
        return False
    return input(f"Remove that from {path}? [y/N] ").lower() in ("y", "yes")


if __name__ == "__main__":
    sys.exit(main())
