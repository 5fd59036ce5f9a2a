"""Processes of one host that may not reach each other in every way: other users, other PID and
network namespaces, containers that share a directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")
support = pytest.importorskip("faults_support")

from faults_support import MIB, FarError, posted  # noqa: E402

SIZE = 4 * MIB
KEY = "sixteen bytes at least"
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
OTHER_PIDS = ["unshare", "--pid", "--fork", "--kill-child"]


def usable(prefix: list[str]) -> None:
    """Skips where such a process cannot be started, or cannot import what is tested."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    command = [*prefix, sys.executable, "-c", "import nixl, numpy"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is not installed")
    if tried.returncode != 0:
        pytest.skip(f"{' '.join(prefix)}: {tried.stderr.strip()[-300:]}")


def lane_between(near, far) -> tuple[str, str]:
    explained = near.agent.explain(near.post("WRITE", far, [(0, 0, 4096)]))
    return explained["lane"], explained["reason"]


def asked(far, near, operation: str = "WRITE") -> str:
    """A transfer that the other process starts: its outcome and lane."""
    return far(f"""
if {near.name!r} not in agent.peers():
    agent.add_remote_agent({near.agent.get_agent_metadata()!r})
here = agent.get_xfer_descs([(array.ctypes.data, 4096, 0)], "DRAM")
there = agent.get_xfer_descs([({near.base}, 4096, 0)], "DRAM")
handle = agent.initialize_xfer({operation!r}, here, there, {near.name!r})
agent.transfer(handle)
result = handle.wait(60), agent.explain(handle)["lane"], agent.explain(handle)["reason"]
""")


def test_another_user_without_a_key_is_refused(make_near, make_far, companion):
    """Either way: who runs as somebody else is an unknown peer, and learns why."""
    usable(NOBODY)
    near, far = make_near(SIZE), make_far(SIZE, prefix=NOBODY)
    others = companion(near)
    assert far("os.getuid()") == 65534
    canary = near.array.copy()
    with pytest.raises(FarError, match="auth_key") as refused:
        asked(far, near)
    assert refused.value.kind == "nixlNotAllowedError"
    assert (near.array == canary).all()
    others.more()
    near.add_metadata_of(far)  # root may, as everywhere
    near.works_with(far)


def test_another_user_with_the_key(make_near, make_far):
    usable(NOBODY)
    near, far = make_near(SIZE, auth_key=KEY), make_far(SIZE, prefix=NOBODY, auth_key=KEY)
    near.array[:] = 7
    outcome, lane, reason = asked(far, near, "READ")
    # It may not attach to us; memory of ours that both could map would go by the lane host.
    assert (outcome, lane) == ("DONE", "stream")
    assert "attach" in reason or "pidfd" in reason, reason
    assert far("bool((array[:4096] == 7).all())")
    near.add_metadata_of(far)
    near.works_with(far)


def test_another_user_maps_what_is_shareable(make_far):
    """The file comes over the socket: nobody need be allowed to attach."""
    usable(NOBODY)
    other = make_far(SIZE, "mapped", prefix=NOBODY, auth_key=KEY)
    far = make_far(SIZE, "mapped", auth_key=KEY)
    lane, reason, outcome = over(other, far)
    assert (lane, outcome) == ("host", "DONE"), reason
    assert far.holds(3)


def test_another_user_with_another_key(make_near, make_far):
    usable(NOBODY)
    near, far = make_near(SIZE, auth_key=KEY), make_far(SIZE, prefix=NOBODY, auth_key=KEY[::-1])
    canary = near.array.copy()
    with pytest.raises(FarError, match="auth_key") as refused:
        asked(far, near)
    assert refused.value.kind == "nixlNotAllowedError" and (near.array == canary).all()


def test_another_pid_namespace(make_near, make_far):
    """Whoever is inside cannot name a process outside, so it does not attach; and it is told."""
    usable(OTHER_PIDS)
    near, far = make_near(SIZE), make_far(SIZE, prefix=OTHER_PIDS)
    assert far("os.getpid()") == 1
    outcome, lane, reason = asked(far, near)
    assert (outcome, lane) == ("DONE", "stream") and "PID namespace" in reason, reason
    near.add_metadata_of(far)
    near.works_with(far)


def test_two_pid_namespaces(make_far):
    usable(OTHER_PIDS)
    first, second = make_far(SIZE, prefix=OTHER_PIDS), make_far(SIZE, prefix=OTHER_PIDS)
    first.fill(3)
    answer = first(f"""
agent.add_remote_agent({second.metadata!r})
here = agent.get_xfer_descs([(array.ctypes.data, {SIZE}, 0)], "DRAM")
there = agent.get_xfer_descs([({second.base}, {SIZE}, 0)], "DRAM")
handle = agent.initialize_xfer("WRITE", here, there, {second.name!r}, b"moved")
agent.transfer(handle)
result = handle.wait(60), agent.explain(handle)["lane"], agent.explain(handle)["reason"]
""")
    assert answer[:2] == ("DONE", "stream") and "PID namespace" in answer[2], answer
    assert second.notifications(first.name, 1) == [b"moved"] and second.holds(3)


def test_another_network_namespace(network, make_far):
    """The abstract socket does not reach across, TCP does: explain() names the way out."""
    near = make_far(SIZE, prefix=network.inside(network.near))
    far = make_far(SIZE, prefix=network.inside(network.far))
    lane, reason, outcome = over(near, far)
    assert (lane, outcome) == ("stream", "DONE") and "socket_dir" in reason, reason
    assert far.holds(3)


@pytest.mark.parametrize("asked_for", ["", "system", "reno"])
def test_congestion_control_between_near_hosts(network, make_far, monkeypatch, asked_for):
    """Data connections leave BBR, which is slow over so short a way, unless told to keep it."""
    for name in (network.near, network.far):
        command = ["sysctl", "-q", "-w", "net.ipv4.tcp_congestion_control=bbr"]
        tried = subprocess.run([*network.inside(name), *command], capture_output=True, text=True)
        if tried.returncode != 0:
            pytest.skip(f"this system has no BBR: {tried.stderr.strip()}")
    monkeypatch.setenv("NIXL_TCP_CONGESTION", asked_for)
    near = make_far(SIZE, prefix=network.inside(network.near))
    far = make_far(SIZE, prefix=network.inside(network.far))
    assert over(near, far)[::2] == ("stream", "DONE") and far.holds(3)
    for name, other in ((network.near, network.far_address), (network.far, network.near_address)):
        command = [*network.inside(name), "ss", "-Htin", "state", "established", "dst", other]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = [word for word in shown.split() if word in ("bbr", "reno", "cubic")]
        # The session's own connection keeps what the system says: its bytes are few.
        expected = {"bbr"} if asked_for == "system" else {"bbr", "reno"}
        assert set(used) == expected, shown


def test_an_unknown_congestion_control_is_an_error(monkeypatch):
    monkeypatch.setenv("NIXL_TCP_CONGESTION", "renoo")
    with pytest.raises(nixl.nixlInvalidParamError, match=r'NIXL_TCP_CONGESTION.*"renoo"') as error:
        nixl.nixl_agent("x", nixl.nixl_agent_config(backends=["UCX"]))
    assert "auto system" in str(error.value)


def over(near, far) -> tuple[str, str, str]:
    near.fill(3)
    return near(f"""
agent.add_remote_agent({far.metadata!r})
here = agent.get_xfer_descs([(array.ctypes.data, {SIZE}, 0)], "DRAM")
there = agent.get_xfer_descs([({far.base}, {SIZE}, 0)], "DRAM")
handle = agent.initialize_xfer("WRITE", here, there, {far.name!r})
agent.transfer(handle)
outcome = handle.wait(60)
result = agent.explain(handle)["lane"], agent.explain(handle)["reason"], outcome
""")


def test_no_transport_at_all_says_so(make_far):
    """Alone in a network namespace without a cable, with no shared directory."""
    usable(["unshare", "--net"])
    near, far = make_far(SIZE, peer_timeout=2), make_far(SIZE, prefix=["unshare", "--net"])
    with pytest.raises(FarError) as error:
        over(near, far)
    assert error.value.kind == "nixlRemoteDisconnectError" and far.name in str(error.value)


@pytest.fixture
def shared():
    """A directory of short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="nixl") as folder:
        yield folder


@pytest.mark.parametrize("kind", ["network", "network and pid"])
def test_containers_that_share_a_directory(make_far, shared, kind):
    """Other network (and PID) namespaces, one socket_dir: memory both can map is shared, all else
    goes over the socket where they may not attach."""
    prefix = ["unshare", "--net", *(OTHER_PIDS[1:] if "pid" in kind else [])]
    usable(prefix)
    plain = make_far(SIZE, prefix=prefix, socket_dir=shared)
    shareable = make_far(SIZE, "mapped", prefix=prefix, socket_dir=shared, lanes="")
    near = make_far(SIZE, prefix=prefix, socket_dir=shared)
    lane, reason, outcome = over(near, plain)
    assert outcome == "DONE" and plain.holds(3)
    if "pid" in kind:
        assert lane == "stream" and "PID namespace" in reason, reason
    lane, reason, outcome = over(near, shareable)
    assert (lane, outcome) == ("host", "DONE"), reason
    assert shareable.holds(3)
    for one in (near, plain, shareable):
        one("agent.close()")
    assert os.listdir(shared) == []


def test_the_directory_is_named_where_it_cannot_be_used(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(nixl.nixlError, match="file"):
        nixl.nixl_agent("x", nixl.nixl_agent_config(socket_dir=str(tmp_path / "file" / "dir")))
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with pytest.raises(nixl.nixlError, match="107"):
        nixl.nixl_agent("x", nixl.nixl_agent_config(socket_dir=str(long)))


def test_a_killed_process_leaves_a_socket_that_harms_nobody(make_near, make_far, shared):
    near = make_near(SIZE, socket_dir=shared)
    far = make_far(SIZE, socket_dir=shared)
    near.add_metadata_of(far)
    near.works_with(far)
    handle = near.prepare("WRITE", far, [(0, 0, 4096)])
    far.kill()
    far.gone()
    assert len(os.listdir(shared)) == 2  # its own and near's
    second = make_far(SIZE, socket_dir=shared, name=far.name)
    near.add_metadata_of(second)
    near.works_with(second)
    assert posted(near, handle) == "nixlRemoteDisconnectError"
