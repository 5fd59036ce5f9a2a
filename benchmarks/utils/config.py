"""The options that all single-node benchmarks share, and how sizes are written."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Settings:
    sizes: tuple[int, ...]
    iterations: int
    warmup: int
    operation: str
    verify: bool


def parse_size(text: str) -> int:
    """Bytes of "4KB", "64k", "1GiB" or "512"; a K is 1024."""
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 4KB or 64MB")
    return int(match[1]) * _UNITS[match[2].upper()]


def parse_sizes(text: str) -> tuple[int, ...]:
    return tuple(parse_size(part) for part in text.split(","))


def size_text(size: int) -> str:
    for unit in ("TB", "GB", "MB", "KB"):
        factor = _UNITS[unit[0]]
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


def make_parser(description: str, sizes: str, iterations: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--buffer_sizes", "--buffer_size", type=parse_sizes, default=parse_sizes(sizes),
        help=f"comma-separated, default {sizes}",
    )  # fmt: skip
    parser.add_argument("--iterations", "--num_iter", type=int, default=iterations)
    parser.add_argument("--warmup_iter", type=int, default=10)
    parser.add_argument("--operation", type=str.upper, choices=("WRITE", "READ"), default="WRITE")
    parser.add_argument("--verify_data", action="store_true", help="compare bytes at the end")
    return parser


def settings_of(options: argparse.Namespace) -> Settings:
    if options.iterations < 1 or options.warmup_iter < 0:
        raise SystemExit("--iterations must be at least 1 and --warmup_iter at least 0")
    return Settings(
        options.buffer_sizes,
        options.iterations,
        options.warmup_iter,
        options.operation,
        options.verify_data,
    )
