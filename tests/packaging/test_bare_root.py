"""The wheel in a root that holds a Python, libc and libstdc++, and nothing else."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import elf
import pytest

HERE = pathlib.Path(__file__).resolve().parent
LIBC = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1"}
ALLOWED = LIBC | {"libstdc++.so.6", "libgcc_s.so.1"}
NOT_NEEDED = (
    "test",
    "tests",
    "__pycache__",
    "site-packages",
    "dist-packages",
    "idlelib",
    "config-*",
)


def put(root: pathlib.Path, path: pathlib.Path) -> None:
    """Copies one file to the same place below `root`."""
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        shutil.copy2(path.resolve(), target)


def only_libc(path: pathlib.Path) -> bool:
    return {p.name for p in elf.loaded_closure(path) if "ld-linux" not in p.name} <= LIBC


@pytest.fixture(scope="module")
def bare_root(site: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Interpreter, standard library, libc, libstdc++ and the installed wheel."""
    root = tmp_path_factory.mktemp("bare")
    python = pathlib.Path(sys.executable).resolve()
    put(root, python)
    stdlib = pathlib.Path(os.__file__).resolve().parent
    ignored = shutil.ignore_patterns(*NOT_NEEDED)
    shutil.copytree(stdlib, root / stdlib.relative_to("/"), ignore=ignored)
    for module in (root / stdlib.relative_to("/") / "lib-dynload").glob("*.so"):
        original = stdlib / "lib-dynload" / module.name
        if not only_libc(original):
            module.unlink()
    shutil.copytree(site / "nixl", root / "site" / "nixl")
    wanted = elf.loaded_closure(python)
    for path in (site / "nixl").rglob("*.so*"):
        hits = elf.loaded_closure(path)
        wanted += [hit for hit in hits if hit.name in ALLOWED or "ld-linux" in hit.name]
    for library in wanted:
        if "nixl" not in library.parts:
            put(root, library)
    (root / "tmp").mkdir(exist_ok=True)
    shutil.copy(HERE / "bare_program.py", root / "bare_program.py")
    return root


def enter(root: pathlib.Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with `root` as its root folder: chroot, as root or in a user namespace."""
    sbin = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    command = [shutil.which("chroot", path=sbin) or "chroot", str(root), *words]
    if os.geteuid() != 0:
        command = [
            shutil.which("unshare", path=sbin) or "unshare",
            "--user",
            "--map-root-user",
            *command,
        ]
    env = {"PYTHONPATH": "/site", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def inside(bare_root: pathlib.Path):
    python = str(pathlib.Path(sys.executable).resolve())
    tried = enter(bare_root, python, "-c", "print(1)")
    if tried.returncode != 0:
        pytest.skip(f"no chroot and no user namespace here: {tried.stderr.strip()[:200]}")
    return lambda *words: enter(bare_root, python, *words)


def test_root_is_bare(bare_root: pathlib.Path) -> None:
    libraries = {p.name for p in bare_root.rglob("lib*.so*") if p.is_file()}
    libraries -= {name for name in libraries if name.startswith("libplugin_")}  # our own
    foreign = ("uring", "aio", "curl", "ssl", "crypto", "ucp", "fabric", "cuda", "ibverbs", "numa")
    assert not [name for name in libraries if any(part in name for part in foreign)]
    assert not (bare_root / "proc").exists()


def test_import(inside) -> None:
    done = inside("-c", "import nixl; print(nixl.__file__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/site/nixl/")


def test_memory_and_file_transfers_work(inside) -> None:
    done = inside("/bare_program.py", "/tmp/data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all bytes arrived" in done.stdout


def test_a_plugin_without_its_library_says_what_is_missing(inside) -> None:
    code = """if True:
        from nixl._api import nixl_agent, nixl_agent_config
        agent = nixl_agent("bare", nixl_agent_config(backends=[]))
        for name in agent.get_plugin_list():
            try:
                agent.create_backend(name)
                print(name, "ok")
            except Exception as error:
                assert len(str(error)) > 20, f"{name}: {error!r} does not say what is missing"
                print(name, "refused:", error)
    """
    done = inside("-c", code)
    assert done.returncode == 0, done.stdout + done.stderr
