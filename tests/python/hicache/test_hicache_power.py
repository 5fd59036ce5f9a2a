"""A power cut: with durability = "disk" every acknowledged key is on the disk. That is an ext4 in a
file, which is copied at random moments while somebody writes, and looked at as after the cut."""

from __future__ import annotations

import os
import pathlib
import random
import select
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hicache_support import hicache_section

HERE = pathlib.Path(__file__).parent
IMAGE_BYTES = 48 << 20
CUTS = 6

WRITER = """
import sys
from kill_rounds import payload
from nixl.hicache import HiCacheNixl
from hicache_support import storage_config

section = {"layout": sys.argv[2], "durability": "disk"}
config = storage_config() if sys.argv[3] == "pages" else None
if config is not None:
    config.extra_config = {"hicache": section, "l3_cleaner_enabled": False}
    connector = HiCacheNixl(config, sys.argv[1])
else:
    connector = HiCacheNixl(sys.argv[1], "POSIX", config={"hicache": section})
for i, _ in enumerate(sys.stdin):  # a batch for each line
    keys = [f"k-{i * 4 + j}" for j in range(4)]
    assert connector.batch_set(keys, [payload(key) for key in keys])
    print(keys[-1], flush=True)
"""


def mount(image: pathlib.Path, folder: pathlib.Path) -> None:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-o", "loop", str(image), str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"an ext4 cannot be mounted here: {done.stderr.strip()}")


def umount(folder: pathlib.Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def image(tmp_path):
    """A mounted ext4: (its file, where it is)."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    file, folder = tmp_path / "disk.img", tmp_path / "disk"
    with open(file, "wb") as made:
        made.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(file)], check=True)
    mount(file, folder)
    yield file, folder
    umount(folder)


class Said:
    """What a writer has acknowledged."""

    def __init__(self, writer: subprocess.Popen):
        self.fd = writer.stdout.fileno()
        self.text = b""

    def last(self, wait: float) -> int | None:
        """The number of the last key; waits for a line that is new. None where nothing was said."""
        before = self.text.count(b"\n")
        while self.text.count(b"\n") == before:
            if not select.select([self.fd], [], [], wait)[0]:
                break
            piece = os.read(self.fd, 1 << 16)
            if not piece:
                break
            self.text += piece
        lines = self.text[: self.text.rfind(b"\n") + 1].split()
        return int(lines[-1].split(b"-")[1]) if lines else None


def check(copy: pathlib.Path, folder: pathlib.Path, layout: str, kind: str, upto: int) -> None:
    """As after the cut: every key up to that number is there, with its bytes."""
    from hicache_support import storage_config
    from kill_rounds import payload
    from nixl.hicache import HiCacheNixl

    mount(copy, folder)
    try:
        section = hicache_section(layout, verify="true")
        if kind == "pages":
            config = storage_config(extra_config={"hicache": section, "l3_cleaner_enabled": False})
            connector = HiCacheNixl(config, str(folder / "store"))
        else:
            connector = HiCacheNixl(str(folder / "store"), "POSIX", config={"hicache": section})
        with connector:
            keys = [f"k-{i}" for i in range(upto + 1)]
            targets = [np.zeros(payload(key).size, dtype=np.uint8) for key in keys]
            found = connector.batch_get(keys, targets)
            lost = [key for key, value in zip(keys, found, strict=True) if value is None]
            assert not lost, f"{len(lost)} of {len(keys)} acknowledged keys are gone: {lost[:5]}"
            for key, value in zip(keys, found, strict=True):
                assert np.array_equal(value, payload(key)), key
    finally:
        umount(folder)


@pytest.mark.parametrize("kind", ["keys", "pages"])
@pytest.mark.parametrize("layout", ["files", "packed"])
def test_what_was_acknowledged_survives_a_power_cut(tmp_path, image, layout, kind):
    file, folder = image
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    rng = random.Random(seed)
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    env = dict(os.environ, PYTHONPATH=path)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder / "store"), layout, kind],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0,
    )  # fmt: skip
    said = Said(writer)
    try:
        last, batches = -1, 0
        for cut in range(CUTS):
            more = rng.randint(1, 6)
            beside = rng.randint(1, 3) * (cut % 2)  # every other cut meets a batch under way
            writer.stdin.write(b"\n" * (more + beside))
            while last < 4 * (batches + more) - 1:
                last = said.last(60)
                assert last is not None and writer.poll() is None, "the writer has ended"
            batches += more + beside
            time.sleep(rng.random() * 0.01 if beside else 0)  # sleeps: to cut at any moment
            writer.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, writer.pid, os.WSTOPPED)  # the last of its threads has stopped
            copy = tmp_path / f"cut{cut}.img"
            shutil.copyfile(file, copy)
            writer.send_signal(signal.SIGCONT)
            check(copy, tmp_path / "after", layout, kind, last)
            copy.unlink()
            while last < 4 * batches - 1:
                last = said.last(60)
    finally:
        writer.kill()
        writer.communicate()
