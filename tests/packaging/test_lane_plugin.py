"""The example lane outside the tree: small, one line of registration, and it passes conformance."""

from __future__ import annotations

import pathlib
import sys

import pytest
from conftest import ROOT, run

EXAMPLE = ROOT / "examples" / "lane"


@pytest.fixture(scope="module")
def plugin_dir(prefix: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    build = tmp_path_factory.mktemp("relay")
    run("cmake", "-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    return build


def test_it_is_one_folder_and_one_line_of_registration() -> None:
    text = (EXAMPLE / "relay.cpp").read_text()
    assert len(text.splitlines()) <= 150
    assert text.count("spec.lanes.push_back(") == 1
    assert sorted(path.name for path in EXAMPLE.iterdir()) == [
        "CMakeLists.txt",
        "README.md",
        "relay.cpp",
    ]


def test_passes_the_conformance_suite(conformance: pathlib.Path, plugin_dir: pathlib.Path) -> None:
    shown = run(
        conformance,
        "RELAY",
        "--param=lanes=relay",
        "--largest=8388608",
        env={"NIXL_PLUGIN_DIR": str(plugin_dir)},
    )
    assert "[  PASSED  ]" in shown
    assert "FAILED" not in shown


PROGRAM = """
import numpy as np, nixl
near, far = (nixl.nixl_agent(n, nixl.nixl_agent_config(backends=[])) for n in ("near", "far"))
for agent in (near, far):
    agent.create_backend("RELAY", {"lanes": "relay"})
source, target = np.arange(4096, dtype=np.uint8), np.zeros(4096, dtype=np.uint8)
here, there = near.register_memory(source), far.register_memory(target)
near.add_remote_agent(far.get_agent_metadata())
handle = near.initialize_xfer("WRITE", here.trim(), there.trim(), "far", b"sent")
near.transfer(handle)
assert handle.wait(30) == "DONE"
assert (source == target).all()
print(near.explain(handle)["lane"], far.wait_notifs(b"sent", timeout=30))
"""


def test_two_agents_use_it(build_tree: pathlib.Path, plugin_dir: pathlib.Path) -> None:
    shown = run(
        sys.executable,
        "-c",
        PROGRAM,
        env={"NIXL_PLUGIN_DIR": str(plugin_dir), "PYTHONPATH": str(build_tree / "python")},
    )
    assert "relay" in shown
