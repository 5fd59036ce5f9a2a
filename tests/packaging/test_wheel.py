"""The wheel: name, contents, size, what its files need and offer."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import zipfile

import elf
import pytest
from conftest import ROOT, run

SIZE_LIMIT = 10 << 20
# libc is libc.so.6, libm and the loader; libstdc++ brings libgcc_s.
CXX_RUNTIME = {"libc.so.6", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1"} | {
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}
CORE = "libnixl.so.1"
GLIBC_LIMIT = (2, 34)


@pytest.fixture(scope="session")
def binaries(site: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in (site / "nixl").rglob("*") if elf.is_elf(path))


def plugins_named(site: pathlib.Path, name: str) -> list[pathlib.Path]:
    """The plugin files of one backend; names compare without case."""
    folder = site / "nixl" / "lib" / "plugins"
    return [p for p in folder.glob("*.so") if p.name.lower() == f"libplugin_{name}.so"]


def test_metadata(wheel: pathlib.Path) -> None:
    assert wheel.name.startswith("nixl-1.6.0-")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
        licences = [n for n in archive.namelist() if n.endswith("LICENSE")]
    assert re.search(r"^Name: nixl$", text, re.M)
    assert re.search(r"^Version: 1\.6\.0$", text, re.M)
    assert re.search(r"^Requires-Python: >=3\.10$", text, re.M)
    extras = re.findall(r"^Provides-Extra: (\S+)$", text, re.M)
    assert sorted(extras) == ["cu12", "cu13", "disaggregation"]
    # Nothing but what an extra asks for.
    assert not re.findall(r"^Requires-Dist: (?!.*; extra ==).*$", text, re.M)
    assert licences


def test_version_of_the_distribution_is_seen(wheel_python: pathlib.Path) -> None:
    code = "import importlib.metadata as m, nixl; print(m.version('nixl'))"
    assert run(wheel_python, "-c", code).strip() == "1.6.0"


def test_extras_can_be_asked_for(wheel: pathlib.Path, wheel_python: pathlib.Path) -> None:
    options = ["--no-index", "--dry-run", "-q", "--disable-pip-version-check"]
    for extra in ("cu12", "cu13"):
        run(wheel_python, "-m", "pip", "install", *options, f"{wheel}[{extra}]")


def test_contents(site: pathlib.Path) -> None:
    package = site / "nixl"
    assert (package / "py.typed").exists()
    assert (package / "lib" / CORE).exists()
    assert list((package / "lib" / "plugins").glob("libplugin_*.so"))
    for alias in ("nixl_cu12", "nixl_cu13"):
        assert (site / alias / "__init__.py").exists()
    installed = {p.name for p in package.rglob("*") if p.is_file()}
    sources = {p.name for p in (ROOT / "python" / "nixl").rglob("*.py*") if p.is_file()}
    assert {n for n in sources if not n.endswith(".pyc")} <= installed


def test_installed_size(site: pathlib.Path) -> None:
    folders = [site / n for n in ("nixl", "nixl_cu12", "nixl_cu13")]
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files if "__pycache__" not in p.parts)
    assert size <= SIZE_LIMIT, f"{size / 2**20:.1f} MiB installed"


def test_nothing_of_the_systems_is_bundled(binaries: list[pathlib.Path]) -> None:
    ours = re.compile(
        r"libnixl\.so\.1|lib(?:plugin|telemetry_exporter)_\w+\.so|_(?:bindings|hicache)\.\S*so"
    )
    assert not [p.name for p in binaries if not ours.fullmatch(p.name)]


def test_core_and_posix_need_only_libc_and_libstdcxx(site: pathlib.Path) -> None:
    lib = site / "nixl" / "lib"
    assert set(elf.dynamic(lib / CORE, "NEEDED")) <= CXX_RUNTIME
    for name in ("posix", "ucx", "gusli", "hf3fs"):
        for plugin in plugins_named(site, name):
            assert set(elf.dynamic(plugin, "NEEDED")) <= CXX_RUNTIME | {CORE}
    (module,) = (site / "nixl").glob("_bindings*.so")
    assert set(elf.dynamic(module, "NEEDED")) <= CXX_RUNTIME | {CORE}


def test_the_command_runs(wheel_python: pathlib.Path) -> None:
    command = wheel_python.with_name("nixl")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert {"top", "bench", "doctor", "hicache"} <= set(re.findall(r"\w+", shown.stdout))
    # It has what the package brings along; tables and pictures come with the extras.
    told = subprocess.run([command, "doctor"], capture_output=True, text=True, timeout=240)
    assert told.returncode in (0, 1) and "Traceback" not in told.stderr, told.stderr
    assert "POSIX" in told.stdout


@pytest.mark.parametrize("name", ["posix", "gusli", "hf3fs"])
def test_storage_plugin_is_there(site: pathlib.Path, name: str) -> None:
    if not (ROOT / "plugins" / name).is_dir():
        pytest.skip(f"no plugins/{name} in this tree")
    assert plugins_named(site, name)


def test_gds_plugins_are_there(site: pathlib.Path) -> None:
    assert plugins_named(site, "gds") and plugins_named(site, "gds_mt")


def test_obj_plugin_is_there_and_leaves_libraries_to_the_system(site: pathlib.Path) -> None:
    if not shutil.which("curl-config"):
        pytest.skip("libcurl's headers are not installed, so plugin OBJ is off")
    (plugin,) = plugins_named(site, "obj")
    needed = set(elf.dynamic(plugin, "NEEDED"))
    assert needed <= CXX_RUNTIME | {CORE, "libcurl.so.4", "libcrypto.so.3"}
    assert "libcurl.so.4" in needed


def test_core_is_found_by_runpath_beside_the_file(binaries: list[pathlib.Path]) -> None:
    for path in binaries:
        assert not elf.dynamic(path, "RPATH"), f"{path.name}: RPATH instead of RUNPATH"
        (runpath,) = elf.dynamic(path, "RUNPATH")
        entries = runpath.split(":")
        assert all(e.startswith("$ORIGIN") for e in entries), f"{path.name}: {runpath}"
        if CORE in elf.dynamic(path, "NEEDED"):
            folders = [pathlib.Path(e.replace("$ORIGIN", str(path.parent))) for e in entries]
            assert any((f / CORE).exists() for f in folders), f"{path.name}: no {CORE} by {runpath}"


def test_no_symbol_is_newer_than_glibc_2_34(binaries: list[pathlib.Path]) -> None:
    late = [
        f"{path.name}: {symbol}@GLIBC_{'.'.join(map(str, version))}"
        for path in binaries
        for symbol, version in elf.wanted_versions(path, "GLIBC").items()
        if version > GLIBC_LIMIT
    ]
    assert not late


def test_library_exports_only_the_public_abi(site: pathlib.Path) -> None:
    public = re.compile(
        r"nixl_\w+|(?:(?:typeinfo|typeinfo name|vtable|VTT) for )?nixl::.*"
        r"|(?:virtual thunk|non-virtual thunk) to nixl::.*"
    )
    names = elf.exported(site / "nixl" / "lib" / CORE)
    assert "nixl_version" in names
    assert not [name for name in names if not public.match(name)]


def test_every_exported_class_is_in_a_public_header(site: pathlib.Path) -> None:
    headers = "".join(p.read_text() for p in (ROOT / "include").rglob("*.h"))
    found = set()
    for name in elf.exported(site / "nixl" / "lib" / CORE):
        if match := re.match(r"(?:\w+ for )?nixl::(?:detail::)?(\w+)", name):
            found.add(match.group(1))
    assert not sorted(n for n in found if not re.search(rf"\b{n}\b", headers))


def test_a_plugin_exports_one_symbol(site: pathlib.Path) -> None:
    for plugin in (site / "nixl" / "lib" / "plugins").glob("*.so"):
        assert elf.exported(plugin) == ["nixlPluginTable"], plugin.name


def test_no_build_path_in_any_file(binaries: list[pathlib.Path]) -> None:
    marks = [str(ROOT).encode()]
    for path in binaries:
        data = path.read_bytes()
        assert not [m for m in marks if m in data], f"{path.name} holds the path {ROOT}"


def test_import_needs_neither_torch_nor_numpy(wheel_python: pathlib.Path) -> None:
    code = "import nixl, sys; print([m for m in ('torch', 'numpy', 'ctypes') if m in sys.modules])"
    assert "torch" not in run(wheel_python, "-c", code, env={"PYTHONNOUSERSITE": "1"})


def test_aliases_are_the_same_module(wheel_python: pathlib.Path) -> None:
    code = "import nixl, nixl_cu12, nixl_cu13; print(nixl_cu12.nixl_agent is nixl.nixl_agent)"
    assert run(wheel_python, "-c", code, cwd=os.path.dirname(wheel_python)).strip() == "True"
