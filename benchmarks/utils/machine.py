"""What the figures were measured on: a few lines of text for the head of every table."""

from __future__ import annotations

import os
import pathlib
import platform
import sys


def _field(path: str, name: str) -> str:
    try:
        for line in pathlib.Path(path).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return "unknown"


def _system() -> str:
    try:
        for line in pathlib.Path("/etc/os-release").read_text().splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.split("=", 1)[1].strip('"')
    except OSError:
        pass
    return platform.system()


def facts() -> str:
    """Processor, memory, system, kernel, Python."""
    cores = len(os.sched_getaffinity(0))
    processor = _field("/proc/cpuinfo", "model name")
    if processor == "unknown":
        processor = platform.machine()
    memory = int(_field("/proc/meminfo", "MemTotal").split()[0]) / 1e6
    return (
        f"machine: {processor}, {cores} cores, {memory:.0f} GB; {_system()}, Linux"
        f" {platform.release()}; Python {sys.version.split()[0]}; {load()}"
    )


def load() -> str:
    """How busy the machine is: figures of a busy one vary."""
    one, five, _ = os.getloadavg()
    return f"load average {one:.1f} (1 min), {five:.1f} (5 min)"
