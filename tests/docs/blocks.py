"""Finds and runs the code blocks of a Markdown file; the directives are described in README.md."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETUP = pathlib.Path(__file__).resolve().parent / "setup"
SUFFIX = {"python": ".py", "cpp": ".cpp", "bash": ".sh"}
SAME = {"py": "python", "c++": "cpp", "sh": "bash", "shell": "bash"}
DIRECTIVES = {"not-run", "setup", "continue", "needs", "file", "cwd", "exit", "prints"}
TIME_LIMIT_S = 120


class BadDirective(Exception):
    """A comment that looks like a directive and is none."""


@dataclasses.dataclass
class Block:
    document: pathlib.Path
    line: int
    language: str
    text: str
    directives: dict[str, str]

    @property
    def name(self) -> str:
        return f"{os.path.relpath(self.document, ROOT)}:{self.line}-{self.language}"


def parse_directives(comment: str, where: str) -> dict[str, str]:
    found = {}
    for part in comment.split(";"):
        key, _, value = part.strip().partition(":")
        if key.strip() not in DIRECTIVES:
            raise BadDirective(f"{where}: '{part.strip()}'; there are: {sorted(DIRECTIVES)}")
        found[key.strip()] = value.strip()
    return found


def find_blocks(document: pathlib.Path) -> list[Block]:
    blocks = []
    comment, before = "", ""
    lines = iter(enumerate(document.read_text().splitlines(), 1))
    for number, line in lines:
        fence = re.match(r"(\s*)(`{3,}|~{3,})\s*([\w+]*)", line)
        if not fence:
            if line.strip():
                before = line.strip()
            continue
        marked = re.fullmatch(r"<!--\s*test:\s*(.*?)\s*-->", before)
        comment = marked.group(1) if marked else ""
        body = []
        for _, text in lines:
            if text.strip() == fence.group(2):
                break
            body.append(text.removeprefix(fence.group(1)))
        before = ""
        language = SAME.get(fence.group(3), fence.group(3))
        if language in SUFFIX:
            where = f"{document.name}:{number}"
            directives = parse_directives(comment, where) if comment else {}
            blocks.append(Block(document, number, language, "\n".join(body) + "\n", directives))
    return blocks


def unmet_need(block: Block) -> str | None:
    """Why this machine cannot run the block, or None."""
    for need in filter(None, (n.strip() for n in block.directives.get("needs", "").split(","))):
        kind, _, name = need.rpartition("/")
        if kind == "cmd":
            met = shutil.which(name) is not None
        elif kind == "env":
            met = name in os.environ
        else:
            met = importlib.util.find_spec(name) is not None
        if not met:
            return f"needs {need}, which is not on this machine"
    return None


def program(block: Block, earlier: list[Block]) -> str:
    """The whole text to run: set-up, what a `continue` block continues, and the block."""
    parts = [block.text]
    head = block
    for other in reversed(earlier):
        if "continue" not in head.directives:
            break
        if other.language == block.language and "not-run" not in other.directives:
            parts.insert(0, other.text)
            head = other
    text = "".join(parts)
    for name in filter(None, (n.strip() for n in head.directives.get("setup", "").split(","))):
        setup = (SETUP / f"{name}{SUFFIX[block.language]}").read_text()
        marked = "// BLOCK\n" in setup
        text = setup.replace("// BLOCK\n", text) if marked else setup + text
    return text


def run_block(block: Block, earlier: list[Block], folder: pathlib.Path, prefix: str) -> None:
    """Runs one block in `folder`; AssertionError with its output if it does not do as it should."""
    text = program(block, earlier)
    if name := block.directives.get("file"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    source = folder / f"block_{block.line}{SUFFIX[block.language]}"
    source.write_text(text)
    if block.language == "cpp":
        binary = source.with_suffix("")
        execute(compile_command(source, binary), folder, prefix, 0, block.name)
        command = [str(binary)]
    elif block.language == "python":
        command = [sys.executable, str(source)]
    else:
        command = ["bash", "-euo", "pipefail", str(source)]
    cwd = ROOT if block.directives.get("cwd") == "root" else folder
    wanted = int(block.directives.get("exit", "0"))
    output = execute(command, cwd, prefix, wanted, block.name)
    if expected := block.directives.get("prints"):
        assert expected in output, f"{block.name}: '{expected}' is not in the output:\n{output}"


def compile_command(source: pathlib.Path, binary: pathlib.Path) -> list[str]:
    build = pathlib.Path(os.environ["NIXL_BUILD_DIR"])
    compiler = shutil.which("c++") or "g++"
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-pthread"]
    includes = [f"-I{ROOT / 'include'}", f"-I{build / 'generated'}"]
    link = [f"-L{build / 'lib'}", "-lnixl", f"-Wl,-rpath,{build / 'lib'}"]
    return [compiler, *flags, *includes, str(source), "-o", str(binary), *link]


def execute(command: list[str], folder: pathlib.Path, prefix: str, wanted: int, name: str) -> str:
    env = dict(os.environ, NIXL_SOURCE=str(ROOT))
    if prefix:
        env["CMAKE_PREFIX_PATH"] = prefix
        env["PKG_CONFIG_PATH"] = os.pathsep.join(
            str(p) for p in pathlib.Path(prefix).glob("lib*/**/pkgconfig")
        )
        env["LD_LIBRARY_PATH"] = f"{prefix}/lib"
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT_S,
        )
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"{name}: still running after {TIME_LIMIT_S} s") from late
    assert (
        done.returncode == wanted
    ), f"{name}: exit status {done.returncode}, expected {wanted}\n{done.stdout}"
    return done.stdout
