"""The guide's use cases with tensors of a real GPU, as printed there: KV cache and checkpoint."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import gpu_support
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))
torch = pytest.importorskip("torch")
gds_support = pytest.importorskip("gds_support")

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def real_gpu() -> None:
    if gpu_support.is_standin() or not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")


def test_kv_cache_from_node_to_node(make_agent) -> None:
    batch, heads, tokens, dim, layers = 2, 8, 256, 128, 4
    agent, remote = make_agent("kv_cache_node"), make_agent("remote_node")
    kv_cache = [torch.randn(batch, heads, tokens, dim).cuda() for _ in range(layers)]
    there = [torch.zeros(batch, heads, tokens, dim).cuda() for _ in range(layers)]
    agent.register_memory(kv_cache)
    remote.register_memory(there)
    agent.add_remote_agent(remote.get_agent_metadata())
    torch.cuda.synchronize()
    handle = agent.initialize_xfer(
        "WRITE",
        agent.get_xfer_descs(kv_cache),
        remote.get_xfer_descs(there),
        remote.name,
        b"kv_cache",
    )
    agent.transfer(handle)
    assert handle.wait(60) == "DONE"
    assert all(torch.equal(one, other) for one, other in zip(kv_cache, there, strict=True))
    assert remote.check_remote_xfer_done(agent.name, b"kv_cache")


CHECKPOINT = """
import sys, os, torch
from nixl._api import nixl_agent, nixl_agent_config
path = sys.argv[1]
model = torch.nn.Sequential(torch.nn.Linear(1024, 512), torch.nn.Linear(512, 64)).cuda()
agent = nixl_agent("checkpoint_agent", nixl_agent_config(backends=["GDS"]))
model_params = [p.data for p in model.parameters()]
torch.cuda.synchronize()
reg_descs = agent.register_memory(model_params)
total_size = sum(p.numel() * p.element_size() for p in model_params)
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
file_descs = agent.get_reg_descs([(0, total_size, fd, path.encode())], "FILE")
agent.register_memory(file_descs)
rows, offset = [], 0
for p in model_params:
    rows.append((offset, p.numel() * p.element_size(), fd))
    offset += rows[-1][1]
handle = agent.initialize_xfer("WRITE", agent.get_xfer_descs(model_params),
                               agent.get_xfer_descs(rows, "FILE"), "checkpoint_agent")
agent.transfer(handle)
assert handle.wait(60) == "DONE"
whole = b"".join(p.cpu().numpy().tobytes() for p in model_params)
assert open(path, "rb").read() == whole
print("checkpoint", agent.explain(handle))
"""


def test_checkpoint_by_gds(tmp_path_factory) -> None:
    library = gds_support.real_or_skip()
    run = gds_support.Runner(tmp_path_factory.mktemp("gds"))
    path = pathlib.Path("/dev/shm/nixl_checkpoint.bin")
    try:
        print(run(CHECKPOINT, path, library=library))
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("words", [["--memory_type", "VRAM"], ["--initiator_mem", "VRAM"]])
def test_the_benchmark_of_two_processes(words: list[str]) -> None:
    command = [sys.executable, str(BENCHMARKS / "multi_node" / "ucx_p2p.py"), *words]
    command += ["--buffer_sizes", "64KB,16MB", "--num_iter", "20", "--verify_data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "VRAM" in done.stdout and done.stdout.count("same") == 2, done.stdout
    print(done.stdout)
