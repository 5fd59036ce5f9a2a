"""What the tests ask of ELF files, answered by readelf and nm (binutils)."""

from __future__ import annotations

import pathlib
import re
import subprocess


def _tool(*words: str | pathlib.Path) -> str:
    return subprocess.run(
        [str(w) for w in words], check=True, capture_output=True, text=True
    ).stdout


def dynamic(path: pathlib.Path, tag: str) -> list[str]:
    """The values of one dynamic tag: NEEDED, SONAME, RUNPATH, RPATH."""
    text = _tool("readelf", "-d", "-W", path)
    return re.findall(rf"\({tag}\).*?\[(.*?)\]", text)


def exported(path: pathlib.Path) -> list[str]:
    """Demangled names of the symbols a library offers, versions left out."""
    text = _tool("nm", "-D", "-C", "--defined-only", "--without-symbol-versions", path)
    rows = (line.split(maxsplit=2) for line in text.splitlines())
    return [row[2] for row in rows if len(row) == 3 and row[1] not in "aA"]


def wanted_versions(path: pathlib.Path, prefix: str) -> dict[str, tuple[int, ...]]:
    """Symbol → version of what a file wants from a library, such as memcpy → (2, 14)."""
    text = _tool("nm", "-D", "--undefined-only", "--with-symbol-versions", path)
    found = {}
    for name, version in re.findall(rf"(\S+)@+{prefix}_([0-9.]+)", text):
        found[name] = tuple(int(part) for part in version.split("."))
    return found


def is_elf(path: pathlib.Path) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def loaded_closure(path: pathlib.Path) -> list[pathlib.Path]:
    """Every library the loader maps for a file, the loader itself included (ldd)."""
    text = _tool("ldd", path)
    return [pathlib.Path(hit) for hit in re.findall(r"(?:=> )?(/\S+) \(0x", text)]
