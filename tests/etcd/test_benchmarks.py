"""Benchmarks that find each other in a real etcd: roles, a dead target, users, what goes wrong."""

from __future__ import annotations

import base64
import http.server
import importlib
import json
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
from etcd_support import Certificates, Etcd

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
SHORT = ("--buffer_sizes", "4KB", "--iterations", "5", "--warmup_iter", "1", "--format", "csv")


@pytest.fixture(scope="module")
def etcd(shared_etcd: Etcd) -> str:
    """The URL of a server that these tests share."""
    return str(shared_etcd.endpoint)


def start(program: str, *words: str, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, str(BENCHMARKS / "multi_node" / program), *SHORT, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes: subprocess.Popen[str]) -> list[tuple[str, str]]:
    try:
        told = [one.communicate(timeout=100) for one in processes]
    finally:
        for one in processes:
            one.kill()
    assert [one.returncode for one in processes] == [0] * len(processes), told
    return told


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("utils.etcd")


def group_words(url: str, group: str) -> tuple[str, ...]:
    # The first endpoint does not answer: the next one is asked.
    return ("--etcd_endpoints", f"http://127.0.0.1:1,{url}", "--benchmark_group", group)


@pytest.fixture(scope="module", autouse=True)
def replaced(etcd: str) -> Iterator[list[subprocess.Popen[str]]]:
    """A group whose target was killed, and two who come then. They wait for its lease to run out,
    10 s, while the other tests go on."""
    words = group_words(etcd, "dead")
    first = start("ucx_p2p.py", *words)
    try:
        assert first.stderr is not None and "this is the target" in first.stderr.readline()
    finally:
        first.kill()
        first.communicate()
    pair = [start("ucx_p2p.py", *words), start("ucx_p2p.py", *words)]
    try:
        yield pair
    finally:
        for one in pair:
            one.kill()
            one.communicate()


def test_the_first_two_take_the_roles(etcd: str, utils) -> None:
    words = group_words(etcd, "pair")
    told = finish(start("ucx_p2p.py", *words), start("ucx_p2p.py", *words))
    roles = [re.search(r"this is (?:the|an) (\w+)", err)[1] for _, err in told]
    assert sorted(roles) == ["initiator", "target"]
    out = told[roles.index("initiator")][0]
    assert ",True," in out.splitlines()[-1] and told[roles.index("target")][0] == ""
    # Nothing is left, so that the name may be used again.
    assert utils.Etcd(etcd).get("/nixl/benchmarks/ucx_p2p/pair") is None


def test_four_make_two_pairs(etcd: str) -> None:
    told = finish(*(start("ucx_p2p.py", *group_words(etcd, "four")) for _ in range(4)))
    assert sum(",True," in out for out, _ in told) == 2


def test_ranks_of_several_starts_make_a_team(etcd: str) -> None:
    words = (*group_words(etcd, "team"), "--ranks", "3")
    told = finish(*(start("all_reduce.py", *words) for _ in range(3)))
    assert sum(",True," in out for out, _ in told) == 1


def test_a_target_that_died_is_replaced(replaced: list[subprocess.Popen[str]]) -> None:
    assert sum(",True," in out for out, _ in finish(*replaced)) == 1


@pytest.fixture
def cable(monkeypatch: pytest.MonkeyPatch):
    """Two hosts, which are network namespaces, with a cable between them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS / "versus"))
    hosts = importlib.import_module("hosts")
    try:
        with hosts.Cable() as made:
            yield made, hosts
    except hosts.NoHosts as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("everywhere", [False, True])
def test_two_hosts_find_each_other(
    cable, make_etcd, monkeypatch: pytest.MonkeyPatch, everywhere: bool
) -> None:
    """The address that the target tells is the one by which it reaches etcd."""
    made, hosts = cable
    monkeypatch.setenv("NIXL_LANES", "stream")  # else the one kernel is noticed
    near, far = hosts.inside(made.near), hosts.inside(made.far)
    server = make_etcd(host=hosts.NEAR_ADDRESS, prefix=tuple(near))
    words = ("--etcd_endpoints", server.endpoint, "--benchmark_group", "hosts", "--format", "json")
    words = (*words, "--ip", "0.0.0.0") if everywhere else words
    told = finish(*(start("ucx_p2p.py", *words, prefix=host) for host in (near, far)))
    target, initiator = sorted(told)
    place = re.search(r"this is the target, waiting at (\S+)", target[1])
    addresses = ("0.0.0.0",) if everywhere else (hosts.NEAR_ADDRESS, hosts.FAR_ADDRESS)
    assert place is not None and place[1] in addresses
    answer = json.loads(initiator[0])
    assert "lane stream" in answer["head"]["Backend"] and answer["results"][0]["verified"] is True


def test_users_have_passwords(make_etcd, utils, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_etcd()
    server.control("user", "add", "root:p:a/ss")
    server.control("role", "add", "root")
    server.control("user", "grant-role", "root", "root")
    server.control("auth", "enable")
    errors = importlib.import_module("utils.errors")
    with pytest.raises(errors.Refused, match="user name is empty"):
        utils.Etcd(server.endpoint).get("/x")
    monkeypatch.setenv("NIXL_ETCD_USER", "root")
    monkeypatch.setenv("NIXL_ETCD_PASSWORD", "wrong")
    with pytest.raises(errors.Refused, match="refused user 'root'"):
        utils.Etcd(server.endpoint).get("/x")
    monkeypatch.setenv("NIXL_ETCD_PASSWORD", "p:a/ss")
    known = utils.Etcd(server.endpoint)
    lease = utils.Lease(known)
    assert known.put_new("/x", "1", lease.id) and not known.put_new("/x", "2", lease.id)
    assert known.get("/x") == "1"
    known._endpoints[0].token = "ended"  # as after a restart of the server
    assert known.get("/x") == "1"
    lease.close()
    assert known.get("/x") is None


def test_certificates(
    make_etcd, utils, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    tls = Certificates(tmp_path)
    server = make_etcd(tls=tls)
    errors = importlib.import_module("utils.errors")
    with pytest.raises(errors.Refused, match="(?i)certificate"):
        utils.Etcd(server.endpoint).get("/x")
    monkeypatch.setenv("NIXL_ETCD_CA", tls.ca)
    monkeypatch.setenv("NIXL_ETCD_CERT", tls.nameless[0])
    monkeypatch.setenv("NIXL_ETCD_KEY", tls.nameless[1])
    assert utils.Etcd(server.endpoint.removeprefix("https://")).get("/x") is None
    monkeypatch.setenv("NIXL_ETCD_CA", str(tmp_path / "missing"))
    with pytest.raises(errors.Refused, match="NIXL_ETCD_CA.*missing"):
        utils.Etcd(server.endpoint)


class Other(http.server.BaseHTTPRequestHandler):
    """A web server that is no etcd."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_is_wrong_with_endpoints_is_told_at_once(other: str) -> None:
    cases = [
        (("--etcd_endpoints", "http://127.0.0.1:1"), "etcd does not answer: http://127.0.0.1:1: "),
        (("--etcd_endpoints", other), "what answers there is no etcd"),
        (("--etcd_endpoints", "ftp://x"), "is no URL such as http://host:2379"),
        (("--benchmark_group", "alone"), "--benchmark_group needs --etcd_endpoints"),
    ]
    started = [start("ucx_p2p.py", *words) for words, _ in cases]
    for process, (_, text) in zip(started, cases, strict=True):
        out, err = process.communicate(timeout=100)
        assert process.returncode == 1 and out == ""
        assert text in err and "Traceback" not in err


def test_a_foreign_value_is_named(utils, monkeypatch: pytest.MonkeyPatch) -> None:
    rendezvous = importlib.import_module("utils.rendezvous")
    errors = importlib.import_module("utils.errors")
    etcd = utils.Etcd("http://127.0.0.1:1")
    value = base64.b64encode(b'{"ip": 1').decode()
    monkeypatch.setattr(etcd, "call", lambda *_, **__: {"kvs": [{"value": value}]})
    with pytest.raises(errors.Refused, match="holds .* which is no benchmark's"):
        rendezvous._find(etcd, "/key")
