"""Whole programs that the tests of a backend run to their end, and what several of these share.

A `pair` below is Python text that makes agents `a` and `b` and a WRITE `handle` of a to b."""

from __future__ import annotations

import os
import subprocess
import sys

DONE = "a.transfer(handle); assert handle.wait(60) == 'DONE'"

CREATE = """
import nixl
agent = nixl.nixl_agent("a", nixl.nixl_agent_config(backends=[]))
try:
    agent.create_backend({backend!r})
    print("made")
except nixl.nixlError as error:
    print(type(error).__name__, error)
"""

FORK = """
a.transfer(handle)
child = os.fork()
if child == 0:
    try:
        a.get_new_notifs()
    except nixl.nixlNotAllowedError:
        {told}
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert handle.wait(60) == "DONE"
{then}
a.transfer(handle)
assert handle.wait(60) == "DONE"
"""


def run(program: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *words]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def created(backend: str, **environment: str) -> str:
    """What creating a backend says: "made", or the error."""
    done = run(CREATE.format(backend=backend), **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ends_quietly(program: str, **environment: str) -> None:
    done = run(program, **environment)
    assert (done.returncode, done.stderr) == (0, "")


def forks(pair: str, told: str, then: str = "", **environment: str) -> None:
    """A child of a process whose transfer goes on is told, and ends with 7 as `told` says; the
    parent's transfers go on. `then`: what holds after the first of them."""
    ends_quietly(pair + FORK.format(told=told, then=then), **environment)
