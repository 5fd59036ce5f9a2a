"""What agents of this user leave in the telemetry directory for `nixl top` (docs/telemetry.md)."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import time
from typing import Any

STALE_SECONDS = 180.0  # three times the longest interval


def directory(given: str | None = None) -> pathlib.Path:
    """Where the library leaves it: the same choice as the library's own."""
    for place in (
        given,
        os.environ.get("NIXL_TELEMETRY_DIR"),
        os.environ.get("NIXL_TELEMETRY_MULTIPROC_DIR"),
    ):
        if place:
            return pathlib.Path(place)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/") and os.path.isdir(runtime):
        return pathlib.Path(runtime) / "nixl"
    return pathlib.Path(f"/tmp/nixl-{os.geteuid()}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The agents that live, by name and process; files of others are left alone."""
    agents = []
    for path in folder.glob("agent-*.json") if folder.is_dir() else ():
        try:
            facts = path.lstat()
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
                continue
            agent = json.loads(path.read_text())
            gone = not _alive(agent["pid"]) or time.time() - facts.st_mtime > STALE_SECONDS
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it has just gone, or is no file of ours
        if not gone:
            agents.append(agent)
    return sorted(agents, key=lambda agent: (agent["agent"], agent["pid"], agent["id"]))
