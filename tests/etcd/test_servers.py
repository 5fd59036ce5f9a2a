"""Servers with faults, users and certificates: each is an error that says why, or is got over."""

from __future__ import annotations

import os
import signal

import etcd_support
import nixl
import numpy as np
import pytest
from etcd_support import Certificates, eventually, free_ports
from test_central import descs_of


@pytest.fixture
def space(monkeypatch):
    monkeypatch.delenv("NIXL_ETCD_ENDPOINTS", raising=False)
    monkeypatch.delenv("NIXL_ETCD_NAMESPACE", raising=False)


def messages(capfd) -> str:
    return capfd.readouterr().err


def test_what_is_not_installed_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no program etcd" in etcd_support.lacking()
    (tmp_path / "etcd").symlink_to("/proc/self/exe")
    assert f"no etcdctl beside {tmp_path}/etcd" in etcd_support.lacking()
    (tmp_path / "etcdctl").symlink_to("/proc/self/exe")
    assert etcd_support.lacking() == ""


def test_down_at_the_start(make_etcd, agent_at, space, caplog):
    """The agent is made, says once what is wrong, and is found when the server is there."""
    etcd = make_etcd()
    etcd.stop()
    settings = {"endpoints": etcd.endpoint, "timeout": "0.5"}
    a, b = agent_at("a", etcd=settings), agent_at("b", etcd=settings)
    with pytest.raises(nixl.nixlTimeoutError) as error:
        a.fetch_remote_metadata("b", timeout=1)
    assert etcd.endpoint in str(error.value) and "refused" in str(error.value)
    with pytest.raises(nixl.nixlBackendError, match="cannot be reached"):
        a.send_local_metadata(timeout=20)
    etcd.start_again()
    assert a.wait_for_peers(1, timeout=60) == ["b"]
    assert b.wait_for_peers(1, timeout=60) == ["a"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dying_in_the_middle_loses_nothing(make_etcd, agent_at, far_at, space, number):
    """What is known stays, transfers go on, what changed meanwhile is told afterwards."""
    etcd = make_etcd()
    settings = {"endpoints": etcd.endpoint, "lease_time": "2", "timeout": "0.5"}
    a, b = agent_at("a", etcd=settings), far_at("b", etcd=settings)
    here = np.full(4096, 1, np.uint8)
    a.register_memory(here)
    assert a.wait_for_peers(1, timeout=20) == ["b"]
    spec = a.get_xfer_descs([(b.base, 4096, 0)], "DRAM")
    eventually(lambda: a.check_remote_metadata("b", spec))
    etcd.stop(number)
    late = b("import numpy\nlate = numpy.zeros(64, 'u1')\nagent.register_memory(late)\n"
             "result = late.ctypes.data")  # fmt: skip
    assert a.peers() == ["b"]
    handle = a.initialize_xfer("WRITE", descs_of(a, here), spec, "b")
    a.transfer(handle)
    assert handle.wait(20) == "DONE"
    etcd.start_again()
    told = a.get_xfer_descs([(late, 64, 0)], "DRAM")
    eventually(lambda: a.check_remote_metadata("b", told))
    c = agent_at("c", etcd=settings)
    assert c.wait_for_peers(2, timeout=30) == ["a", "b"]


def test_a_server_that_hangs(make_etcd, agent_at, far_at, space):
    """Longer than the lease: entries may go, but agents with a session keep each other."""
    etcd = make_etcd()
    settings = {"endpoints": etcd.endpoint, "lease_time": "2", "timeout": "0.5"}
    a, b = agent_at("a", etcd=settings), far_at("b", etcd=settings)
    here = np.full(4096, 1, np.uint8)
    a.register_memory(here)
    spec = a.get_xfer_descs([(b.base, 4096, 0)], "DRAM")
    eventually(lambda: a.check_remote_metadata("b", spec))
    handle = a.initialize_xfer("WRITE", descs_of(a, here), spec, "b")
    a.transfer(handle)
    assert handle.wait(20) == "DONE"
    etcd.signal(signal.SIGSTOP)
    with pytest.raises(nixl.nixlTimeoutError):
        a.fetch_remote_metadata("c", timeout=4)  # longer than the lease
    etcd.signal(signal.SIGCONT)
    c = agent_at("c", etcd=settings)
    assert c.wait_for_peers(2, timeout=30) == ["a", "b"]
    a.transfer(handle)
    assert handle.wait(20) == "DONE"


def test_one_of_three_is_killed(cluster, agent_at, far_at, space):
    """Each of the members in turn, also the one in use; nothing is lost and nobody disappears."""
    endpoints = ",".join(one.endpoint for one in cluster)
    settings = {"endpoints": endpoints, "lease_time": "4", "timeout": "10"}
    a = agent_at("a", etcd=settings)
    b = far_at("b", etcd=settings)
    assert a.wait_for_peers(1, timeout=30) == ["b"]
    gone = []
    a.on_peers(lambda name, known: known or gone.append(name))
    for turn, member in enumerate(cluster):
        member.stop()
        late = np.zeros(64 + turn, np.uint8)
        a.register_memory(late)
        a.send_local_metadata(timeout=30)
        check = f"agent.check_remote_metadata('a', agent.get_xfer_descs([({late.ctypes.data}, "
        check += f"{late.nbytes}, 0)], 'DRAM'))"
        eventually(lambda check=check: b(check))
        newcomer = agent_at(f"n{turn}", etcd=settings)
        assert "b" in newcomer.wait_for_peers(2, timeout=30)
        newcomer.close()
        member.start_again()
    assert "b" not in gone


def test_one_of_three_hangs(cluster, agent_at, space):
    """A member that is stopped keeps its connections: who uses it must notice and go elsewhere."""
    endpoints = ",".join(one.endpoint for one in cluster)
    settings = {"endpoints": endpoints, "lease_time": "3", "timeout": "6"}
    a = agent_at("a", etcd=settings)
    a.send_local_metadata(timeout=30)
    cluster[0].signal(signal.SIGSTOP)
    try:
        other = {"endpoints": f"{cluster[1].endpoint}", "lease_time": "3"}
        b = agent_at("b", etcd=other)
        assert b.wait_for_peers(1, timeout=30) == ["a"]
        assert a.wait_for_peers(1, timeout=60) == ["b"]
    finally:
        cluster[0].signal(signal.SIGCONT)


def test_the_first_endpoint_is_dead(make_etcd, agent_at, space):
    etcd = make_etcd()
    dead = f"127.0.0.1:{free_ports(1)[0]}"
    a = agent_at("a", etcd={"endpoints": f"{dead};nowhere.invalid:1,{etcd.endpoint}"})
    a.send_local_metadata(timeout=30)
    b = agent_at("b", etcd={"endpoints": etcd.endpoint})
    assert b.wait_for_peers(1, timeout=20) == ["a"]


@pytest.fixture
def users(make_etcd, space):
    """A server with users on: "agent" may use /nixl/agents, "reader" may only read it."""
    etcd = make_etcd()
    for words in (
        "user add root:rootpw",
        "user add agent:agentpw",
        "user add reader:readerpw",
        "user add nobody:nobodypw",
        "role add agents",
        "role grant-permission agents readwrite --prefix=true /nixl/agents/",
        "role add readers",
        "role grant-permission readers read --prefix=true /nixl/agents/",
        "user grant-role root root",
        "user grant-role agent agents",
        "user grant-role reader readers",
        "auth enable",
    ):
        etcd.control(*words.split(), user="" if "auth" not in words else "root:rootpw")
    return etcd


def with_user(etcd, user: str, **more) -> dict:
    return {"endpoints": etcd.endpoint, "user": user, "password": f"{user}pw", **more}


def test_users(users, agent_at, tmp_path):
    a = agent_at("a", etcd=with_user(users, "agent"))
    secret = tmp_path / "password"
    secret.write_text("agentpw\n")
    secret.chmod(0o600)
    settings = {"endpoints": users.endpoint, "user": "agent", "password_file": str(secret)}
    b = agent_at("b", etcd=settings)
    assert a.wait_for_peers(1, timeout=20) == ["b"]
    assert b.wait_for_peers(1, timeout=20) == ["a"]
    secret.chmod(0o644)
    with pytest.raises(nixl.nixlInvalidParamError, match="can be read by others"):
        agent_at("c", etcd=settings)
    assert "agentpw" not in a.dump_state()


def test_without_a_user_where_one_is_wanted(users, agent_at):
    a = agent_at("a", etcd={"endpoints": users.endpoint, "watch_timeout": "2"})
    with pytest.raises(nixl.nixlNotAllowedError) as error:
        a.send_local_metadata(timeout=20)
    assert "user name is empty" in str(error.value) and "NIXL_ETCD_USER" in str(error.value)
    with pytest.raises(nixl.nixlTimeoutError, match="user name is empty"):
        a.fetch_remote_metadata("b", timeout=1)


def test_a_wrong_password(users, agent_at):
    a = agent_at("a", etcd=with_user(users, "agent", password="wrong"))
    with pytest.raises(nixl.nixlNotAllowedError) as error:
        a.send_local_metadata(timeout=20)
    assert "authentication failed" in str(error.value) and 'user "agent"' in str(error.value)
    assert "wrong" not in str(error.value).replace("authentication", "")


def test_a_user_without_the_right(users, agent_at):
    """A watch of what one may not read is refused in a message, and its stream stays open."""
    writer = agent_at("writer", etcd=with_user(users, "agent"))
    reader = agent_at("reader", etcd=with_user(users, "reader"))
    with pytest.raises(nixl.nixlNotAllowedError, match='permission denied.*user "reader"'):
        reader.send_local_metadata(timeout=20)
    assert reader.wait_for_peers(1, timeout=20) == ["writer"]
    nobody = agent_at("nobody", etcd=with_user(users, "nobody"))
    with pytest.raises(nixl.nixlTimeoutError, match="permission denied"):
        nobody.fetch_remote_metadata("writer", timeout=1)
    # What is granted later serves at once, without a new agent.
    users.control("user", "grant-role", "nobody", "agents", user="root:rootpw")
    assert "writer" in nobody.wait_for_peers(1, timeout=60)
    eventually(lambda: "nobody" in writer.peers())


def test_tokens_die_with_the_server(users, agent_at):
    """Simple tokens are forgotten in a restart: a new one is asked for, for calls and watches."""
    a = agent_at("a", etcd=with_user(users, "agent"))
    b = agent_at("b", etcd=with_user(users, "agent"))
    assert a.wait_for_peers(1, timeout=20) == ["b"]
    users.stop()
    users.launch()
    late = np.zeros(64, np.uint8)
    b.register_memory(late)
    eventually(lambda: a.check_remote_metadata("b", descs_of(a, late)))
    c = agent_at("c", etcd=with_user(users, "agent", lease_time="20"))
    eventually(lambda: "c" in a.peers())
    assert c.wait_for_peers(2, timeout=30) == ["a", "b"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_certificates(make_etcd, agent_at, certificates, space, tmp_path):
    etcd = make_etcd(tls=certificates)
    cert, key = certificates.nameless
    settings = {"endpoints": etcd.endpoint, "ca": certificates.ca, "cert": cert, "key": key}
    a = agent_at("a", etcd=settings)
    b = agent_at("b", etcd={**settings, "endpoints": etcd.endpoint.removeprefix("https://")})
    assert a.wait_for_peers(1, timeout=20) == ["b"]
    b.register_memory(np.zeros(64, np.uint8))
    short = {"timeout": "1"}
    without_ca = agent_at("c", etcd={"endpoints": etcd.endpoint, **short})
    with pytest.raises(nixl.nixlBackendError, match="certificate"):
        without_ca.send_local_metadata(timeout=20)
    plain = agent_at("d", etcd={"endpoints": etcd.endpoint.replace("https", "http"), **short})
    with pytest.raises(nixl.nixlBackendError):
        plain.send_local_metadata(timeout=20)
    without = agent_at("e", etcd={"endpoints": etcd.endpoint, "ca": certificates.ca, **short})
    with pytest.raises(nixl.nixlBackendError, match="cannot be reached"):
        without.send_local_metadata(timeout=20)
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    bad = agent_at("f", etcd={**settings, "ca": str(broken), **short})
    with pytest.raises(nixl.nixlBackendError, match="cannot be reached"):
        bad.send_local_metadata(timeout=20)


def test_a_server_certificate_without_client_usage(make_etcd, agent_at, space, tmp_path):
    """The gateway is a client of its own server; etcd itself looks healthy to its own client."""
    weak = Certificates(tmp_path, server_usage="serverAuth")
    etcd = make_etcd(tls=weak)
    cert, key = weak.nameless
    settings = {"endpoints": etcd.endpoint, "ca": weak.ca, "cert": cert, "key": key, "timeout": "1"}
    a = agent_at("a", etcd=settings)
    with pytest.raises(nixl.nixlBackendError, match="needs the extended usage clientAuth"):
        a.send_local_metadata(timeout=20)


def test_a_named_client_certificate_with_users(make_etcd, agent_at, certificates, space):
    """While users are on, the gateway refuses a client certificate with a common name."""
    etcd = make_etcd(tls=certificates)
    cert, key = certificates.named
    named = {"endpoints": etcd.endpoint, "ca": certificates.ca, "cert": cert, "key": key}
    a = agent_at("a", etcd=named)
    a.send_local_metadata(timeout=20)
    etcd.control("user", "add", "root:rootpw")
    etcd.control("user", "grant-role", "root", "root")
    etcd.control("auth", "enable", check=False)
    b = agent_at("b", etcd={**named, "user": "root", "password": "rootpw"})
    with pytest.raises(nixl.nixlNotAllowedError, match="use one without"):
        b.send_local_metadata(timeout=20)
    cert, key = certificates.nameless
    nameless = {**named, "cert": cert, "key": key, "user": "root", "password": "rootpw"}
    agent_at("c", etcd=nameless).send_local_metadata(timeout=20)


def test_a_space_that_is_full(make_etcd, agent_at, space):
    """etcd's quota: an error that names it; what was known stays."""
    etcd = make_etcd(options=("--quota-backend-bytes", str(2 << 20)))
    a = agent_at("a", etcd={"endpoints": etcd.endpoint})
    a.send_local_metadata(timeout=20)
    for i in range(30):
        etcd.control("put", f"/fill/{i}", os.urandom(50_000).hex(), check=False)
    b = agent_at("b", etcd={"endpoints": etcd.endpoint})
    with pytest.raises(nixl.nixlBackendError, match="space exceeded.*compact"):
        b.send_local_metadata(timeout=20)
    assert b.wait_for_peers(1, timeout=20) == ["a"]


def test_without_libcurl(space, run_python_without_curl):
    run_python_without_curl(
        """
import nixl
try:
    nixl.nixl_agent("a", nixl.nixl_agent_config(etcd={"endpoints": "127.0.0.1:1"}))
except nixl.nixlNotSupportedError as error:
    assert "libcurl4" in str(error), error
else:
    raise SystemExit("an agent was made")
"""
    )


@pytest.fixture
def run_python_without_curl(tmp_path):
    """A file of the library's name that is none stands in front of it."""
    import subprocess
    import sys

    for name in ("libcurl.so.4", "libcurl-gnutls.so.4"):
        (tmp_path / name).write_text("no library")

    def run(code: str) -> None:
        env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr

    return run


def test_the_doctor_and_a_server(make_etcd, space, monkeypatch, capsys):
    from nixl import doctor

    etcd = make_etcd()
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", f"{etcd.endpoint},127.0.0.1:{free_ports(1)[0]}")
    assert doctor.etcd()
    said = capsys.readouterr().out
    assert f"{etcd.endpoint}: version 3." in said and "healthy" in said and "refused" in said
