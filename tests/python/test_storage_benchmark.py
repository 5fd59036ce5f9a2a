"""The single-node and storage benchmarks: every command of the guide, real files, GPU memory by a
stand-in of the CUDA driver, and what is said where something is missing."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
STANDINS = [
    pathlib.Path(__file__).with_name("benchmark_gpu_standin.c"),
    *(pathlib.Path(__file__).parents[2] / "testing" / "standins").glob("cuda_*.c"),
]
SHORT = ["--iterations", "5", "--warmup_iter", "1", "--verify_data"]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / words[0]), *words[1:]]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=env)


def rows(*words: str, **environment: str) -> list[dict]:
    ended = run(*words, *SHORT, "--format", "jsonl", **environment)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert all(one["result"]["verified"] is True for one in found)
    return found


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_memory_in_one_process(operation: str) -> None:
    words = ("--buffer_sizes", "5KB,1MB", "--operation", operation, "--batch_size", "7")
    for program in ("memory_copy.py", "ucx_loopback.py"):
        found = rows(f"single_node/{program}", *words, "--enable_vmm")
        assert [one["result"]["size"] for one in found] == [5120, 1 << 20]
        first = found[0]["result"]
        assert first["operations_per_s"] == pytest.approx(7e6 / first["mean_us"], rel=0.01)


def test_threads_that_were_asked_for() -> None:
    words = ("--enable_pt", "--progress_threads", "2", "--warmup_iter", "3", "--num_iter", "4")
    found = rows("single_node/ucx_loopback.py", "--buffer_size", "1KB", *words)
    assert found[0]["parameters"]["progress_threads"] == 2


@pytest.mark.parametrize(
    "words",
    [
        "--api_type URING",
        "--api_type AIO --direct_io --operation READ",
        "--api_type POSIXAIO --storage_enable_direct",
        "--operation READ --batch_size 16 --backend_param queue_depth=4 --direct_io",
    ],
)
def test_files(words: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "made"
    place = ("--file_path", str(path), "--buffer_sizes", "4KB,64KB,1MB")
    found = rows("single_node/posix_storage.py", *place, *words.split())
    wanted = "O_DIRECT" if "direct" in words else "page cache"
    assert wanted in found[0]["head"]["Backend"]
    assert not path.exists()  # this run made it


def test_a_file_that_was_there_stays(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"x" * 10_000)
    rows("single_node/posix_storage.py", "--file_path", str(path), "--buffer_size", "4KB")
    assert path.stat().st_size == 10_000
    assert path.read_bytes()[4096:] == b"x" * (10_000 - 4096)


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the CUDA stand-in")
    library = str(tmp_path_factory.mktemp("gpu") / "libstandin.so")
    command = [compiler, "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-o", library]
    subprocess.run([*command, *map(str, STANDINS)], check=True)
    return {"NIXL_CUDA_LIBRARY": library, "NIXL_NVML_LIBRARY": library}


@pytest.mark.parametrize(
    "words", ["", "--operation READ --direct_io", "--enable_vmm --batch_size 3"]
)
def test_gpu_memory_to_files(words: str, gpu: dict[str, str], tmp_path: pathlib.Path) -> None:
    place = ("--file_path", str(tmp_path / "f"), "--buffer_sizes", "4KB,1MB", "--gpu_id", "0")
    found = rows(
        "single_node/posix_storage.py", *place, "--memory_type", "VRAM", *words.split(), **gpu
    )
    assert "VRAM (GPU 0)" in found[0]["head"]["Memory Type"]
    assert found[0]["result"]["gpu_percent"] == 42
    assert found[0]["machine"]["gpus"] == ["Stand-in 9000"]
    assert found[0]["machine"]["gpu_driver"] == "1.2.3"


def test_a_gpu_that_is_not_there(gpu: dict[str, str], tmp_path: pathlib.Path) -> None:
    words = ("--memory_type", "VRAM", "--gpu_id", "3", "--file_path", str(tmp_path / "f"))
    ended = run("single_node/posix_storage.py", *words, **gpu)
    assert ended.returncode == 77 and ended.stdout == ""
    assert "VRAM, GPU 3: cuDeviceGet: invalid device ordinal" in ended.stderr


GUIDE = [
    ("GDS", "single_node/gds_storage.py --file_path {file} --buffer_size 1GB --direct_io"),
    (
        "GDS",
        "storage/gds_benchmark.py --operation WRITE --file_path {file} --buffer_size 1GB "
        "--batch_size 128 --gds_batch_pool_size 256 --gds_batch_limit 512 "
        "--storage_enable_direct",
    ),
    (
        "GDS",
        "storage/gds_benchmark.py --operation READ --file_path {file} --buffer_size 1GB "
        "--verify_data",
    ),
    ("GUSLI", "storage/gusli_block.py --device_path {file}"),
]


@pytest.mark.parametrize(("backend", "line"), GUIDE, ids=lambda one: one.split()[0])
def test_a_backend_that_is_missing_is_said_at_once(
    backend: str, line: str, tmp_path: pathlib.Path
) -> None:
    nixl = pytest.importorskip("nixl")
    if backend in nixl.nixl_agent("asks", nixl.nixl_agent_config(backends=[])).get_plugin_list():
        pytest.skip(f"backend {backend} is here")
    ended = run(*line.format(file=tmp_path / "f").split())
    assert ended.returncode == 77 and ended.stdout == ""
    assert f"backend {backend}: this build has no plugin of that name" in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--file_path /no/such/folder/f", "there is no folder /no/such/folder"),
        ("--file_path /dev/zero", "is no regular file"),
        ("--file_path {file} --buffer_size 1KB --batch_size 2000", "--batch_size 2000"),
        ("--file_path {file} --backend_param queue_depth=many", "parameter queue_depth="),
        ("--file_path {file} --buffer_sizes 4KB,x", "'x' is no size such as 4KB"),
        ("--file_path {file} --iterations 0", "0 is below 1"),
        ("", "--file_path"),
    ],
)
def test_what_cannot_be_is_refused(words: str, text: str, tmp_path: pathlib.Path) -> None:
    ended = run("single_node/posix_storage.py", *words.format(file=tmp_path / "f").split())
    assert ended.returncode in (1, 2) and ended.stdout == ""
    assert text in ended.stderr and "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


LOSES = """
import sys
sys.path[:0] = [{folder!r}, {above!r}]
import posix_storage as program
import utils.storage as storage

read = storage.read_plain
def spoiled(path, size, offset=0):
    data = read(path, size, offset)
    data[size // 2] ^= 1
    return data
storage.read_plain = spoiled
sys.argv[0] = "posix_storage.py"
raise SystemExit(program.run(program.main))
"""


@pytest.mark.parametrize("operation", ["WRITE", "READ"])
def test_a_byte_that_differs_is_found(operation: str, tmp_path: pathlib.Path) -> None:
    folder = BENCHMARKS / "single_node"
    script = tmp_path / "spoiled.py"
    script.write_text(LOSES.format(folder=str(folder), above=str(BENCHMARKS)))
    words = ["--file_path", str(tmp_path / "f"), "--buffer_size", "64KB", "--operation", operation]
    ended = subprocess.run(
        [sys.executable, str(script), *words, *SHORT], capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 1 and "DIFFERS" in ended.stdout, ended.stderr


INSTEAD = """
import json, os, sys
sys.path[:0] = [{folder!r}, {above!r}]
import {module} as program
import utils.storage as storage

# POSIX in the place of a backend that is not here, and a file in that of a device.
real = storage.add_backend
def add_backend(agent, name, options, parameters):
    print(json.dumps([name, dict(parameters)]), file=sys.stderr)
    real(agent, "POSIX", options, {{}})
storage.add_backend = add_backend
if {module!r} == "gusli_block":
    def open_place(self, size, keep):
        fd = os.open(self.options.device_path, os.O_RDWR)
        keep.callback(os.close, fd)
        return self.options.device_offset, fd
    program.GusliBlock.kind, program.GusliBlock.open_place = "FILE", open_place
sys.argv[0] = {module!r} + ".py"
raise SystemExit(program.run(program.main))
"""


def run_instead(module: str, tmp_path: pathlib.Path, *words: str) -> tuple[list, list[dict]]:
    """What the program asked of its backend, and its records."""
    script = tmp_path / "instead.py"
    places = {"folder": str(BENCHMARKS / "storage"), "above": str(BENCHMARKS)}
    script.write_text(INSTEAD.format(module=module, **places))
    command = [sys.executable, str(script), *words, *SHORT, "--format", "jsonl"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert all(one["result"]["verified"] is True for one in found)
    return json.loads(ended.stderr.splitlines()[0]), found


def test_gds_at_length_with_another_backend(tmp_path: pathlib.Path) -> None:
    words = "--operation BOTH --memory_type DRAM --buffer_size 1MB --batch_size 128"
    words += " --gds_batch_pool_size 256 --gds_batch_limit 512 --storage_enable_direct"
    asked, found = run_instead(
        "gds_benchmark", tmp_path, "--file_path", str(tmp_path / "f"), *words.split()
    )
    assert asked == ["GDS", {"batch_pool_size": "256", "batch_limit": "512"}]
    assert [one["head"]["Operation"] for one in found] == ["WRITE", "READ"]
    assert "FILE" in found[1]["head"]["Memory Type"].split("->")[0]


def test_block_devices_with_another_backend(tmp_path: pathlib.Path) -> None:
    device = tmp_path / "device"
    content = os.urandom(1 << 20)
    device.write_bytes(content)
    place = ("--device_path", str(device), "--device_offset", "64KB", "--buffer_sizes", "4KB,256KB")
    asked, _ = run_instead("gusli_block", tmp_path, *place, "--config_file", "list")
    assert asked == ["GUSLI", {"config_file": "list"}]
    assert device.read_bytes() == content  # reading is the default
    run_instead("gusli_block", tmp_path, *place, "--operation", "WRITE", "--overwrite")
    after = device.read_bytes()
    assert after[: 64 << 10] == content[: 64 << 10] and after != content
    assert after[320 << 10 :] == content[320 << 10 :]
    with pytest.raises(AssertionError, match="say --overwrite as well"):
        run_instead("gusli_block", tmp_path, *place, "--operation", "WRITE")
