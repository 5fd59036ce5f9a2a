"""./dev release: the files of a release in dist/, each tried: sdist, wheels, checksums.

The changelog must know the version (--draft: a version in preparation will do). The wheel is built
from the sdist, so that nothing is missing in that; auditwheel names the oldest systems it runs on;
tests/packaging tries the same file, in a root with nothing but a Python and the C++ runtime too.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import shutil
import zipfile

import aarch64
from common import LOGS, ROOT, VENV_PYTHON, Failure, must, say, venv_env

DIST = ROOT / "dist"
# Of the system, for plugins that say what to install where they are missing (see their READMEs):
# a copy in the wheel would be one that nobody mends when the system's is.
OF_THE_SYSTEM = ("libcurl.so.*", "libcrypto.so.*", "libprometheus-cpp-pull.so.*")
HEADING = re.compile(r"^## (\S+) \(([^)]*)\)$", re.M)
DATE = re.compile(r"\d{4}-\d\d-\d\d$")


def version() -> str:
    """The one version that the tree states; stated twice, it must be the same."""
    stated = {}
    for name, pattern in (
        ("pyproject.toml", r'^version = "([^"]+)"'),
        ("CMakeLists.txt", r"^  VERSION (\S+)"),
    ):
        found = re.search(pattern, (ROOT / name).read_text(), re.M)
        stated[name] = found.group(1) if found else "nothing"
    if len(set(stated.values())) != 1:
        raise Failure(f"release: the files state different versions: {stated}")
    return stated["pyproject.toml"]


def check_changelog(text: str, wanted: str, draft: bool) -> None:
    """The newest heading is this version with its date, and there is something below it."""
    found = HEADING.search(text)
    if not found or found.group(1) != wanted:
        raise Failure(f"release: the newest heading of CHANGELOG.md is not '## {wanted} (DATE)'")
    if not DATE.match(found.group(2)) and not draft:
        raise Failure(
            f"release: CHANGELOG.md: {wanted} ({found.group(2)}): write the date, as 2026-01-31; "
            "--draft makes the files all the same"
        )
    section = text[found.end() :].split("\n## ")[0]
    if not re.search(r"^- ", section, re.M):
        raise Failure(f"release: CHANGELOG.md says nothing about {wanted}")


def command(draft: bool, for_aarch64: bool) -> int:
    name = version()
    check_changelog((ROOT / "CHANGELOG.md").read_text(), name, draft)
    shutil.rmtree(DIST, ignore_errors=True)
    for old in LOGS.glob("release*.log"):
        old.unlink()
    say(f"release {name}: sdist, and the wheel from it")
    must([VENV_PYTHON, "-m", "build", "--outdir", DIST, "."], "release-build", "python -m build")
    (sdist,) = DIST.glob("*.tar.gz")
    wheels = [repaired(wheel) for wheel in DIST.glob("*.whl")]
    say(f"trying {wheels[0].name}: tests/packaging, the bare root among them")
    tried = ["tests/packaging/test_wheel.py", "tests/packaging/test_bare_root.py"]
    must(
        [VENV_PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tried],
        "release-try",
        "trying the wheel",
        env=venv_env(NIXL_WHEEL=str(wheels[0])),
    )
    if for_aarch64:
        wheels.append(repaired(aarch64.wheel(sdist, DIST)))
        aarch64.tests()
    sums = DIST / "SHA256SUMS"
    sums.write_text("".join(checksum(path) for path in sorted([sdist, *wheels])))
    say("\n" + sums.read_text() + f"\nin {DIST.relative_to(ROOT)}/; `sha256sum -c SHA256SUMS`")
    return 0


def checksum(path: pathlib.Path) -> str:
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"


def repaired(wheel: pathlib.Path) -> pathlib.Path:
    """The wheel with the tag of the oldest systems that it runs on, which auditwheel finds; it must
    need no other library of the system that would have to be copied into it."""
    tool = [VENV_PYTHON, "-m", "auditwheel"]
    folder = DIST / "tagged"
    left = [word for name in OF_THE_SYSTEM for word in ("--exclude", name)]
    command = [*tool, "repair", *left, "--wheel-dir", folder, wheel]
    must(command, "release-auditwheel", "auditwheel repair")
    (made,) = folder.glob("*.whl")
    if "manylinux" not in made.name:
        raise Failure(f"release: auditwheel gives {made.name} no manylinux tag")
    final = DIST / made.name
    made.replace(final)
    folder.rmdir()
    wheel.unlink()
    with zipfile.ZipFile(final) as archive:
        listed = archive.namelist()
    if any(name.startswith("nixl.libs/") for name in listed):
        raise Failure(f"release: auditwheel copied libraries of the system into {final.name}")
    say(f"auditwheel: {final.name}")
    return final
