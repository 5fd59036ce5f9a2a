"""./dev doctor: what this machine has for NIXL, what is missing, and what to install.

Installs and builds nothing. What is asked of the package itself runs in a second process, inside
.venv with the built package on PYTHONPATH; it is never guessed. Exit status 1 when nothing is
built, or when something a user would miss silently is wrong (RDMA devices without verbs).
"""

from __future__ import annotations

import ctypes
import glob
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys

LIBRARIES = [
    ("UCX", "libucp.so.0", "Debian: libucx0, PyPI: libucx-cu13"),
    ("LIBFABRIC", "libfabric.so.1", "Debian: libfabric1"),
    ("CUDA driver", "libcuda.so.1", "the NVIDIA driver"),
    ("cuFile (GDS)", "libcufile.so.0", "PyPI: nvidia-cufile"),
    ("libcurl (OBJ, etcd)", "libcurl.so.4", "Debian: libcurl4"),
    ("OpenSSL (OBJ)", "libcrypto.so.3", "Debian: libssl3"),
    ("3FS client", "libhf3fs_api_shared.so", "the 3FS client package"),
]
INFINIBAND = pathlib.Path("/sys/class/infiniband")
VERBS_ADVICE = (
    "install a UCX with verbs (Debian and Ubuntu: libucx0 ibverbs-providers; the PyPI build has "
    "none) or set NIXL_UCX_LIBRARY to its libucp.so.0"
)


def loads(soname: str) -> str | None:
    """Where the loader finds a library, or None."""
    try:
        ctypes.CDLL(soname)
    except OSError:
        return None
    mapped = pathlib.Path("/proc/self/maps").read_text().split()
    stem = soname.split(".so")[0]
    return next((word for word in mapped if pathlib.Path(word).name.startswith(stem)), soname)


def ucx_modules() -> list[str]:
    """The UCX transport modules with verbs that are installed, system-wide or from PyPI."""
    named = os.environ.get("NIXL_UCX_LIBRARY")
    roots = [str(pathlib.Path(named).parent)] if named else []
    roots += ["/usr/lib", "/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/local/lib", "/opt/ucx/lib"]
    roots += [f"{entry}/libucx/lib" for entry in sys.path if entry]
    return [hit for root in roots for hit in glob.glob(f"{root}/ucx/libuct_ib*.so*")]


def machine() -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(f"machine      {platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
          f"{memory / 2**30:.0f} GiB, Linux {platform.release()}")  # fmt: skip
    print(f"python       {platform.python_version()} at {sys.executable}")


def tools() -> None:
    """What building and testing would install."""
    import environment  # only here: the process inside .venv does without

    for tool in environment.TOOLS:
        print(f"{tool:12s} {shutil.which(tool) or 'absent'}")
    if not shutil.which("dpkg-query"):
        print("packages     no dpkg here: README.md lists what to install")
        return
    for name, group in environment.GROUPS.items():
        needed, optional = environment.packages([name])
        lacking = environment.missing_packages([*needed, *optional])
        pending = name in environment.groups_pending([name]) and group.pip
        parts = [f"apt install {' '.join(lacking)}"] if lacking else []
        parts += [f"in .venv: tools/requirements-{group.pip}.txt"] if pending else []
        print(f"  {group.what:40s} {'; '.join(parts) or 'all there'}")


def version_of(name: str) -> str:
    """A package's version, read without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return "absent"
    file = pathlib.Path(spec.submodule_search_locations[0]) / "version.py"
    found = re.search(r"__version__ = '([^']+)'", file.read_text()) if file.exists() else None
    return found.group(1) if found else "there"


def plugins() -> bool:
    """Prints each backend and what it says of itself; False if the package does not load."""
    for name in ("torch", "numpy"):
        print(f"{name:12s} {version_of(name)}")
    try:
        import nixl
    except ImportError as error:
        print(f"nixl         FAIL: {error}")
        return False
    print(f"nixl         {getattr(nixl, '__version__', '?')} at {nixl.__file__}")
    logging.getLogger("nixl").setLevel(logging.ERROR)  # every reason is in the table below
    agent = nixl.nixl_agent("doctor", nixl.nixl_agent_config(backends=[]))
    for name in agent.get_plugin_list():
        try:
            kinds = ", ".join(agent.get_plugin_mem_types(name)) or "off"
            agent.create_backend(name)
            state = "ok"
        except Exception as error:  # a backend may raise any class; each is only reported
            state = f"not usable here: {error}"
        print(f"  {name:12s} {kinds:24s} {state}")
    return True


def libraries() -> None:
    print("libraries that plugins open where they exist:")
    for what, soname, package in LIBRARIES:
        print(f"  {what:20s} {loads(soname) or f'absent; install {package}'}")


def rdma() -> bool:
    """RDMA must never be lost silently: devices without a UCX that has verbs are a failure."""
    devices = sorted(p.name for p in INFINIBAND.glob("*")) if INFINIBAND.is_dir() else []
    if not devices:
        print("RDMA         no InfiniBand or RoCE device on this machine")
        return True
    modules = ucx_modules()
    if modules and loads("libucp.so.0"):
        print(f"RDMA         {', '.join(devices)}; UCX verbs module {modules[0]}")
        return True
    print(f"RDMA         FAIL: {', '.join(devices)} present, but no UCX with verbs loads: "
          f"transfers would go over TCP; {VERBS_ADVICE}")  # fmt: skip
    return False


def built() -> bool:
    """Asks the newest built package; False where there is none, or it does not work."""
    from common import BUILD, VENV_PYTHON, venv_env

    modules = sorted(BUILD.glob("*/python/nixl/_bindings.*so"), key=lambda p: p.stat().st_mtime)
    if not modules or not VENV_PYTHON.exists():
        what = "not built" if VENV_PYTHON.exists() else "neither built nor set up"
        print(f"nixl         {what}: `./dev demo` or `./dev build` builds it")
        return False
    sys.stdout.flush()
    env = venv_env(PYTHONPATH=str(modules[-1].parents[1]))
    return subprocess.run([VENV_PYTHON, __file__, "--package"], env=env).returncode == 0


def main(words: list[str]) -> int:
    if words == ["--package"]:
        return 0 if plugins() else 1
    machine()
    tools()
    good = built()
    libraries()
    return 0 if rdma() and good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
