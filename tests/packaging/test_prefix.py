"""The install prefix and the build tree: C++ consumers, plugins outside the tree, PYTHONPATH."""

from __future__ import annotations

import os
import pathlib
import shutil
import sys

import pytest
from conftest import ROOT, run

HERE = pathlib.Path(__file__).resolve().parent
CODE = "import nixl, nixl._api, nixl._utils; print(nixl.__file__)"


def lib_dir(prefix: pathlib.Path) -> pathlib.Path:
    (found,) = prefix.glob("lib*/libnixl.so.1") or prefix.glob("lib/*/libnixl.so.1")
    return found.parent


def test_files(prefix: pathlib.Path) -> None:
    lib = lib_dir(prefix)
    for name in ("agent.h", "backend.h", "plugin.h", "version.h"):
        assert (prefix / "include" / "nixl" / name).exists(), name
    assert (lib / "libnixl.so").is_symlink()
    assert (lib / "cmake" / "nixl" / "nixlConfig.cmake").exists()
    assert (lib / "pkgconfig" / "nixl.pc").exists()
    assert list((lib / "nixl" / "plugins").glob("libplugin_*.so"))


def test_every_public_header_stands_alone(prefix: pathlib.Path, tmp_path: pathlib.Path) -> None:
    include = prefix / "include"
    headers = sorted(include.rglob("*.h"))
    source = tmp_path / "one.cpp"
    for header in headers:
        source.write_text(f'#include "{header.relative_to(include)}"\n')
        flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{include}"]
        run("c++", *flags, source)


def test_cmake_consumer(prefix: pathlib.Path, tmp_path: pathlib.Path) -> None:
    build = tmp_path / "build"
    run("cmake", "-S", HERE / "consumer", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    assert "moved 4096 bytes" in run(build / "consumer")


def test_pkg_config_consumer(prefix: pathlib.Path, tmp_path: pathlib.Path) -> None:
    if not shutil.which("pkg-config"):
        pytest.skip("no pkg-config on this machine")
    env = {"PKG_CONFIG_PATH": str(lib_dir(prefix) / "pkgconfig")}
    flags = run("pkg-config", "--cflags", "--libs", "nixl", env=env).split()
    assert run("pkg-config", "--modversion", "nixl", env=env).strip() == "1.6.0"
    binary = tmp_path / "consumer"
    source = HERE / "consumer" / "main.cpp"
    rpath = f"-Wl,-rpath,{lib_dir(prefix)}"
    run("c++", "-std=c++20", "-Wall", "-Wextra", "-Werror", source, "-o", binary, *flags, rpath)
    assert "moved 4096 bytes" in run(binary)


def test_plugin_outside_the_tree(prefix: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """find_package(nixl) gives nixl_add_plugin; the library finds the result by NIXL_PLUGIN_DIR."""
    build = tmp_path / "build"
    run("cmake", "-S", HERE / "outside_plugin", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    folder = next(build.rglob("libplugin_outside.so")).parent
    shown = run(build / "list_plugins", env={"NIXL_PLUGIN_DIR": str(folder)})
    assert "OUTSIDE" in shown.split()


@pytest.mark.parametrize("where", ["build tree", "prefix"])
def test_python_import_by_path(
    where: str, build_tree: pathlib.Path, prefix: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    if not (ROOT / "python" / "nixl" / "__init__.py").exists():
        pytest.skip("no Python package in this tree")
    if where == "prefix":
        (path,) = prefix.glob("lib*/python3*/site-packages")
    else:
        path = build_tree / "python"
    shown = run(sys.executable, "-c", CODE, env={"PYTHONPATH": str(path)}, cwd=tmp_path)
    assert os.path.commonpath([shown.strip(), str(path)]) == str(path)
    plugins = (
        "from nixl._api import nixl_agent, nixl_agent_config as c;"
        "print(nixl_agent('a', c(backends=[])).get_plugin_list())"
    )
    env = {"PYTHONPATH": str(path)}
    assert "POSIX" in run(sys.executable, "-c", plugins, env=env, cwd=tmp_path)
