"""./dev doctor: what this machine has for NIXL, what is missing, and what to install.

Runs inside .venv with the built package on PYTHONPATH; asks the package, never guesses for it.
Exit status 1 when something a user would miss silently is wrong (RDMA devices without verbs).
"""

from __future__ import annotations

import ctypes.util
import glob
import logging
import os
import pathlib
import platform
import sys

LIBRARIES = [
    ("UCX", "ucp", "libucp.so.0", "Debian: libucx0, PyPI: libucx-cu13"),
    ("LIBFABRIC", "fabric", "libfabric.so.1", "Debian: libfabric1"),
    ("CUDA driver", "cuda", "libcuda.so.1", "the NVIDIA driver"),
    ("cuFile (GDS)", "cufile", "libcufile.so.0", "PyPI: nvidia-cufile"),
    ("libcurl (OBJ, etcd)", "curl", "libcurl.so.4", "Debian: libcurl4"),
    ("OpenSSL (OBJ)", "crypto", "libcrypto.so.3", "Debian: libssl3"),
    ("3FS client", "hf3fs_api_shared", "libhf3fs_api_shared.so", "the 3FS client package"),
]
INFINIBAND = pathlib.Path("/sys/class/infiniband")
VERBS_ADVICE = (
    "install a UCX with verbs (Debian and Ubuntu: libucx0 ibverbs-providers; the PyPI build has "
    "none) or set NIXL_UCX_LIBRARY to its libucp.so.0"
)


def loads(soname: str, short: str) -> str | None:
    """Where the loader finds a library, or None; nothing is kept."""
    try:
        ctypes.CDLL(soname)
    except OSError:
        return None
    return ctypes.util.find_library(short) or soname


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
    for name in ("torch", "numpy"):
        try:
            version = __import__(name).__version__
        except ImportError as error:
            version = f"absent ({error})"
        print(f"{name:12s} {version}")


def plugins() -> bool:
    """Prints each backend and what it says of itself; False if the package does not load."""
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
    for what, short, soname, package in LIBRARIES:
        found = loads(soname, short)
        print(f"  {what:20s} {found or f'absent; install {package}'}")


def rdma() -> bool:
    """RDMA must never be lost silently: devices without a UCX that has verbs are a failure."""
    devices = sorted(p.name for p in INFINIBAND.glob("*")) if INFINIBAND.is_dir() else []
    if not devices:
        print("RDMA         no InfiniBand or RoCE device on this machine")
        return True
    modules = ucx_modules()
    if modules and loads("libucp.so.0", "ucp"):
        print(f"RDMA         {', '.join(devices)}; UCX verbs module {modules[0]}")
        return True
    print(f"RDMA         FAIL: {', '.join(devices)} present, but no UCX with verbs loads: "
          f"transfers would go over TCP; {VERBS_ADVICE}")  # fmt: skip
    return False


def main() -> int:
    machine()
    good = plugins()
    libraries()
    return 0 if rdma() and good else 1


if __name__ == "__main__":
    sys.exit(main())
