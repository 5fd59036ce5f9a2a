"""Processes that do nothing but use up processor time, each on a core, beside what is measured.

They belong to the process that starts them, and to its process group, so whoever stops that group
stops them too. They are stopped but while `running`, and killed by pid at the end; should their
parent die without that, they end by themselves.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator

ENDLESS = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


class Hogs:
    def __init__(self, cores: Iterable[int]) -> None:
        command = [sys.executable, "-c", ENDLESS]
        self.processes = [subprocess.Popen([*command, str(core)]) for core in cores]
        self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
