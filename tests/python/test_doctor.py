"""The doctor: what it says of this machine, and of things that are wrong."""

from __future__ import annotations

import http.server
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest
from nixl import doctor

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*command, status: int | None = 0, **environment: str) -> str:
    environment = {**os.environ, "NIXL_ETCD_ENDPOINTS": "", **environment}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=110
    )
    assert status is None or done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_both_names_say_the_same_things():
    said = run("-m", "nixl.doctor", status=None)
    for word in (
        "plugin UCX",
        "plugin POSIX",
        "cross-memory attach",
        "io_uring",
        "locked memory",
        "UCX_MO",
        "DOCA (GPUNETIO)",
    ):
        assert word in said
    for word in (
        "open files",
        "port 8888",
        "NIXL_ETCD_ENDPOINTS is not set",
        "RDMA",
        "libfabric pr",
    ):
        assert word in said
    other = run(str(ROOT / "check_nixl_plugins.py"), status=None)
    names = [line[:26] for line in said.splitlines()]
    assert [line[:26] for line in other.splitlines()] == names


def test_the_checker_without_a_package_says_what_to_do(tmp_path):
    copy = tmp_path / "check_nixl_plugins.py"
    copy.write_text((ROOT / "check_nixl_plugins.py").read_text())
    assert "pip install" in run("-I", str(copy), status=1)


def test_a_wrong_plugin_folder(tmp_path):
    said = run("-m", "nixl.doctor", status=1, NIXL_PLUGIN_DIR=f"{tmp_path}/none")
    assert f"FAIL  NIXL_PLUGIN_DIR      {tmp_path}/none is no folder" in said


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("", 0)) as taken:
        assert doctor.port(taken.getsockname()[1])
        assert "note  port" in capsys.readouterr().out
        assert "free" not in capsys.readouterr().out


def test_rdma_that_would_be_lost_is_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "INFINIBAND", tmp_path)
    assert doctor.rdma()
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr(doctor, "ucx_modules", lambda: [])
    assert not doctor.rdma()
    assert "would go over TCP; install a UCX with verbs" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "ucx_modules", lambda: ["/usr/lib/ucx/libuct_ib.so.0"])
    monkeypatch.setattr(doctor, "loads", lambda soname, short: soname)
    assert doctor.rdma()


def test_providers_of_libfabric(monkeypatch, capsys):
    monkeypatch.setenv("NIXL_LIBFABRIC_LIBRARY", "/nowhere/libfabric.so.1")
    assert doctor.fabric_providers()
    said = capsys.readouterr().out
    assert "note  libfabric providers" in said
    assert "/nowhere/libfabric.so.1" in said or "no plugin LIBFABRIC" in said


@pytest.fixture
def web():
    """A server that is no etcd."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_words) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_etcd_that_is_none(web, monkeypatch, capsys):
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", web)
    assert not doctor.etcd()
    assert f"FAIL  etcd                 {web}: HTTP Error 404" in capsys.readouterr().out
    with socket.create_server(("127.0.0.1", 0)) as closed:
        free = closed.getsockname()[1]
    monkeypatch.setenv("NIXL_ETCD_ENDPOINTS", f"127.0.0.1:{free}")
    assert not doctor.etcd()
    said = capsys.readouterr().out
    assert "refused" in said and f"curl http://127.0.0.1:{free}/version" in said


def test_a_limit_on_locked_memory(monkeypatch, capsys):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (64 << 10, 64 << 10))
    monkeypatch.setattr(doctor.os, "geteuid", lambda: 1000)
    doctor.limits()
    said = capsys.readouterr().out
    assert "note  locked memory" in said and "ulimit -l unlimited" in said
    assert "note  open files" not in said
