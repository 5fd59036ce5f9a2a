"""The options that the benchmarks share, how sizes are written, and what an agent is made with."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import Any

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# Where the number of iterations is not given, no more bytes than this are moved for one size,
# but ten times the size at the least.
_DEFAULT_BYTES = 16 << 30
_DEFAULT_LEAST = 10


@dataclass(frozen=True)
class Settings:
    sizes: tuple[int, ...]
    iterations: int
    warmup: int
    operation: str
    verify: bool
    batch: int = 1  # descriptors of one transfer
    capped: bool = False  # the iterations are a default: fewer for large sizes

    def rounds(self, size: int) -> int:
        """How often this size is moved and measured."""
        if not self.capped:
            return self.iterations
        return min(self.iterations, max(_DEFAULT_LEAST, _DEFAULT_BYTES // size))

    def warm_rounds(self, size: int) -> int:
        """How often it is moved before that."""
        if not self.capped or self.rounds(size) == self.iterations:
            return self.warmup
        return min(self.warmup, max(1, self.rounds(size) // 10))


def parse_size(text: str) -> int:
    """Bytes of "4KB", "64k", "1GiB" or "512"; a K is 1024."""
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 4KB or 64MB")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_sizes(text: str) -> tuple[int, ...]:
    return tuple(parse_size(part) for part in text.split(","))


def parse_numbers(text: str) -> tuple[int, ...]:
    """Such as "0,1": numbers of devices."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0,1") from None
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: {min(numbers)} is negative")
    return numbers


def at_least(least: int) -> Any:
    """A type of argparse: a whole number not below this one."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is below {least}")
        return number

    return parse


def size_text(size: int) -> str:
    for unit in ("TB", "GB", "MB", "KB"):
        factor = _UNITS[unit[0]]
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


def make_parser(
    description: str,
    sizes: str,
    iterations: int,
    *,
    operations: tuple[str, ...] = ("WRITE", "READ"),
    agents: bool = True,
) -> argparse.ArgumentParser:
    """With operations empty the program has one of its own; agents: it makes NIXL agents."""
    parser = argparse.ArgumentParser(description=description)
    parser.set_defaults(default_iterations=iterations, operation=(operations or ("",))[0])
    add = parser.add_argument_group("what is moved").add_argument
    add("--buffer_sizes", "--buffer_size", type=parse_sizes, default=parse_sizes(sizes),
        help=f"comma-separated, a K is 1024; default {sizes}")  # fmt: skip
    add("--iterations", "--num_iter", type=at_least(1),
        help=f"of each size; default {iterations}, fewer where that is over 16 GB")  # fmt: skip
    add("--warmup_iter", type=at_least(0), default=10, help="ahead of them, not measured")
    if operations:
        add("--operation", type=str.upper, choices=operations, default=operations[0])
        add("--batch_size", type=at_least(1), default=1,
            help="descriptors that share the buffer in one transfer; IOPS counts them")  # fmt: skip
    add("--verify_data", action="store_true", help="compare every byte at the end of each size")
    add("--enable_vmm", action="store_true",
        help="VRAM from CUDA's virtual memory calls, DRAM from nixl.alloc")  # fmt: skip
    if agents:
        add = parser.add_argument_group("agents").add_argument
        add("--enable_pt", action="store_true", help="a progress thread for backends without one")
        add("--progress_threads", type=at_least(0), default=0,
            help="worker threads of the backend; more than 0 means --enable_pt too")  # fmt: skip
        add("--backend_param", metavar="NAME=VALUE", action="append", default=[],
            type=_parameter, help="a parameter of the backend; may be repeated")  # fmt: skip
    _add_output(parser)
    return parser


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is shown").add_argument
    add("--format", choices=("table", "json", "jsonl", "csv"), default="table",
        help="of standard output; jsonl: a line a size, with machine and parameters")  # fmt: skip
    add("--json_lines", metavar="FILE", help="add these lines to a file")
    add("--report", metavar="HTML", help="write one self-contained page with plots")
    add("--compare", metavar="FILE", action="append", default=[],
        help="earlier --json_lines to show beside this run; may be repeated")  # fmt: skip
    add("--label", default="", help="what the report calls this run")
    add("--no_progress", action="store_true", help="no progress bar on a terminal")


def add_storage(parser: argparse.ArgumentParser, memory: str) -> None:
    """Options of programs that move between memory and a file."""
    add = parser.add_argument_group("storage").add_argument
    add("--file_path", required=True,
        help="overwritten where it exists, else made and removed at the end")  # fmt: skip
    add("--direct_io", "--storage_enable_direct", action="store_true", help="open with O_DIRECT")
    add_memory(parser, memory)


def add_memory(parser: argparse.ArgumentParser, default: str) -> None:
    add = parser.add_argument_group("memory").add_argument
    add("--memory_type", type=str.upper, choices=("DRAM", "VRAM"), default=default)
    add("--gpu_id", type=at_least(0), default=0, help="the GPU of VRAM")


def settings_of(options: argparse.Namespace) -> Settings:
    return Settings(
        options.buffer_sizes,
        options.iterations or options.default_iterations,
        options.warmup_iter,
        options.operation,
        options.verify_data,
        getattr(options, "batch_size", 1),
        options.iterations is None,
    )


def agent_options(options: argparse.Namespace, *, passive: bool = False) -> dict[str, Any]:
    """What --enable_pt and --progress_threads say to nixl_agent_config. A passive agent polls
    nothing, so it has a progress thread always."""
    threads = options.progress_threads
    return {
        "enable_prog_thread": passive or options.enable_pt or threads > 0,
        "num_threads": threads,
    }
