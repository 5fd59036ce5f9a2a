"""``python -m nixl.doctor``: what this machine has for NIXL, what is missing, and what to do.

``./dev doctor`` and ``check_nixl_plugins.py`` are the same. Each line is ``ok``, ``note`` (works,
slower or without something), or ``FAIL`` (what a user would miss); exit status 1 with any FAIL.
Asks the package, the loader and the system; writes nothing anywhere.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import errno
import glob
import json
import logging
import os
import pathlib
import platform
import re
import resource
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable

LIBRARIES = [
    ("UCX", "ucp", "libucp.so.0", "Debian: libucx0, PyPI: libucx-cu13"),
    ("LIBFABRIC", "fabric", "libfabric.so.1", "Debian: libfabric1"),
    (
        "Mooncake (MOONCAKE)",
        "transfer_engine",
        "libtransfer_engine.so",
        "Mooncake, built with -DBUILD_SHARED_LIBS=ON",
    ),
    ("CUDA driver", "cuda", "libcuda.so.1", "the NVIDIA driver"),
    ("cuFile (GDS)", "cufile", "libcufile.so.0", "PyPI: nvidia-cufile"),
    ("libcurl (OBJ, etcd)", "curl", "libcurl.so.4", "Debian: libcurl4"),
    ("OpenSSL (OBJ)", "crypto", "libcrypto.so.3", "Debian: libssl3"),
    ("DOCA (GPUNETIO)", "doca_gpunetio", "libdoca_gpunetio.so", "NVIDIA DOCA (doca-sdk-gpunetio)"),
    ("3FS client", "hf3fs_api_shared", "libhf3fs_api_shared.so", "the 3FS client package"),
    ("GUSLI adapter", "nixl_gusli_adapter", "libnixl_gusli_adapter.so", "see plugins/gusli"),
]
# The variable that names a library to the plugin instead of the system.
NAMED_BY = {
    "libtransfer_engine.so": "NIXL_MOONCAKE_LIBRARY",
    "libhf3fs_api_shared.so": "NIXL_HF3FS_LIBRARY",
    "libdoca_gpunetio.so": "NIXL_DOCA_LIBRARY",
    "libnixl_gusli_adapter.so": "NIXL_GUSLI_LIBRARY",
    "libfabric.so.1": "NIXL_LIBFABRIC_LIBRARY",
}
FABRIC_PROVIDERS = ("efa", "verbs", "tcp")
INFINIBAND = pathlib.Path("/sys/class/infiniband")
YAMA = pathlib.Path("/proc/sys/kernel/yama/ptrace_scope")
URING_DISABLED = pathlib.Path("/proc/sys/kernel/io_uring_disabled")
VERBS_ADVICE = (
    "install a UCX with verbs (Debian and Ubuntu: libucx0 ibverbs-providers; the PyPI build has "
    "none) or set NIXL_UCX_LIBRARY to its libucp.so.0"
)
SYS_IO_URING_SETUP = 425
LITTLE_MEMLOCK = 64 << 20
LITTLE_FILES = 4096
ETCD_SECONDS = 5.0

_failed = False


def say(state: str, what: str, text: str) -> bool:
    """One line of the report; whether it is no failure."""
    global _failed
    _failed = _failed or state == "FAIL"
    print(f"{state:5s} {what:20s} {text}")
    return state != "FAIL"


def loads(soname: str, short: str) -> str | None:
    """Where the loader finds a library, or None."""
    try:
        ctypes.CDLL(soname)
    except OSError:
        return None
    return ctypes.util.find_library(short) or soname


def machine() -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    text = f"{platform.machine()}, {cores} cores, {memory:.0f} GiB, Linux {platform.release()}"
    say("ok", "machine", text)
    say("ok", "python", f"{platform.python_version()} at {sys.executable}")
    for name in ("numpy", "torch"):
        try:
            say("ok", name, __import__(name).__version__)
        except Exception as error:  # a broken one raises whatever it likes
            say("note", name, f"cannot be imported ({error}); only needed for its own tensors")


def plugins() -> bool:
    """Each backend and what it says of itself."""
    try:
        import nixl
    except ImportError as error:
        return say("FAIL", "nixl", f"{error}; pip install nixl, or from a build tree set "
                                   "PYTHONPATH=build/release/python")  # fmt: skip
    say("ok", "nixl", f"{getattr(nixl, '__version__', '?')} at {os.path.dirname(nixl.__file__)}")
    folder = os.environ.get("NIXL_PLUGIN_DIR")
    for part in (folder or "").split(":"):
        if part and not os.path.isdir(part):
            say("FAIL", "NIXL_PLUGIN_DIR", f"{part} is no folder; unset it, or name the right one")
    logging.getLogger("nixl").setLevel(logging.ERROR)  # every reason is in the table below
    config = nixl.nixl_agent_config(backends=[], use_etcd=False)
    works = 0
    with nixl.nixl_agent(f"doctor-{os.getpid()}", config) as agent:
        names = agent.get_plugin_list()
        if not names:
            where = folder or "beside libnixl.so.1"
            say(
                "FAIL", "plugins", f"none is found ({where}); install again, or set NIXL_PLUGIN_DIR"
            )
        for name in names:
            try:
                kinds = ", ".join(agent.get_plugin_mem_types(name)) or "off"
                agent.create_backend(name)
                works += 1
                say("ok", f"plugin {name}", kinds)
            except Exception as error:  # a backend may raise any class; each is only reported
                say("note", f"plugin {name}", f"not usable here: {error}")
    if names and not works:
        say("FAIL", "plugins", "none of them is usable; the lines above say why")
    return not _failed


def libraries() -> None:
    """Libraries that plugins open where they exist."""
    for what, short, soname, package in LIBRARIES:
        path = os.environ.get(NAMED_BY.get(soname, "")) or soname
        if os.path.isdir(path):  # the folder of several libraries
            path = os.path.join(path, soname)
        found = loads(path, short)
        if found:
            say("ok", what, found)
        else:
            variable = NAMED_BY.get(soname)
            named = f", or set {variable} to its path" if variable else ""
            say("note", what, f"absent; where it is wanted, install {package}{named}")


def fabric_providers() -> bool:
    """What of libfabric the backend LIBFABRIC can use here; each is tried."""
    import nixl

    works, errors = [], {}
    for provider in FABRIC_PROVIDERS:
        config = nixl.nixl_agent_config(backends=[], use_etcd=False)
        with nixl.nixl_agent(f"doctor-{provider}-{os.getpid()}", config) as agent:
            if "LIBFABRIC" not in agent.get_plugin_list():
                return say("note", "libfabric providers", "this build has no plugin LIBFABRIC")
            try:
                agent.create_backend("LIBFABRIC", {"provider": provider})
                works.append(provider)
            except Exception as error:  # a backend may raise any class; each is only reported
                errors[provider] = error
    if not works:
        return say("note", "libfabric providers", f"none: {errors['tcp']}")
    text = f"{', '.join(works)}; no device of {', '.join(errors) or 'none'}"
    if rdma_devices() and not {"efa", "verbs"} & set(works):
        text += f"; LIBFABRIC would go over TCP although there is RDMA: {errors['verbs']}"
        return say("note", "libfabric providers", text)
    return say("ok", "libfabric providers", text)


def ucx_modules() -> list[str]:
    """The UCX transport modules with verbs that are installed, system-wide or from PyPI."""
    named = os.environ.get("NIXL_UCX_LIBRARY")
    roots = [str(pathlib.Path(named).parent)] if named else []
    roots += ["/usr/lib", "/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/local/lib", "/opt/ucx/lib"]
    roots += [f"{entry}/libucx/lib" for entry in sys.path if entry]
    return [hit for root in roots for hit in glob.glob(f"{root}/ucx/libuct_ib*.so*")]


def ucx_engines() -> bool:
    """What UCX_MO would spread over by itself, and the devices it can be given."""
    devices = sorted([name for _, name in socket.if_nameindex()] + rdma_devices())
    try:
        from nixl import _bindings

        gpus = len(_bindings._deviceStatus()["devices"])
    except ImportError:
        return True  # said above
    engines = f"{gpus} engines, one for each GPU" if gpus > 1 else "one engine"
    return say("ok", "UCX_MO", f"{engines}, unless ucx_devices names some of: {' '.join(devices)}")


def rdma_devices() -> list[str]:
    return sorted(p.name for p in INFINIBAND.glob("*")) if INFINIBAND.is_dir() else []


def rdma() -> bool:
    """RDMA must never be lost silently: devices without a UCX that has verbs are a failure."""
    devices = rdma_devices()
    if not devices:
        return say("ok", "RDMA", "no InfiniBand or RoCE device on this machine")
    modules = ucx_modules()
    if modules and loads("libucp.so.0", "ucp"):
        return say("ok", "RDMA", f"{', '.join(devices)}; UCX verbs module {modules[0]}")
    text = f"{', '.join(devices)} present, but no UCX with verbs loads: transfers would go over TCP"
    return say("FAIL", "RDMA", f"{text}; {VERBS_ADVICE}")


READ_ANOTHER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
class IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
here = ctypes.create_string_buffer(4)
near, far = IoVec(ctypes.addressof(here), 4), IoVec(int(sys.argv[2]), 4)
got = libc.process_vm_readv(int(sys.argv[1]), ctypes.byref(near), 1, ctypes.byref(far), 1, 0)
print(ctypes.get_errno() if got != 4 else 0)
"""
BE_READ = """
import ctypes, sys
there = ctypes.create_string_buffer(b"here")
print(ctypes.addressof(there), flush=True)
sys.stdin.read()
"""


def cross_memory_attach() -> bool:
    """Whether one process of this user may copy from another that is not its child."""
    with subprocess.Popen(
        [sys.executable, "-c", BE_READ], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        address = other.stdout.readline().strip()
        done = subprocess.run(
            [sys.executable, "-c", READ_ANOTHER, str(other.pid), address],
            capture_output=True,
            text=True,
        )
        other.stdin.close()
    code = int(done.stdout.strip() or "-1")
    if code == 0:
        return say("ok", "cross-memory attach", "processes of one user reach each other's memory")
    why = os.strerror(code) if code > 0 else done.stderr.strip()[-200:]
    advice = "memory of nixl.alloc() is still shared; other memory goes over the lane stream"
    scope = YAMA.read_text().strip() if YAMA.exists() else "0"
    if scope != "0":
        advice += f"; {YAMA} is {scope}: as root, `sysctl kernel.yama.ptrace_scope=0`"
    else:
        advice += "; in a container add the capability SYS_PTRACE (docker: --cap-add SYS_PTRACE)"
    return say("note", "cross-memory attach", f"not allowed ({why}); {advice}")


def gpus() -> bool:
    """The CUDA driver as the core opens it, and the GPUs it sees."""
    try:
        from nixl import _bindings
    except ImportError:
        return True  # said above
    found = _bindings._deviceStatus()
    if found["error"]:
        return say("note", "GPUs", f"{found['error']}; GPU memory cannot be registered")
    version = f"CUDA {found['version'] // 1000}.{found['version'] % 1000 // 10}"
    names = "; ".join(
        f"cuda:{gpu['id']} {gpu['name']}, {gpu['bytes'] >> 30} GiB, {gpu['pci']}"
        for gpu in found["devices"]
    )
    return say("ok", "GPUs", f"{version}; {names or 'none'}")


def io_uring() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    parameters = (ctypes.c_ubyte * 120)()
    fd = libc.syscall(SYS_IO_URING_SETUP, 1, parameters)
    if fd >= 0:
        os.close(fd)
        return say("ok", "io_uring", "is permitted")
    code = ctypes.get_errno()
    advice = "files go through threads, a little slower"
    if code == errno.ENOSYS:
        advice += "; the kernel is older than 5.1, or was built without it"
    elif URING_DISABLED.exists() and URING_DISABLED.read_text().strip() != "0":
        advice += "; as root, `sysctl kernel.io_uring_disabled=0`"
    else:
        advice += "; containers forbid it by a seccomp profile (docker: --security-opt seccomp=...)"
    return say("note", "io_uring", f"not permitted ({os.strerror(code)}); {advice}")


def limits() -> None:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    text = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if soft == resource.RLIM_INFINITY or soft >= LITTLE_MEMLOCK or os.geteuid() == 0:
        say("ok", "locked memory", text)
    else:
        advice = "`ulimit -l unlimited`, `memlock` in /etc/security/limits.conf, docker: --ulimit"
        advice += " memlock=-1"
        what = "RDMA cannot register memory" if rdma_devices() else "RDMA could not register memory"
        say("FAIL" if rdma_devices() else "note", "locked memory", f"{text}: {what}; {advice}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = f"; `ulimit -n {min(hard, 65536)}` before the program where it has many peers or files"
    little = soft < LITTLE_FILES
    say("note" if little else "ok", "open files", f"{soft}{advice if little else ''}")


def port(number: int) -> bool:
    """Whether a listener can have the port."""
    try:
        with socket.create_server(("", number)):
            return say("ok", f"port {number}", "is free for a listener")
    except OSError as error:
        advice = "name another as listen_port, or 0 to let the system choose"
        return say("note", f"port {number}", f"{error.strerror}; {advice}")


def etcd_settings() -> dict[str, str]:
    prefix = "NIXL_ETCD_"
    return {k[len(prefix) :].lower(): v for k, v in os.environ.items() if k.startswith(prefix)}


def etcd() -> bool:
    """Each endpoint of the environment: reached, of which version, healthy, with this user."""
    settings = etcd_settings()
    endpoints = [part for part in re.split(r"[,;\s]+", settings.get("endpoints", "")) if part]
    if not endpoints:
        return say("ok", "etcd", "NIXL_ETCD_ENDPOINTS is not set: none is used")
    good = [ask_etcd(endpoint, settings) for endpoint in endpoints]
    return any(good)


def ask_etcd(endpoint: str, settings: dict[str, str]) -> bool:
    tls = "ca" in settings or "cert" in settings
    url = endpoint if "://" in endpoint else f"{'https' if tls else 'http'}://{endpoint}"
    url = url.rstrip("/")
    try:
        context = None
        if url.startswith("https://"):
            context = ssl.create_default_context(cafile=settings.get("ca"))
            if "cert" in settings:
                context.load_cert_chain(settings["cert"], settings.get("key"))
        version = json.loads(fetch(f"{url}/version", context)).get("etcdserver", "?")
        health = str(json.loads(fetch(f"{url}/health", context)).get("health")).lower()
        if settings.get("user"):
            word = {"name": settings["user"], "password": password_of(settings)}
            fetch(f"{url}/v3/auth/authenticate", context, word)
    except urllib.error.HTTPError as error:
        body = error.read(300).decode(errors="replace").strip()
        text = f"{error} {body}; is this the client address of an etcd 3.4 or later"
        return say("FAIL", "etcd", f"{endpoint}: {text}, and are user and password right?")
    except (OSError, ValueError, AttributeError) as error:
        reason = getattr(error, "reason", error)
        text = f"{reason}; try `curl {url}/version` here and on the server's host"
        return say("FAIL", "etcd", f"{endpoint}: {text}")
    if health != "true":
        text = f"version {version}, not healthy: has it a leader? (etcdctl endpoint status)"
        return say("FAIL", "etcd", f"{endpoint}: {text}")
    return say("ok", "etcd", f"{endpoint}: version {version}, healthy")


def password_of(settings: dict[str, str]) -> str:
    if path := settings.get("password_file"):
        return pathlib.Path(path).read_text().rstrip("\r\n")
    return settings.get("password", "")


def fetch(url: str, context: ssl.SSLContext | None, body: dict[str, str] | None = None) -> bytes:
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(url, data, timeout=ETCD_SECONDS, context=context) as answer:
        return answer.read(100_000)


def main(arguments: list[str] | None = None) -> int:
    global _failed
    _failed = False
    parser = argparse.ArgumentParser(
        prog="python -m nixl.doctor", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--port", type=int, default=8888, help="the listener's port to try (8888)")
    options = parser.parse_args(arguments)
    checks: list[Callable[[], object]] = [machine, plugins, libraries, gpus, rdma]
    checks += [fabric_providers]
    checks += [ucx_engines, cross_memory_attach, io_uring, limits, lambda: port(options.port), etcd]
    for check in checks:
        try:
            check()
        except Exception as error:  # one check that fails must not hide the others
            say("FAIL", getattr(check, "__name__", "?"), f"{type(error).__name__}: {error}")
    print("something is wrong: see FAIL above" if _failed else "nothing is wrong")
    return 1 if _failed else 0


if __name__ == "__main__":
    sys.exit(main())
