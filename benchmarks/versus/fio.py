"""fio as the yardstick of storage rows: one short run, its figure as GB/s or thousand IOPS."""

from __future__ import annotations

import json
import shutil
import subprocess


def available() -> bool:
    return shutil.which("fio") is not None


def run(
    path: str, size: int, milliseconds: int = 400, amount: int = 0, **options: object
) -> tuple[float, float]:
    """GB/s and thousand IOPS of one job over the first `size` bytes of a file: for some time, or
    for `amount` bytes, which are then at the same places in every run."""
    words = [f"--{name}={value}" for name, value in options.items()]
    span = (
        [f"--io_size={amount}", "--randrepeat=1"]
        if amount
        else ["--time_based", f"--runtime={milliseconds}ms", "--randrepeat=0"]
    )
    command = [
        "fio",
        "--name=limit",
        "--output-format=json",
        f"--filename={path}",
        f"--size={size}",
        "--thread",  # a process of its own would leave our scheduling group
        *span,
        "--overwrite=1",
        "--allow_file_create=0",
        "--fadvise_hint=0",
        "--invalidate=0",
        "--norandommap",
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"fio: {done.stderr.strip() or done.stdout.strip()}")
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = "read" if "read" in str(options["rw"]) else "write"
    return job[side]["bw_bytes"] / 1e9, job[side]["iops"] / 1e3
