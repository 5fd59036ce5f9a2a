"""Backend UCX_MO over the real UCX library: what holds for UCX with two engines, which cable
carries what, and what is refused. SKIP where UCX is not installed."""

from __future__ import annotations

import subprocess

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import MIB, UCX_OVER_TCP, eventually, posted  # noqa: E402
from lane_tests import (  # noqa: E402, F401
    DISCONNECT,
    skip_without,
    test_agent_ends_in_the_middle,
    test_stopped_for_less_than_the_timeout,
)
from programs import DONE, created, ends_quietly, forks  # noqa: E402
from test_ucx import (  # noqa: E402, F401
    SIZE,
    test_cancelled_read_changes_no_byte,
    test_killed_in_the_middle,
    test_stopped_for_good,
)

TRANSPORT = "ucx_mo"


def options_of(**more) -> dict:
    return {"transport": TRANSPORT, **more}


@pytest.fixture(scope="module", autouse=True)
def ucx() -> None:
    skip_without("UCX", backends=["UCX_MO"])


def over_lo(**more: str) -> dict:
    return {"UCX_MO": {**UCX_OVER_TCP, **more}}


def test_descriptors_go_by_the_engine_of_their_device(pair):
    """One handle for all; the bytes of each get where they belong."""
    near, far = pair(backend_params=over_lo(num_ucx_engines="4"))
    pieces = {0: 0, 3: 1, 5: 2, 7: 3}  # device id: place, in units of 4096
    descs = near.agent.get_xfer_descs
    for device in pieces:
        near.agent.register_memory([(near.base, SIZE, device, "")], "DRAM")
    far(
        "for device in (3, 5, 7):\n"
        f"    agent.register_memory([(array.ctypes.data, {SIZE}, device, '')], 'DRAM')\n"
        "result = 0"
    )
    near.agent.add_remote_agent(far("agent.get_agent_metadata()"))
    here = [(near.base + at * 4096, 4096, device) for device, at in pieces.items()]
    there = [(far.base + (3 - at) * 4096, 4096, device) for device, at in pieces.items()]
    handle = near.agent.initialize_xfer(
        "WRITE", descs(here, "DRAM"), descs(there, "DRAM"), far.name
    )
    assert "engines 0 1 3 of 4" in near.agent.explain(handle)["reason"]
    assert posted(near, handle) == "DONE"
    blocks = near.array[: 4 * 4096].reshape(4, 4096)
    assert far(f"array[:{4 * 4096}].tobytes()") == blocks[::-1].tobytes()


def test_a_large_one_takes_all_engines(pair):
    near, far = pair(backend_params=over_lo(num_ucx_engines="3", num_workers="2"))
    handle = near.prepare("WRITE", far, [(0, 0, SIZE)])
    assert "engines 0 1 2 of 3" in near.agent.explain(handle)["reason"]
    small = near.prepare("WRITE", far, [(0, 0, 4096)])
    assert "engines 0 of 3" in near.agent.explain(small)["reason"]
    near.works_with(far)


@pytest.mark.parametrize(("here", "there"), [(1, 3), (3, 1)])
def test_agents_with_different_numbers_of_engines(make_near, make_far, here, there, operation):
    near = make_near(SIZE, TRANSPORT, backend_params=over_lo(num_ucx_engines=str(here)))
    far = make_far(SIZE, TRANSPORT, backend_params=over_lo(num_ucx_engines=str(there)))
    near.add_metadata_of(far)
    near.works_with(far)


def told(namespace: str, cable: str, what: str) -> str:
    """What the system says of one end of a cable."""
    read = ["ip", "netns", "exec", namespace, "cat", f"/sys/class/net/{cable}/{what}"]
    return subprocess.run(read, capture_output=True, text=True, check=True).stdout.strip()


def carried(namespace: str, cable: str) -> int:
    """Bytes that a cable has carried away from a namespace."""
    return int(told(namespace, cable, "statistics/tx_bytes"))


def test_two_cables_carry_one_transfer(network, make_far):
    """Between two hosts with a cable for each engine: half of the bytes go by each."""
    network.run(
        *("ip", "link", "add", "cable1", "netns", network.near),
        *("type", "veth", "peer", "name", "cable1", "netns", network.far),
    )
    for name, address in ((network.near, "10.98.0.1"), (network.far, "10.98.0.2")):
        network.run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable1")
        network.run("ip", "-n", name, "link", "set", "cable1", "up")
    for name in (network.near, network.far):  # UCX takes only what runs
        for cable in ("cable", "cable1"):
            eventually(lambda n=name, c=cable: told(n, c, "operstate") == "up")
    params = {"UCX_MO": {"UCX_TLS": "tcp", "ucx_devices": "cable,cable1"}}
    left, right = (
        make_far(SIZE, TRANSPORT, prefix=network.inside(name), backend_params=params)
        for name in (network.near, network.far)
    )
    left.fill(5)
    right("array[:] = 0")
    left(f"agent.add_remote_agent({right.metadata!r})")
    before = [carried(network.near, cable) for cable in ("cable", "cable1")]
    state, reason = left(f"""
here = agent.get_xfer_descs([(array.ctypes.data, {SIZE}, 0)], "DRAM")
there = agent.get_xfer_descs([({right.base}, {SIZE}, 0)], "DRAM")
handle = agent.initialize_xfer("WRITE", here, there, {right.name!r})
agent.transfer(handle)
result = handle.wait(60), agent.explain(handle)["reason"]
""")
    assert state == "DONE" and "engines 0 1 of 2" in reason
    assert right.holds(5)
    after = [carried(network.near, cable) for cable in ("cable", "cable1")]
    for new, old in zip(after, before, strict=True):
        assert SIZE // 2 < new - old < SIZE * 3 // 4, (before, after)


def test_a_device_that_is_not_there(make_near):
    with pytest.raises(nixl.nixlInvalidParamError, match='no network device "nowhere0"') as error:
        make_near(MIB, TRANSPORT, backend_params={"UCX_MO": {"ucx_devices": "lo;nowhere0"}})
    assert " lo" in str(error.value)  # among those that are


@pytest.mark.parametrize("value", ["many", "-1", "65"])
def test_a_number_of_engines_that_cannot_be(make_near, value):
    with pytest.raises(nixl.nixlInvalidParamError, match="num_ucx_engines"):
        make_near(MIB, TRANSPORT, backend_params=over_lo(num_ucx_engines=value))


def test_a_peer_without_the_backend(make_near, make_far):
    near, far = make_near(MIB, TRANSPORT), make_far(MIB, "ucx")
    near.add_metadata_of(far)
    with pytest.raises(nixl.nixlError, match=f"{far.name}") as error:
        near.prepare("WRITE", far, [(0, 0, 4096)])
    assert "UCX_MO" in str(error.value)


def test_transports_that_cannot_connect(make_near, make_far, operation):
    params = {"UCX_MO": {"UCX_TLS": "self", "num_ucx_engines": "2"}}
    near = make_near(SIZE, TRANSPORT, backend_params=params)
    far = make_far(SIZE, TRANSPORT, backend_params=params)
    near.add_metadata_of(far)
    handle = near.prepare(operation, far, [(0, 0, SIZE)])
    assert posted(near, handle) == DISCONNECT and "add tcp to UCX_TLS" in str(handle.error)


def test_the_library_is_missing(tmp_path):
    said = created("UCX_MO", NIXL_UCX_LIBRARY=str(tmp_path / "libucp.so.0"))
    assert str(tmp_path) in said and "NIXL_UCX_LIBRARY" in said


PAIR = """
import os, sys, nixl, numpy as np
params = {"UCX_MO": {"UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo", "num_ucx_engines": "2"}}
config = nixl.nixl_agent_config(backends=["UCX_MO"], lanes="ucx", backend_params=params)
a, b = nixl.nixl_agent("a", config), nixl.nixl_agent("b", config)
left, right = np.ones(16 << 20, np.uint8), np.zeros(16 << 20, np.uint8)
for agent, array in ((a, left), (b, right)):
    agent.register_memory(array)
a.add_remote_agent(b.get_agent_metadata())
descs = a.get_xfer_descs
handle = a.initialize_xfer("WRITE", descs(left), descs(right), "b")
"""
ARRIVED = "assert (left == right).all()"


# Pending begins with a connection that is up: ending while UCX connects may end in its assertion
# (plugins/ucx/README.md).
@pytest.mark.parametrize(
    "steps", ["", f"{DONE}; {ARRIVED}", f"{DONE}; {ARRIVED}; a.transfer(handle)"]
)
def test_exit_in_every_state(steps):
    ends_quietly(PAIR + steps)


def test_fork_in_the_middle():
    """The child leaves by the interpreter's end, with the agents that it has got."""
    forks(PAIR, told="sys.exit(7)", then=ARRIVED)
