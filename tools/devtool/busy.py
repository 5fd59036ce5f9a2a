"""Load beside tests: endless loops, one a core, that end with the block or with ./dev itself."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

# The parent's number is looked at now and then: a hog whose ./dev was killed ends by itself.
HOG = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def hogs(count: int) -> Iterator[list[int]]:
    """Runs `count` processes that compute without end; gives their numbers."""
    command = [sys.executable, "-S", "-c", HOG]
    children: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            none = subprocess.DEVNULL
            children.append(subprocess.Popen(command, stdin=none, stdout=none))
        yield [child.pid for child in children]
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()
