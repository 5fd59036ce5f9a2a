"""Paths, output and child processes for ./dev. One thread unless a function says otherwise."""

from __future__ import annotations

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
LOGS = BUILD / "logs"
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"

HEARTBEAT_S = 30.0
TAIL_LINES = 60


class Failure(Exception):
    """Ends the command with a message; the reader needs no traceback."""


@dataclass
class Outcome:
    """What one step of a check gave: counts, and a line for each failure and each skip."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)
    output: str = ""  # the end of what a run that failed printed

    def fail(self, reason: str) -> Outcome:
        self.failed += 1
        self.failures.append(reason)
        return self

    def skip(self, reason: str) -> Outcome:
        self.skipped += 1
        self.skips.append(reason)
        return self

    def add(self, other: Outcome) -> None:
        """Takes over another's counts and lines; the time stays."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.failures += other.failures
        self.skips += other.skips
        self.output += other.output


def cores() -> int:
    return len(os.sched_getaffinity(0))


def say(text: str) -> None:
    print(text, flush=True)


def color(text: str, code: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def venv_env(**extra: str) -> dict[str, str]:
    """The environment of children: .venv first on PATH, nothing of an outer one."""
    env = dict(os.environ)
    env["PATH"] = f"{VENV / 'bin'}{os.pathsep}{env.get('PATH', '')}"
    env["VIRTUAL_ENV"] = str(VENV)
    env.pop("PYTHONHOME", None)
    env.pop("PYTHONPATH", None)
    env.update(extra)
    return env


def run(
    command: Sequence[str | os.PathLike[str]],
    log: str,
    env: dict[str, str] | None = None,
    timeout_s: float | None = None,
    cwd: pathlib.Path = ROOT,
) -> int:
    """Runs a command with its output in build/logs/LOG.log and a line of progress on screen.

    Returns the exit status; 124 when `timeout_s` ran out (the child's whole group is ended).
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    words = [os.fspath(word) for word in command]
    with open(LOGS / f"{log}.log", "a", encoding="utf-8", errors="replace") as sink:
        line = shlex.join(words)
        sink.write(f"$ {line if len(line) < 400 else line[:400] + chr(0x2026)}\n")
        sink.flush()
        child = subprocess.Popen(
            words,
            cwd=cwd,
            env=env or venv_env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            return _Progress(child, sink).wait(timeout_s)
        except KeyboardInterrupt:
            end_group(child)
            raise


class _Progress:
    """Copies a child's output to its log and shows that it lives; its reader is one thread."""

    def __init__(self, child: subprocess.Popen[str], sink) -> None:
        self._child = child
        self._sink = sink
        self._last = ""
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        for line in self._child.stdout or ():
            self._sink.write(line)
            if line.strip():
                self._last = line.strip()

    def wait(self, timeout_s: float | None) -> int:
        start = time.monotonic()
        shown = start
        status: int | None = None
        while status is None:
            try:
                status = self._child.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if timeout_s is not None and now - start > timeout_s:
                    end_group(self._child)
                    status = 124
                elif sys.stdout.isatty():
                    sys.stdout.write(f"\r\x1b[K    {now - start:4.0f} s  {self._last[:90]}")
                    sys.stdout.flush()
                elif now - shown >= HEARTBEAT_S:
                    shown = now
                    say(f"    … {now - start:.0f} s: {self._last[:100]}")
        self._thread.join(timeout=5)
        if sys.stdout.isatty():
            sys.stdout.write("\r\x1b[K")
        return status


def end_group(child: subprocess.Popen[str]) -> None:
    """Ends a child that leads its own session, and all it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=5)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def tail(log: str, lines: int = TAIL_LINES) -> str:
    path = LOGS / f"{log}.log"
    if not path.exists():
        return "(no output)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def must(command: Sequence[str | os.PathLike[str]], log: str, what: str, **options) -> None:
    """Runs a command and ends ./dev with the end of its output if it fails."""
    status = run(command, log, **options)
    if status != 0:
        shown = LOGS.relative_to(ROOT) / f"{log}.log"
        raise Failure(f"{tail(log)}\n{what} failed (exit status {status}); all output: {shown}")


def git_files(*patterns: str) -> list[pathlib.Path]:
    """Files git knows or would add, below ROOT; where there is no repository, all files."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "--", *patterns],
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        skip = {"build", ".venv", ".git", "__pycache__"}
        found = (p for pattern in patterns or ("*",) for p in ROOT.rglob(pattern))
        return sorted(p for p in found if p.is_file() and not skip & set(p.parts))
    return sorted(p for line in listing.stdout.splitlines() if (p := ROOT / line).is_file())
