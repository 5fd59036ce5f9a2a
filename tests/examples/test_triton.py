"""examples/triton: the models in two real servers; the tokens are those of one process."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
pytest.importorskip("zmq", reason="pyzmq is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")

from nixl.disaggregation.demo.model import PagedCache, Shape, Transformer, decode, prefill

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 90.0
STUB = "triton_python_backend_stub"


def triton(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, str]]:
    """The server of the wheel nvidia-pytriton and its environment; makes a folder of backends."""
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        pytest.skip("not installed: nvidia-pytriton, whose wheel has a Triton server")
    place = pathlib.Path(found.submodule_search_locations[0])
    server = place / "tritonserver"
    stub = server / "python_backend_stubs" / "{}.{}".format(*sys.version_info[:2]) / STUB
    if not stub.exists():
        pytest.skip(f"nvidia-pytriton has no backend for Python {sys.version.split()[0]}")
    libraries = place.parent / "nvidia_pytriton.libs"
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries)}
    linked = subprocess.run(["ldd", stub], env=environment, capture_output=True, text=True).stdout
    missing = [line.split()[0] for line in linked.splitlines() if "not found" in line]
    if missing:
        pytest.skip(f"Triton's Python backend needs {', '.join(missing)}")
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for one in (*(server / "backends" / "python").iterdir(), stub):
        (backend / one.name).symlink_to(one)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return server / "bin" / "tritonserver", environment


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def ask(port: int, path: str, question: dict | None = None) -> dict:
    data = None if question is None else json.dumps(question).encode()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, PATIENCE) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        text = error.read()
    return json.loads(text) if text else {}


def infer(port: int, model: str, **inputs) -> list[int]:
    types = {"ROOM": "INT64", "PREFILL": "BYTES"}
    told = [
        {"name": name, "datatype": types.get(name, "INT32"), "shape": [len(data)], "data": data}
        for name, data in inputs.items()
    ]
    answer = ask(port, f"/v2/models/{model}/infer", {"inputs": told})
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["outputs"][0]["data"]


class Servers:
    """One server for each model."""

    def __init__(self, folder: pathlib.Path) -> None:
        program, environment = triton(folder)
        self.prefill, self.decode, self.bootstrap = free_ports(3)
        self.processes, self.logs = [], []
        for model, port in (("prefill", self.prefill), ("decode", self.decode)):
            self.logs.append(folder / f"{model}.log")
            command = [
                program, "--model-repository", ROOT / "examples" / "triton" / "models",
                "--model-control-mode", "explicit", "--load-model", model,
                "--backend-directory", folder / "backends", "--http-address", "127.0.0.1",
                "--http-port", str(port), "--allow-grpc", "false", "--allow-metrics", "false",
                "--exit-timeout-secs", "10",
            ]  # fmt: skip
            with self.logs[-1].open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        stdout=log,
                        stderr=log,
                        env=environment | {"NIXL_BOOTSTRAP_PORT": str(self.bootstrap)},
                    )
                )

    def until_ready(self) -> None:
        limit = time.monotonic() + PATIENCE
        for process, log, port in zip(
            self.processes, self.logs, (self.prefill, self.decode), strict=True
        ):
            while not self.answers(port):
                assert process.poll() is None and time.monotonic() < limit, log.read_text()[-4000:]
                time.sleep(0.1)  # sleeps: a server that starts tells nobody

    @staticmethod
    def answers(port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=10):
                return True
        except OSError:
            return False

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def servers(tmp_path):
    made = Servers(tmp_path)
    yield made
    made.close()


def of_one_process(prompt: list[int], count: int) -> list[int]:
    shape = Shape()
    model, cache = Transformer(shape), PagedCache(shape)
    pages = cache.take(len(prompt) + count)
    first = prefill(model, prompt, cache, pages, 32)
    return decode(model, first, len(prompt), count, cache, pages)


def test_decode_goes_on_from_what_prefill_sent(servers):
    servers.until_ready()
    prompts = [[(at * 31 + room * 7) % 512 for at in range(5 + 40 * room)] for room in range(3)]
    where = [f"127.0.0.1:{servers.bootstrap}"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        wanted = [
            pool.submit(
                infer, servers.decode, "decode",
                PROMPT=prompt, ROOM=[room], PREFILL=where, COUNT=[6],
            )
            for room, prompt in enumerate(prompts)
        ]  # fmt: skip
        for room, prompt in enumerate(prompts):
            infer(servers.prefill, "prefill", PROMPT=prompt, ROOM=[room])
        for prompt, answer in zip(prompts, wanted, strict=True):
            assert answer.result() == of_one_process(prompt, 6)
    with pytest.raises(ValueError, match=r"PROMPT: tokens from 0 to 511, at least one"):
        infer(servers.prefill, "prefill", PROMPT=[512], ROOM=[9])
    with pytest.raises(ValueError, match='not "host:port"'):
        infer(servers.decode, "decode", PROMPT=[1], ROOM=[9], PREFILL=["x"], COUNT=[1])
    with pytest.raises(ValueError, match="pages are needed, 256 are free"):
        infer(servers.decode, "decode", PROMPT=[1], ROOM=[9], PREFILL=where, COUNT=[4000])
