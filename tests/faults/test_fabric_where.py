"""Where the lane fabric works and where not: two hosts, libraries, providers, devices, peers and
memory that do not fit. SKIP where libfabric or its plugin is not there."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import MIB, eventually, fresh_name, posted  # noqa: E402

SIZE = 4 * MIB
# What is asked of it, and a version: no more of the library than that.
OTHER_LIBRARY = """
#include <stddef.h>
int fi_getinfo(void) { return -38; }
void fi_freeinfo(void* info) {}
void* fi_dupinfo(void* info) { return NULL; }
int fi_fabric(void) { return -38; }
const char* fi_strerror(int error) { return "stand-in"; }
unsigned fi_version(void) { return 1 << 16 | 5; }
"""


def options_of(provider: str, device: str = "", **more) -> dict:
    params = {"provider": provider} | ({"device_list": device} if device else {})
    params |= more.pop("params", {})
    options = {"backends": ["LIBFABRIC"], "backend_params": {"LIBFABRIC": params}}
    return {**options, "lanes": "fabric", **more}


def refused(params: dict, **options) -> str:
    """What creating the backend says."""
    config = nixl.nixl_agent_config(backends=[], **options)
    with nixl.nixl_agent(fresh_name("plain"), config) as agent:
        with pytest.raises(nixl.nixlError) as error:
            agent.create_backend("LIBFABRIC", params)
        return str(error.value)


@pytest.fixture(scope="module", autouse=True)
def libfabric() -> None:
    options = options_of("tcp", "lo")
    try:
        nixl.nixl_agent(fresh_name("probe"), nixl.nixl_agent_config(**options)).close()
    except nixl.nixlError as error:
        pytest.skip(f"no libfabric here: {error}")


@pytest.mark.parametrize(
    "params, words",
    [
        ({"provider": "warp"}, ["warp", "efa, verbs and tcp", "tcp;ofi_rxm"]),
        ({"provider": "net"}, ["net", "before the bytes are there"]),
        ({"provider": "shm"}, ["shm", "holds a lock", "lane host"]),
        ({"provider": "psm2"}, ["psm2", "tcp;ofi_rxm"]),
        ({"provider": "tcp", "device_list": "ether9"}, ["ether9", "lo"]),
        ({"provider": "tcp", "device_list": "lo", "num_rails": "3"}, ["num_rails=3", "1 device"]),
        ({"num_rails": "many"}, ["num_rails", "many"]),
        ({"striping_threshold": "1"}, ["striping_threshold"]),
    ],
)
def test_what_is_not_there_is_named(params, words):
    said = refused(params)
    for word in words:
        assert word in said


def test_the_library_is_missing(monkeypatch):
    monkeypatch.setenv("NIXL_LIBFABRIC_LIBRARY", "/nowhere/libfabric.so.1")
    said = refused({})
    assert "/nowhere/libfabric.so.1" in said and "libfabric1" in said


@pytest.mark.parametrize(
    "code, words",
    [
        (OTHER_LIBRARY, ["libfabric 1.5", "too old", "1.11"]),
        ("int another(void) { return 0; }", ["is no libfabric", "fi_getinfo"]),
    ],
)
def test_a_library_that_does_not_fit(tmp_path, monkeypatch, code, words):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "other.c"
    source.write_text(code)
    library = tmp_path / "libother.so"
    command = [compiler, "-shared", "-fPIC", "-w", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    monkeypatch.setenv("NIXL_LIBFABRIC_LIBRARY", str(library))
    said = refused({})
    for word in [str(library), *words]:
        assert word in said


def test_a_peer_without_the_backend(make_near, make_far):
    near, far = make_near(SIZE, **options_of("tcp", "lo")), make_far(SIZE)
    near.add_metadata_of(far)
    with pytest.raises(nixl.nixlError) as error:
        near.prepare("WRITE", far, [(0, 0, SIZE)])
    assert far.name in str(error.value) and "LIBFABRIC" in str(error.value)


def test_memory_of_a_gpu(make_near):
    """tcp cannot reach it: an error that says so, and nothing is left behind."""
    near = make_near(SIZE, **options_of("tcp", "lo"))
    with pytest.raises(nixl.nixlError) as error:
        near.agent.register_memory([(near.base, SIZE, 0, "")], "VRAM")
    assert "VRAM" in str(error.value) or "GPU" in str(error.value)


def test_two_rails_share_a_transfer(make_near, make_far):
    """Two rails over one device: the bytes of both arrive, before the notification."""
    rails = {"device_list": "lo, lo", "num_rails": "2", "striping_threshold": "64K"}
    options = options_of("tcp", params=rails)
    near, far = make_near(SIZE, **options), make_far(SIZE, **options)
    near.add_metadata_of(far)
    handle = near.prepare("WRITE", far, [(0, 0, SIZE)])
    assert "2 rails" in near.agent.explain(handle)["reason"]
    for _ in range(20):
        near.works_with(far)
    far.kill()
    assert posted(near, handle) == "nixlRemoteDisconnectError"


def test_two_hosts(network, make_far):
    """Over the cable; unplugged it ends within the peer timeout, plugged in again it works."""
    for name in (network.near, network.far):  # the system takes a while to see the carrier
        look = [*network.inside(name), "cat", "/sys/class/net/cable/operstate"]
        eventually(lambda look=look: subprocess.check_output(look) == b"up\n")
    options = options_of("tcp", "cable", peer_timeout=3)
    near = make_far(SIZE, prefix=network.inside(network.near), **options)
    far = make_far(SIZE, prefix=network.inside(network.far), **options)
    near(f"agent.add_remote_agent({far.metadata!r})")
    near(f"""
def move(operation, count=1, wait=True):
    own = agent.get_xfer_descs([(array.ctypes.data, len(array), 0)] * count, "DRAM")
    other = agent.get_xfer_descs([({far.base}, len(array), 0)] * count, "DRAM")
    handle = agent.initialize_xfer(operation, own, other, {far.name!r}, b"there")
    try:
        agent.transfer(handle)
        return (handle.wait(60), "") if wait else handle
    except nixl.nixlError as error:
        return type(error).__name__, str(error)
def outcome(handle):
    try:
        return handle.wait(60), ""
    except nixl.nixlError as error:
        return type(error).__name__, str(error)
""")
    near.fill(3)
    assert near("move('WRITE')") == ("DONE", "")
    assert far.notifications(near.name, 1) == [b"there"]
    assert far.holds(3)
    far.fill(5)
    assert near("move('READ')") == ("DONE", "") and near.holds(5)
    for operation in ("WRITE", "READ"):
        near(f"handle = move({operation!r}, 4096, False)")
        network.unplug()
        kind, text = near("outcome(handle)")
        assert kind == "nixlRemoteDisconnectError" and far.name in text
        near("agent.deregister_memory(registered); registered = agent.register_memory(array)")
        network.plug()
        eventually(lambda: near("move('WRITE')")[0] == "DONE")


def test_library_of_the_environment(monkeypatch):
    """The one that is named is the one that is opened."""
    where = "/usr/lib/x86_64-linux-gnu/libfabric.so.1"
    if not os.path.exists(where):
        pytest.skip(f"no {where}")
    monkeypatch.setenv("NIXL_LIBFABRIC_LIBRARY", where)
    config = nixl.nixl_agent_config(**options_of("tcp", "lo"))
    with nixl.nixl_agent(fresh_name("plain"), config) as agent:
        assert agent.get_plugin_list()
