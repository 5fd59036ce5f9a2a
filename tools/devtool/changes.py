"""Which files a change touches: uncommitted ones, and commits since a base. Reads git only."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from common import ROOT, Failure

DAY_S = 24 * 3600
# Names of the branch that others' work is in, the likeliest first.
DEFAULT_BRANCHES = ["origin/HEAD", "origin/main", "origin/master", "main", "master"]


@dataclass
class Change:
    """Paths relative to ROOT, sorted; `reason` says since when, for people."""

    files: list[str]
    reason: str
    whole: bool = False  # nothing is known of history: every file counts as changed


def git(*words: str) -> str | None:
    """The output of git, or None where it says no."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def commit(name: str) -> str | None:
    found = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return found.strip() if found else None


def since(asked: str | None = None) -> Change:
    """What changed: since `asked` or NIXL_DEV_BASE where given; else what is uncommitted and what
    the default branch lacks; and where that is nothing, what came in during the last day of
    history (counted back from the newest commit), since a checkout of the default branch does not
    tell where the last landing began."""
    if commit("HEAD") is None:
        return Change(listed(), "no history here: every file", whole=True)
    if name := asked or os.environ.get("NIXL_DEV_BASE"):
        if commit(name) is None:
            raise Failure(f"no commit '{name}' to compare with")
        base = (git("merge-base", "HEAD", name) or "").strip()
        if not base:
            raise Failure(f"'{name}' and the checked-out commit have no common ancestor")
        return Change(between(base), f"since {name} ({base[:10]})")
    branch = next((name for name in DEFAULT_BRANCHES if commit(name)), None)
    base = (git("merge-base", "HEAD", branch) or "").strip() if branch else ""
    if base and (files := between(base)):
        return Change(files, f"what {branch} ({base[:10]}) lacks")
    if not base and (files := between("HEAD")):
        return Change(files, "what is not committed")
    return last_day()


def last_day() -> Change:
    newest = int((git("show", "-s", "--format=%ct", "HEAD") or "0").strip())
    commits = (git("log", "--format=%H %ct", "--first-parent") or "").splitlines()
    for line in commits:
        name, when = line.split()
        if newest - int(when) > DAY_S:
            return Change(between(name), f"the commits of the last day, after {name[:10]}")
    return Change(listed(), "history is not older than a day: every file", whole=True)


def between(base: str) -> list[str]:
    """Files that differ between `base` and what is on disk, with those git does not know yet."""
    differ = git("diff", "--name-only", "--no-renames", "-z", base, "--") or ""
    new = git("ls-files", "--others", "--exclude-standard", "-z") or ""
    return sorted({name for name in (differ + new).split("\0") if name})


def listed() -> list[str]:
    names = git("ls-files", "-co", "--exclude-standard", "-z") or ""
    return sorted({name for name in names.split("\0") if name})
