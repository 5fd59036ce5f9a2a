"""python -m nixl.hicache stat|verify|compact|clear DIR…: looks at, checks and tidies what HiCache
stored in directories, both layouts."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

from nixl import _hicache

from .blocks import XATTR
from .keys import TEMPORARY

CHECK_BYTES = 64 << 20


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> None:
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
    return os.path.isfile(os.path.join(path, ".nixl-packed", "format"))


def files(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """The files of the `files` layout: (path, stat)."""
    for root, folders, names in os.walk(path):
        if ".nixl-packed" in folders:
            folders.remove(".nixl-packed")
        for name in sorted(names):
            if not name.startswith(TEMPORARY):
                whole = os.path.join(root, name)
                try:
                    yield whole, os.stat(whole)
                except OSError:
                    continue


def stat(path: str) -> int:
    rows = []
    count = total = 0
    for _, info in files(path):
        count += 1
        total += info.st_size
    rows += [("files: keys", str(count)), ("files: bytes", size(total))]
    if has_packed(path):
        store = _hicache.Store([path], read_only=True)
        stats = store.stats()
        dead = stats["disk_bytes"] - stats["live_bytes"]
        rows += [
            ("packed: blocks", str(stats["blocks"])),
            ("packed: live bytes", size(stats["live_bytes"])),
            ("packed: dead bytes", size(dead)),
            ("packed: segments", str(stats["segments"])),
            ("packed: writers", str(stats["writers"])),
            ("packed: log bytes", size(stats["log_bytes"])),
            ("packed: damaged log bytes", size(stats["damaged_log_bytes"])),
        ]
    print(path)
    table(rows, ("what", "value"))
    return 0


def verify(path: str) -> int:
    bad: list[str] = []
    checked = unchecked = 0
    if has_packed(path):
        store = _hicache.Store([path], read_only=True)
        progress = Progress(f"{path} packed", store.stats()["blocks"])
        at = 0
        while at is not None:
            at, blocks, _, names = store.check(0, at, CHECK_BYTES)
            checked += blocks
            bad += [f"packed: {name!r}" for name in names]
            progress.at(checked)
        progress.end()
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
    return 1 if bad else 0


def verify_file(path: str, length: int) -> bool | None:
    """Whether a file is what was stored; None where no checksum says."""
    try:
        wanted, _, value = os.getxattr(path, XATTR).decode().partition(":")
    except OSError:
        return None
    if int(wanted) != length:
        return False
    import numpy as np

    data = np.fromfile(path, dtype=np.uint8)
    row = np.array([[data.ctypes.data, data.nbytes, 0]], dtype=np.uint64)
    return _hicache.checksums(row, 1)[0] == int(value, 16)


def compact(path: str, fraction: float) -> int:
    removed = 0
    for root, _, names in os.walk(path):
        for name in names:
            if name.startswith(TEMPORARY):
                os.unlink(os.path.join(root, name))
                removed += 1
    rows = [("unfinished files removed", str(removed))]
    if has_packed(path):
        store = _hicache.Store([path])
        before = store.stats()
        progress = Progress(f"{path} compact", before["segments"])
        steps = 0
        while store.maintain(fraction):
            steps += 1
            progress.at(steps)
        progress.end()
        after = store.stats()
        rows += [
            ("segments", f"{before['segments']} -> {after['segments']}"),
            ("disk bytes", f"{size(before['disk_bytes'])} -> {size(after['disk_bytes'])}"),
            ("log bytes", f"{size(before['log_bytes'])} -> {size(after['log_bytes'])}"),
        ]
        others = after["writers"] - after["owned_writers"]
        if others:
            rows.append(("writers at work, left alone", str(others)))
    print(path)
    table(rows, ("compact", "value"))
    return 0


def clear(path: str) -> int:
    count = 0
    if has_packed(path):
        store = _hicache.Store([path])
        count += store.stats()["blocks"]
        store.clear()
    for name, _ in files(path):
        os.unlink(name)
        count += 1
    print(f"{path}: {count} blocks removed")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m nixl.hicache", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("stat", "what is stored, in numbers"),
        ("verify", "read every block and compare checksums; status 1 if one is corrupt"),
        ("compact", "give the room of dead blocks back; blocks of running writers are left alone"),
        ("clear", "remove everything"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("directory", nargs="+", metavar="DIR")
        if name == "compact":
            command.add_argument(
                "--dead", type=float, default=0.1, help="compact segments with more dead than this"
            )
        if name == "clear":
            command.add_argument("--yes", action="store_true", help="do not ask")
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
                if not options.yes and not confirmed(path):
                    continue
                done = clear(path)
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
    return input(f"Remove everything that is stored in {path}? [y/N] ").lower() in ("y", "yes")


if __name__ == "__main__":
    sys.exit(main())
