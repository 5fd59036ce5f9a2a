"""Metadata and discovery through one etcd, as an application sees it."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import time
from datetime import timedelta

import nixl
import numpy as np
import pytest
from etcd_support import eventually
from nixl import nixl_agent, nixl_agent_config


def descs_of(agent, array):
    return agent.get_xfer_descs([(array.ctypes.data, array.nbytes, 0)], "DRAM")


def write(agent, array, peer: str, there, notification: bytes = b""):
    handle = agent.initialize_xfer(
        "WRITE", descs_of(agent, array), descs_of(agent, there), peer, notification
    )
    agent.transfer(handle)
    assert handle.wait(20) == "DONE"
    return handle


def test_agents_find_each_other_by_themselves(etcd, agent_at):
    """No fetch, no send: who is in the namespace is a peer, with what it registered."""
    a, b = agent_at("a", use_etcd=True), agent_at("b", use_etcd=True)
    assert a.wait_for_peers(1, timeout=20) == ["b"]
    assert b.wait_for_peers(1, timeout=20) == ["a"]
    here, there = np.full(4096, 7, np.uint8), np.zeros(4096, np.uint8)
    a.register_memory(here)
    b.register_memory(there)
    eventually(lambda: a.check_remote_metadata("b", descs_of(a, there)))
    write(a, here, "b", there, b"hello")
    assert (there == 7).all()
    eventually(lambda: b.check_remote_xfer_done("a", b"hello"))
    b.send_notif("a", b"answer")
    eventually(lambda: a.check_remote_xfer_done("b", b"answer"))


def test_the_environment_alone_is_enough(etcd, agent_at):
    a, b = agent_at("a"), agent_at("b")
    assert a.wait_for_peers(1, timeout=20) == ["b"]
    off = agent_at("off", use_etcd=False)
    with pytest.raises(nixl.nixlInvalidParamError, match="needs a central store"):
        off.fetch_remote_metadata("a")
    b.close()
    eventually(lambda: a.peers() == [])


def test_without_endpoints_use_etcd_is_an_error(agent_at, monkeypatch):
    monkeypatch.delenv("NIXL_ETCD_ENDPOINTS", raising=False)
    with pytest.raises(nixl.nixlInvalidParamError, match="set NIXL_ETCD_ENDPOINTS"):
        agent_at("a", use_etcd=True)
    agent_at("b")


@pytest.mark.parametrize(
    ("etcd_settings", "why"),
    [
        ({"endpoints": "ftp://x:1"}, 'etcd endpoint "ftp://x:1" is not HTTP'),
        ({"endpoints": "x:1", "lease": 3}, 'etcd setting "lease" is none of endpoints namespace'),
        ({"endpoints": "x:1", "lease_time": "soon"}, 'lease_time="soon"'),
        ({"endpoints": "x:1", "watch_timeout": -1}, 'watch_timeout="-1"'),
        ({"endpoints": "x:1", "ca": "/nowhere"}, "No such file"),
        ({"endpoints": "x:1", "namespace": "n" * 2000}, "namespace of 2000 bytes"),
    ],
)
def test_wrong_settings_are_named(agent_at, etcd_settings, why):
    with pytest.raises(nixl.nixlInvalidParamError) as error:
        agent_at("a", etcd=etcd_settings)
    assert why in str(error.value) and 'agent "a"' in str(error.value)


def test_fetch_waits_for_one_that_comes_later(etcd, agent_at):
    a = agent_at("a")
    a.fetch_remote_metadata("b")
    assert not a.check_remote_metadata("b")
    agent_at("b")
    eventually(lambda: a.check_remote_metadata("b"))


def test_a_fetch_of_nobody_fails_with_the_reason(etcd, agent_at):
    a = agent_at("a", etcd={"watch_timeout": "0.2"})
    with pytest.raises(nixl.nixlTimeoutError) as error:
        a.fetch_remote_metadata("nobody", timeout=0.1)
    assert 'agent "nobody" is not in etcd at ' + etcd.endpoint in str(error.value)
    assert etcd.space in str(error.value)
    a.fetch_remote_metadata("nobody")

    def reason():
        try:
            return a.check_remote_metadata("nobody")
        except nixl.nixlTimeoutError as failure:
            return str(failure)

    assert "is not in etcd" in eventually(reason)
    with pytest.raises(nixl.nixlTimeoutError, match="0 of 2 peers are known; it looks in etcd at"):
        a.wait_for_peers(2, timeout=0.05)


def test_the_raw_agents_watch_timeout(etcd):
    """What existing code sets on the raw configuration."""
    config = nixl._bindings.nixlAgentConfig(etcdWatchTimeout=timedelta(milliseconds=50))
    raw = nixl._bindings.nixlAgent("a", config)
    raw.fetchRemoteMD("nobody")

    def failed() -> bool:
        try:
            return raw.checkRemoteMD("nobody", nixl._bindings.nixlXferDList(0)) is None
        except nixl.nixlTimeoutError:
            return True

    eventually(failed, seconds=4)
    raw._close()


def test_established_keys(etcd, agent_at, monkeypatch):
    """Where the published package would look for them; a slash at the end is all the same to us."""
    a = agent_at("a")
    a.send_local_metadata(timeout=20)
    assert etcd.key_names(etcd.space) == [f"{etcd.space}/a/", f"{etcd.space}/a/metadata"]
    monkeypatch.delenv("NIXL_ETCD_NAMESPACE")
    b = agent_at("b")
    b.send_local_metadata(timeout=20)
    assert etcd.key_names("/nixl/agents") == ["/nixl/agents//b/", "/nixl/agents//b/metadata"]
    monkeypatch.setenv("NIXL_ETCD_NAMESPACE", "/nixl/agents")
    c = agent_at("c")
    assert c.wait_for_peers(1, timeout=20) == ["b"]
    assert b.wait_for_peers(1, timeout=20) == ["c"]
    c.fetch_remote_metadata("b", timeout=20)


def test_metadata_of_the_published_package_is_named(etcd, agent_at):
    etcd.control("put", f"{etcd.space}/theirs/", "")
    etcd.control("put", f"{etcd.space}/theirs/metadata", "nixlSerDes|Agent\x02")
    a = agent_at("a")
    with pytest.raises(nixl.nixlMismatchError, match="runs the published package"):
        a.fetch_remote_metadata("theirs", timeout=20)
    assert a.peers() == []


def test_corrupt_values_are_left_out(etcd, agent_at):
    a, b = agent_at("a"), agent_at("b")
    assert a.wait_for_peers(1, timeout=20) == ["b"]
    b.send_local_metadata(timeout=20)
    for name, value in {
        "bad/metadata": "rubbish",
        "short/metadata": "NIXLMD",
        "other/metadata": "",
        "a/changes/zz": "x",
        "b/changes/0000000000000001": "rubbish",
        "x": "y",
        "/": "",
    }.items():
        etcd.control("put", f"{etcd.space}/{name}", value)
    with pytest.raises(nixl.nixlInvalidParamError, match='bad/metadata": these 7 bytes are not'):
        a.fetch_remote_metadata("bad", timeout=20)
    assert a.peers() == ["b"]
    c = agent_at("c")
    assert c.wait_for_peers(2, timeout=20) == ["a", "b"]
    c.fetch_remote_metadata("b", timeout=20)


def test_names_of_every_kind(etcd, agent_at):
    names = ["with space", "sl/ash", "/leading", "ünïcode", "%2F", "metadata", "a/metadata", "a"]
    agents = [agent_at(name) for name in names]
    for agent in agents:
        found = agent.wait_for_peers(len(names) - 1, timeout=20)
        assert sorted(found) == sorted(set(names) - {agent.name})
        for name in found:
            agent.fetch_remote_metadata(name, timeout=20)


def test_parts_under_labels(etcd, agent_at):
    a, b = agent_at("a"), agent_at("b", use_etcd=True)
    first, second = np.zeros(4096, np.uint8), np.zeros(4096, np.uint8)
    b.invalidate_local_metadata(timeout=20)
    registered = b.register_memory(first)
    b.register_memory(second)
    b.send_partial_agent_metadata(registered, True, label="part", timeout=20)
    a.fetch_remote_metadata("b", label="part", timeout=20)
    assert a.check_remote_metadata("b", descs_of(a, first))
    assert not a.check_remote_metadata("b", descs_of(a, second))
    with pytest.raises(nixl.nixlInvalidParamError, match="label"):
        b.send_partial_agent_metadata(registered, True)
    with pytest.raises(nixl.nixlInvalidParamError, match='label "x/y"'):
        b.send_partial_agent_metadata(registered, True, label="x/y")
    with pytest.raises(nixl.nixlTimeoutError, match='part "none"'):
        a.fetch_remote_metadata("b", label="none", timeout=0.1)


def test_invalidate_takes_it_back_also_from_those_who_use_it(etcd, agent_at):
    a, b = agent_at("a"), agent_at("b")
    here, there = np.full(64, 3, np.uint8), np.zeros(64, np.uint8)
    a.register_memory(here)
    b.register_memory(there)
    eventually(lambda: a.check_remote_metadata("b", descs_of(a, there)))
    write(a, here, "b", there)
    b.invalidate_local_metadata(timeout=20)
    assert not [key for key in etcd.key_names(etcd.space) if "/b/" in key]
    eventually(lambda: a.peers() == [] and not a.check_remote_metadata("b"))
    b.register_memory(np.zeros(64, np.uint8))  # no longer told
    b.send_local_metadata(timeout=20)
    eventually(lambda: a.check_remote_metadata("b"))


def test_what_is_added_by_hand_is_newer_than_what_was_published(etcd, agent_at, far_at):
    """What etcd says of earlier must not take back what the blob in hand has told."""
    a, b = agent_at("a"), far_at("b")
    a.fetch_remote_metadata("b", timeout=20)
    for _ in range(30):
        blob, address = b(
            "import numpy\nlate = numpy.zeros(64, 'u1')\nagent.register_memory(late)\n"
            "result = agent.get_agent_metadata(), late.ctypes.data"
        )
        a.add_remote_agent(blob)
        spec = a.get_xfer_descs([(address, 64, 0)], "DRAM")
        assert a.check_remote_metadata("b", spec)
        assert a.prep_xfer_dlist("b", spec)


def test_a_removed_agent_comes_back_when_it_is_asked_for_or_restarts(etcd, agent_at, far_at):
    a, b = agent_at("a"), far_at("b")
    a.fetch_remote_metadata("b", timeout=20)
    a.remove_remote_agent("b")
    assert a.peers() == [] and not a.check_remote_metadata("b")
    b("import numpy\nlate = numpy.zeros(64, 'u1')\nagent.register_memory(late)")
    with pytest.raises(nixl.nixlNotFoundError, match="it knows nobody"):
        a.send_notif("b", b"x")
    a.fetch_remote_metadata("b", timeout=20)
    assert a.peers() == ["b"] and a.check_remote_metadata("b")
    a.remove_remote_agent("b")
    b.process.kill()
    far_at("b")
    eventually(lambda: a.check_remote_metadata("b"))


def test_changes_are_told_as_differences(etcd, agent_at):
    a, b = agent_at("a"), agent_at("b")
    arrays = [np.zeros(100 + i, np.uint8) for i in range(300)]
    registered = [b.register_memory(array) for array in arrays]
    b.send_local_metadata(timeout=20)
    eventually(lambda: a.check_remote_metadata("b", descs_of(a, arrays[-1])))
    before = b.stats()
    late = np.zeros(77, np.uint8)
    b.register_memory(late)
    eventually(lambda: a.check_remote_metadata("b", descs_of(a, late)))
    b.deregister_memory(registered[5])
    eventually(lambda: not a.check_remote_metadata("b", descs_of(a, arrays[5])))
    assert a.check_remote_metadata("b", descs_of(a, arrays[6]))
    after = b.stats()
    assert after["central_wholes"] == before["central_wholes"]
    assert after["central_changes"] >= before["central_changes"] + 2
    assert after["central_bytes"] - before["central_bytes"] < 1000
    # Who comes later gets the whole and what changed since.
    c = agent_at("c")
    eventually(lambda: c.check_remote_metadata("b", descs_of(c, late)))
    assert not c.check_remote_metadata("b", descs_of(c, arrays[5]))


def test_many_changes_are_gathered_and_published_anew(etcd, agent_at):
    a, b = agent_at("a"), agent_at("b")
    a.fetch_remote_metadata("b", timeout=20)
    for i in range(200):
        array = np.zeros(128 + i, np.uint8)
        registered = b.register_memory(array)
        if i % 3 == 0:
            eventually(lambda: a.check_remote_metadata("b", descs_of(a, array)))  # noqa: B023
        b.deregister_memory(registered)
    kept = np.zeros(64, np.uint8)
    b.register_memory(kept)
    eventually(lambda: a.check_remote_metadata("b", descs_of(a, kept)))
    assert len([key for key in etcd.key_names(etcd.space) if "/changes/" in key]) <= 65


def test_callback_and_wait(etcd, agent_at):
    a = agent_at("a")
    told = []
    a.on_peers(lambda name, known: told.append((name, known)))
    b = agent_at("b")
    eventually(lambda: ("b", True) in told)
    agent_at("c")
    eventually(lambda: ("c", True) in told)
    b.close()
    eventually(lambda: ("b", False) in told)
    a.on_peers(None)
    agent_at("d")
    a.wait_for_peers(2, timeout=20)
    assert ("d", True) not in told
    with pytest.raises(TypeError, match="callback must be callable"):
        a.on_peers(3)


def test_two_agents_of_one_name(etcd, agent_at, far_at, caplog):
    """The newer one is found; the older is told; when the newer ends the older is found again."""
    a = agent_at("a")
    older = far_at("same")
    a.wait_for_peers(1, timeout=20)
    newer = far_at("same")
    eventually(lambda: newer("agent.name") == "same")
    here = np.full(64, 9, np.uint8)
    a.register_memory(here)
    spec = (newer.base, 64, 0)

    def covered():
        return a.check_remote_metadata("same", a.get_xfer_descs([spec], "DRAM"))

    eventually(covered)
    handle = a.initialize_xfer("WRITE", descs_of(a, here), a.get_xfer_descs([spec], "DRAM"), "same")
    a.transfer(handle)
    assert handle.wait(20) == "DONE"
    assert newer("int(array[0])") == 9 and older("int(array[0])") == 0
    newer("agent.close()")
    spec = (older.base, 64, 0)
    eventually(covered)


def test_killed_agents_disappear_within_the_lease(etcd, agent_at, far_at):
    a = agent_at("a")
    b = far_at("b", etcd={"lease_time": "2"})
    assert a.wait_for_peers(1, timeout=20) == ["b"]
    a.fetch_remote_metadata("b", timeout=20)
    b.process.kill()
    eventually(lambda: a.peers() == [])
    assert not a.check_remote_metadata("b")
    assert not [key for key in etcd.key_names(etcd.space) if "/b/" in key]


def test_restarted_under_its_name_supersedes_at_once(etcd, agent_at, far_at):
    """Also before the lease of the killed one has run out, and nothing of the old one is left."""
    a = agent_at("a")
    here = np.full(64, 5, np.uint8)
    a.register_memory(here)
    for _ in range(3):
        b = far_at("b", etcd={"lease_time": "60"})
        spec = (b.base, 64, 0)

        def use(spec=spec, b=b):
            try:
                handle = a.initialize_xfer(
                    "WRITE", descs_of(a, here), a.get_xfer_descs([spec], "DRAM"), "b"
                )
                a.transfer(handle)
                handle.wait(20)
            except nixl.nixlError:
                return False
            return b("int(array[0])") == 5

        eventually(use)
        b.process.kill()
        b.process.wait()


def test_a_stopped_agent_comes_back(etcd, agent_at, far_at):
    """Stopped for longer than its lease (a clock that jumps looks the same): it is put back."""
    a = agent_at("a")
    b = far_at("b", etcd={"lease_time": "2"})
    assert a.wait_for_peers(1, timeout=20) == ["b"]
    b.process.send_signal(signal.SIGSTOP)
    eventually(lambda: a.peers() == [])
    b.process.send_signal(signal.SIGCONT)
    assert a.wait_for_peers(1, timeout=20) == ["b"]


def test_metadata_beyond_the_limit(etcd, agent_at):
    """Irregular regions: 400,000 of them take more than etcd's 1.5 MiB."""
    a, b = agent_at("a"), agent_at("b")
    rng = np.random.default_rng(1)
    space = np.zeros(64 << 20, np.uint8)
    starts = np.sort(rng.choice(space.nbytes // 64 - 64, 400_000, replace=False)) * 64
    lengths = rng.integers(1, 64, len(starts))
    rows = np.stack([starts + space.ctypes.data, lengths, np.zeros_like(starts)], axis=1)
    assert len(b.get_agent_metadata()) < 1_000_000
    b.register_memory(rows, "DRAM")
    assert len(b.get_agent_metadata()) > 1_600_000
    b.send_local_metadata(timeout=60)
    last = a.get_xfer_descs([tuple(int(x) for x in rows[-1])], "DRAM")
    eventually(lambda: a.check_remote_metadata("b", last))
    assert [key for key in etcd.key_names(etcd.space) if "/parts/" in key]
    b.close()
    eventually(lambda: not [key for key in etcd.key_names(etcd.space) if "/b/" in key])


def test_an_entry_that_somebody_removed_is_put_back(etcd, agent_at):
    a, b = agent_at("a"), agent_at("b")
    assert a.wait_for_peers(1, timeout=20) == ["b"]
    b.send_local_metadata(timeout=20)
    etcd.control("del", "--prefix", f"{etcd.space}/b/")
    eventually(lambda: a.peers() == [])
    eventually(lambda: a.peers() == ["b"])


def test_agents_of_one_process_share_one_client(etcd, agent_at):
    agents = [agent_at(f"n{i}") for i in range(20)]
    for agent in agents:
        agent.wait_for_peers(19, timeout=30)
    tasks = pathlib.Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()]
    assert names.count("nixl-etcd") == 1


@pytest.fixture
def run_python_here():
    def run(code: str) -> None:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    return run


def test_a_forked_child_has_agents_of_its_own(etcd, run_python_here):
    run_python_here(
        """
import os, nixl
def make(name):
    return nixl.nixl_agent(name, nixl.nixl_agent_config(use_etcd=True))
parent = make("parent")
seen, tell = os.pipe()
child = os.fork()
if child == 0:
    mine = make("child")
    assert mine.wait_for_peers(1, timeout=20) == ["parent"]
    os.read(seen, 1)
    mine.close()
    os._exit(0)
assert parent.wait_for_peers(1, timeout=20) == ["child"]
os.write(tell, b"x")
assert os.waitpid(child, 0)[1] == 0
"""
    )


def test_closing_ends_a_fetch_and_is_quick(etcd):
    agent = nixl_agent("a", nixl_agent_config(backends=["UCX"]))
    agent.fetch_remote_metadata("nobody")
    start = time.monotonic()
    agent.close()
    assert time.monotonic() - start < 20
