"""HiCache: our connector, and SGLang's own connector over our package ("client"), beside SGLang's
own connector over the published package ("peer") and SGLang's file backend, in one run on one disk;
and beside plain writes and reads of the same bytes, which show what the disk or the page cache
gives at best.

    python benchmarks/versus/hicache.py --dir /mnt/disk/scratch --peer-python PEER/bin/python

The interpreter that runs this needs torch, numpy, SGLang (pip install --no-deps sglang==0.5.23)
and, as `nixl`, our package: .venv/bin/python of ./dev, with PYTHONPATH=build/release/python, has
them where torch is installed on the machine. The peer's interpreter needs the same with the
published package, which brings torch; it is started without PYTHONPATH:

    python -m venv PEER && PEER/bin/pip install nixl==1.5.1 nixl-cu13==1.5.1 numpy
    PEER/bin/pip install --no-deps sglang==0.5.23

Each side is a process of its own; rounds alternate and whoever
is not measured is stopped. Before each round what is dirty is written out, after it what was stored
is removed, so that no round pays for another; every round stores other bytes, and compares what it
gets. Figures are medians, with the least and the most; of client and peer also the median of the
rounds' own ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rows_base import quick

CASES = {"small": (1024, 16 << 10), "large": (128, 1 << 20)}  # pages, bytes of half a page
if quick():
    CASES = {"small": (16, 16 << 10), "large": (4, 1 << 20)}
#: case, figure, factor: what ours must reach against the peer (for exists: milliseconds).
TARGETS = {
    ("small", "set"): 15.0,
    ("small", "get"): 5.0,
    ("large", "set"): 1.5,
    ("large", "get"): 1.0,
}
EXISTS_MS = 1.0
#: case, mode, figure, factor: at most so much of the time that SGLang's connector takes over the
#: published package it may take over ours.
CLIENT_TARGETS = {
    ("large", "direct", "set"): 0.8,
    ("large", "direct", "get"): 0.8,
    ("small", "buffered", "set"): 0.8,
    ("small", "buffered", "get"): 0.8,
    ("small", "buffered", "exists"): 0.3,
}
PAGE_SIZE = 64
COLUMNS = ("ours", "client", "peer", "file", "plain")
ENGINES = ("uring", "aio", "posix_aio", "default")


def light_sglang() -> None:
    """Makes SGLang's storage modules importable without its heavy dependencies."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("this interpreter has no sglang: pip install --no-deps sglang==0.5.23")
    root = pathlib.Path(next(iter(spec.submodule_search_locations)))
    for name, path in (
        ("sglang", root),
        ("sglang.srt", root / "srt"),
        ("sglang.srt.mem_cache", root / "srt" / "mem_cache"),
        ("sglang.srt.mem_cache.pool_host", None),
        ("sglang.srt.utils", None),
        ("sglang.srt.utils.common", None),
    ):
        module = types.ModuleType(name)
        if path is not None:
            module.__path__ = [str(path)]
        else:
            module.HostKVCache = object
            module.human_readable_int = str
        sys.modules[name] = module


class Pool:
    """A page-first host pool: K and V of a page are one range each."""

    layout = "page_first"

    def __init__(self, pages: int, part_bytes: int):
        import torch

        self.page_size = PAGE_SIZE
        self.size = pages * PAGE_SIZE
        self.part_bytes = part_bytes
        self.dtype = torch.uint8
        raw = torch.randint(0, 256, (2 * pages * part_bytes + 4096,), dtype=torch.uint8)
        start = -raw.data_ptr() % 4096
        self.kv_buffer = raw[start : start + 2 * pages * part_bytes].view(2, self.size, -1)

    def is_stride_page_aligned(self, _bytes: int = 4096) -> bool:
        return True

    def get_page_buffer_meta(self, indices: Any) -> tuple[list[int], list[int]]:
        base = self.kv_buffer.data_ptr()
        half = self.kv_buffer.numel() // 2
        pointers = []
        for index in indices.tolist()[:: self.page_size]:
            first = base + index // self.page_size * self.part_bytes
            pointers.append(first)
            pointers.append(first + half)
        return pointers, [self.part_bytes] * len(pointers)

    def get_data_page(self, index: int, flat: bool = True) -> Any:
        page = self.kv_buffer[:, index : index + self.page_size]
        return page.flatten() if flat else page

    def get_dummy_flat_data_page(self) -> Any:
        import torch

        return torch.zeros(2 * self.part_bytes, dtype=torch.uint8)

    def set_from_flat_data_page(self, index: int, data_page: Any) -> None:
        target = self.kv_buffer[:, index : index + self.page_size]
        target.copy_(data_page.reshape(target.shape))


class PlainFile:
    """The limit: the pool's bytes in one file, 1 MiB a call, no names, no checksums."""

    PIECE = 1 << 20

    def __init__(self, pool: Pool, path: str, direct: bool):
        import ctypes

        size = pool.kv_buffer.numel()
        self.memory = memoryview(
            (ctypes.c_char * size).from_address(pool.kv_buffer.data_ptr())
        ).cast("B")
        self.path = path
        self.flags = os.O_DIRECT if direct else 0
        self.threads = ThreadPoolExecutor(8 if direct else os.cpu_count())

    def all(self, call: Any, flags: int) -> bool:
        fd = os.open(os.path.join(self.path, "plain"), flags | self.flags, 0o600)
        try:
            pieces = range(0, len(self.memory), self.PIECE)
            done = self.threads.map(
                lambda at: call(fd, [self.memory[at : at + self.PIECE]], at), pieces
            )
            return sum(done) == len(self.memory)
        finally:
            os.close(fd)

    def batch_exists(self, keys: list[str]) -> int:
        return len(keys)

    def set(self) -> bool:
        return self.all(os.pwritev, os.O_WRONLY | os.O_CREAT)

    def get(self) -> bool:
        return self.all(os.preadv, os.O_RDONLY)


class Side:
    """One contender in its own process: rounds of set, exists and get."""

    def __init__(self, side: str, case: str, direct: bool, path: str, engine: str):
        import torch

        light_sglang()
        from sglang.srt.mem_cache.hicache_storage import HiCacheFile, HiCacheStorageConfig

        pages, part_bytes = CASES[case]
        self.side = side
        self.path = path
        self.torch = torch
        self.pool = Pool(pages, part_bytes)
        self.kept = self.pool.kv_buffer.clone()
        self.bytes = 2 * pages * part_bytes
        self.pages = torch.arange(pages * PAGE_SIZE)
        self.count = pages
        self.rounds = 0
        extra: dict[str, Any] = {"use_direct_io": direct, "l3_cleaner_enabled": False}
        if side in ("ours", "client", "peer"):
            extra["plugin"] = {"posix": {"active": True}}
        if side in ("client", "peer") and engine != "default":  # our connector is left to choose
            extra["plugin"]["posix"][f"use_{engine}"] = "true"
        config = HiCacheStorageConfig(
            tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1,
            is_mla_model=False, enable_storage_metrics=False, is_page_first_layout=True,
            model_name="bench", extra_config=extra if side != "file" else None,
        )  # fmt: skip
        if side == "plain":
            self.backend = PlainFile(self.pool, path, direct)
            return
        if side == "ours":
            from nixl.hicache.hicache_nixl import HiCacheNixl
        elif side in ("client", "peer"):
            from sglang.srt.mem_cache.storage.nixl.hicache_nixl import HiCacheNixl
        backend = HiCacheFile if side == "file" else HiCacheNixl
        self.backend = backend(config, path)
        self.backend.register_mem_pool_host(self.pool)

    def set(self, keys: list[str]) -> bool:
        if self.side == "plain":
            return self.backend.set()
        if self.side != "file":
            return all(self.backend.batch_set_v1(keys, self.pages))
        starts = range(0, self.count * PAGE_SIZE, PAGE_SIZE)
        return self.backend.batch_set(keys, [self.pool.get_data_page(i) for i in starts])

    def get(self, keys: list[str]) -> bool:
        if self.side == "plain":
            return self.backend.get()
        if self.side != "file":
            return all(self.backend.batch_get_v1(keys, self.pages))
        room = [self.pool.get_dummy_flat_data_page() for _ in keys]
        pages = self.backend.batch_get(keys, room)
        for i, page in enumerate(pages):
            self.pool.set_from_flat_data_page(i * PAGE_SIZE, page)
        return True

    def remove(self) -> None:
        if self.side == "ours":
            return self.backend.clear()
        for folder, _, names in os.walk(self.path):
            for name in names:
                os.unlink(os.path.join(folder, name))

    def round(self) -> dict[str, float]:
        self.rounds += 1
        os.sync()
        keys = [f"{self.rounds:08x}{i:056x}" for i in range(self.count)]
        self.kept.add_(1)
        self.pool.kv_buffer.copy_(self.kept)
        start = time.perf_counter()
        stored = self.set(keys)
        middle = time.perf_counter()
        found = self.backend.batch_exists(keys)
        end = time.perf_counter()
        reads = []
        fetched = same = True
        for _ in range(2):
            self.pool.kv_buffer.zero_()
            begin = time.perf_counter()
            fetched = self.get(keys) and fetched
            reads.append(time.perf_counter() - begin)
            same = self.torch.equal(self.pool.kv_buffer, self.kept) and same
        if not (stored and fetched and same and found == self.count):
            raise SystemExit(f"{self.side}: set {stored}, exists {found}, get {fetched}, {same}")
        self.remove()
        return {
            "set": self.bytes / (middle - start) / 1e9,
            "get": self.bytes / min(reads) / 1e9,
            "exists": (end - middle) * 1e3,
        }


def worker(arguments: list[str]) -> int:
    side, case, direct, path, engine = arguments
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contender = Side(side, case, direct == "direct", path, engine)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(contender.round()), file=answers, flush=True)
    sys.stdout.flush()
    os._exit(0)  # one of the packages crashes at exit


class Contender:
    """The handle on a worker process, stopped unless it is measured."""

    def __init__(self, side: str, python: str, case: str, direct: str, path: str, engine: str):
        env = dict(os.environ, NIXL_LOG_LEVEL="ERROR")
        for name in list(env):
            if name.startswith("SGLANG_") or (side == "peer" and name == "PYTHONPATH"):
                del env[name]
        self.process = subprocess.Popen(
            [python, __file__, "--worker", side, case, direct, path, engine],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        self.samples: dict[str, list[float]] = {}
        self.read()
        self.process.send_signal(signal.SIGSTOP)

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with {self.process.wait()}")
        return json.loads(line)

    def round(self, keep: bool) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write("round\n")
        self.process.stdin.flush()
        for name, value in self.read().items():
            if keep:
                self.samples.setdefault(name, []).append(value)
        self.process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()


def compare(case: str, direct: str, options: argparse.Namespace) -> list[tuple[str, ...]]:
    sides = dict.fromkeys(options.side or COLUMNS, sys.executable)
    if "peer" in sides:
        sides["peer"] = options.peer_python
    if direct == "direct":
        sides.pop("file", None)
    if options.peer_python is None:
        sides.pop("peer", None)
    contenders = {}
    for side, python in sides.items():
        path = os.path.join(options.dir, f"nixl-bench-{side}")
        shutil.rmtree(path, ignore_errors=True)
        os.makedirs(path)
        contenders[side] = Contender(side, python, case, direct, path, options.engine)
    for number in range(options.rounds + 1):
        for contender in contenders.values():
            contender.round(keep=number > 0)
    for side, contender in contenders.items():
        contender.end()
        shutil.rmtree(os.path.join(options.dir, f"nixl-bench-{side}"), ignore_errors=True)
    samples = {side: contender.samples for side, contender in contenders.items()}
    return [
        line_of(case, direct, figure, {side: each[figure] for side, each in samples.items()})
        for figure in ("set", "get", "exists")
    ]


def line_of(
    case: str, direct: str, figure: str, samples: dict[str, list[float]]
) -> tuple[str, ...]:
    medians = {side: statistics.median(values) for side, values in samples.items()}
    ours, peer, plain = (medians.get(side) for side in ("ours", "peer", "plain"))
    ratio, verdict, limit = "", "", ""
    if ours and figure == "exists":
        if case == "small":
            verdict = "ok" if ours <= EXISTS_MS else "MISSED"
            ratio = f"<= {EXISTS_MS:g} ms"
    elif ours:
        limit = f"{ours / plain:.2f} x" if plain else ""
        if peer:
            wanted = TARGETS[case, figure]
            ratio = f"{ours / peer:.1f} x (>= {wanted:g})"
            verdict = "ok" if ours >= wanted * peer else "MISSED"
    shown = [spread(samples[side]) if side in samples else "-" for side in COLUMNS]
    if figure == "exists":
        shown[-1] = "-"
    pages, part = CASES[case]
    name = f"{figure} {pages} pages of 2 x {part >> 10} KiB, {direct}"
    unit = "ms" if figure == "exists" else "GB/s"
    client = client_of(case, direct, figure, samples)
    return (f"{name}, {unit}", *shown, ratio, limit, verdict, *client)


def client_of(
    case: str, direct: str, figure: str, samples: dict[str, list[float]]
) -> tuple[str, str]:
    """SGLang's connector over ours: its time over that of the published package, and whether that
    is good enough."""
    if not ("client" in samples and "peer" in samples):
        return "", ""
    pairs = list(zip(samples["client"], samples["peer"], strict=True))
    if figure == "exists":
        reached = statistics.median(mine / theirs for mine, theirs in pairs)
    else:  # rates
        reached = statistics.median(theirs / mine for mine, theirs in pairs)
    wanted = CLIENT_TARGETS.get((case, direct, figure))
    if wanted is None:
        return f"{reached:.2f} x", ""
    return f"{reached:.2f} x (<= {wanted:g})", "ok" if reached <= wanted else "MISSED"


def spread(samples: list[float]) -> str:
    return f"{statistics.median(samples):.2f} ({min(samples):.2f}-{max(samples):.2f})"


def drop_cache(folder: str) -> None:
    """Writes all out and gives the cache's pages back: else the kernel's limit on dirty pages, and
    on virtual machines the host's first touch of each page, are what is measured."""
    os.sync()
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        fd = os.open(os.path.join(folder, name), os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def flat(options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Cost of one block as the store grows: it must not depend on how many there are."""
    import numpy as np
    from nixl.hicache import HiCacheNixl

    path = os.path.join(options.dir, "nixl-bench-flat")
    shutil.rmtree(path, ignore_errors=True)
    connector = HiCacheNixl(path, "POSIX", config={"hicache": {"layout": "packed"}})
    batch = 1000
    memory = np.zeros((batch, 64), dtype=np.uint8)
    connector.register_buffers([(memory.ctypes.data, memory.nbytes)])
    places = [memory.ctypes.data + 64 * i for i in range(batch)]
    sizes = [64] * batch
    rows, stored = [], 0
    marks = [n for n in (1000, 10000, 100000, 1000000) if n <= options.flat]
    samples: list[tuple[float, float, float]] = []
    while stored < marks[-1]:
        keys = [f"{stored + i:064x}" for i in range(batch)]
        if stored % (10 * batch) == 0:
            drop_cache(os.path.join(path, ".nixl-packed", "segments"))
        times = [time.perf_counter()]
        assert connector.batch_set(keys, None, places, sizes)
        times.append(time.perf_counter())
        assert None not in connector.batch_get(keys, places, sizes)
        times.append(time.perf_counter())
        assert connector.batch_exists(keys) == batch
        times.append(time.perf_counter())
        stored += batch
        samples.append(tuple(b - a for a, b in zip(times, times[1:], strict=False)))
        if stored in marks:
            us = [statistics.median(column) / batch * 1e6
                  for column in zip(*samples[-20:], strict=True)]  # fmt: skip
            rows.append((f"{stored} blocks", *(f"{value:.2f}" for value in us), "", ""))
    connector.close()
    shutil.rmtree(path, ignore_errors=True)
    return rows


def show(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, tuple("-" * w for w in widths), *rows]:
        cells = zip(row, widths, strict=True)
        print(" | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(cells)))
    print()


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", default="/tmp", help="where the disk under test is mounted")
    parser.add_argument("--peer-python", help="interpreter with the published package")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", choices=[*CASES], action="append")
    parser.add_argument("--mode", choices=["buffered", "direct"], action="append")
    parser.add_argument("--side", choices=COLUMNS, action="append", help="these only; default: all")
    parser.add_argument("--engine", choices=ENGINES, default="uring", help="of client and peer")
    parser.add_argument("--only-flat", action="store_true", help="no comparison, --flat alone")
    parser.add_argument("--flat", type=int, default=0, help="also cost per block up to this many")
    parser.add_argument("--quick", action="store_true", help="only try it: tiny sizes")
    options = parser.parse_args()
    if options.quick and not quick():  # sizes are chosen as this is loaded
        os.environ["NIXL_VERSUS_QUICK"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    rows = []
    for case in [] if options.only_flat else options.case or CASES:
        for direct in options.mode or ("buffered", "direct"):
            rows += compare(case, direct, options)
    head = (
        "figure",
        "ours",
        "SGLang over ours",
        "SGLang over peer",
        "SGLang file",
        "plain file",
        "ours / peer",
        "ours / plain",
        "",
        "time over ours / over peer",
        "",
    )
    if rows:
        show(head, rows)
    if options.flat:
        show(("microseconds a block", "set", "get", "exists", "", ""), flat(options))
    return 1 if any("MISSED" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
