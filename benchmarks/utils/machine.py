"""What the figures were measured on: text for the head of a table, and facts for its records."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import re
import sys
from typing import Any


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


def kernel() -> str:
    """The version without what whoever built it appended: 6.18.44 of 6.18.44-cloud-amd64."""
    return re.match(r"[\d.]*", platform.release())[0].rstrip(".") or platform.release()


def facts() -> str:
    """Processor, memory, system, kernel, Python."""
    cores = len(os.sched_getaffinity(0))
    processor = _field("/proc/cpuinfo", "model name")
    if processor == "unknown":
        processor = platform.machine()
    memory = int(_field("/proc/meminfo", "MemTotal").split()[0]) / 1e6
    return (
        f"machine: {processor}, {cores} cores, {memory:.0f} GB; {_system()}, Linux"
        f" {kernel()}; Python {sys.version.split()[0]}; {load()}"
    )


def load() -> str:
    """How busy the machine is: figures of a busy one vary."""
    one, five, _ = os.getloadavg()
    return f"load average {one:.1f} (1 min), {five:.1f} (5 min)"


def record() -> dict[str, Any]:
    """The same for a program to read, and which GPUs there are."""
    from .cuda import gpu_facts  # needs NumPy, which facts() does not

    processor = _field("/proc/cpuinfo", "model name")
    return {
        "host": platform.node(),
        "processor": platform.machine() if processor == "unknown" else processor,
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 1e6),
        "system": _system(),
        "kernel": kernel(),
        "load": [round(one, 2) for one in os.getloadavg()],
        **gpu_facts(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that the figures depend on, as far as they are here."""
    found = {"python": platform.python_version()}
    for name in ("nixl", "numpy"):
        module = sys.modules.get(name)
        version = getattr(module, "__version__", None)
        if module is not None and version is None:
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                version = "unknown"
        if version is not None:
            found[name] = str(version)
    return found


def environment() -> dict[str, str]:
    """Settings of the environment that change what a run measures; nothing that may be secret."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("UCX_", "NIXL_", "CUDA_", "CUFILE_"))
        and not any(word in name for word in ("KEY", "SECRET", "TOKEN", "PASSWORD"))
    }


def boot_id() -> str:
    """Tells hosts of one name apart; the same for all containers of a host."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
