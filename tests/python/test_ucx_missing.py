"""What backend UCX says, once, where the UCX library or its verbs are missing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")

PROGRAM = """
import nixl, sys
for name in "ab":
    config = nixl.nixl_agent_config(backends=["UCX"], lanes=sys.argv[1])
    nixl.nixl_agent(name, config).close()
print("made")
"""
NO_LIBRARY = "no UCX library is on this machine"
NO_VERBS = "no UCX with verbs can be used"


def said(tmp_path, devices: bool, library: str, lanes: str = "") -> str:
    folder = tmp_path / "infiniband"
    folder.mkdir()
    if devices:
        (folder / "mlx5_0").mkdir()
    environment = {
        **os.environ,
        "NIXL_RDMA_DEVICES": str(folder),
        "NIXL_UCX_LIBRARY": library,
        "NIXL_LOG_LEVEL": "INFO",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, lanes], env=environment, capture_output=True, text=True
    )
    text = done.stdout + done.stderr
    if "this backend has local host stream" in text and "stream ucx" not in text:
        pytest.skip("built without UCX's headers")
    assert lanes or "made" in text, text
    return text


@pytest.fixture(scope="module", autouse=True)
def lane_is_built(tmp_path_factory) -> None:
    said(tmp_path_factory.mktemp("probe"), False, "/nonexistent/ucx", "ucx")


def test_no_library(tmp_path) -> None:
    text = said(tmp_path, False, "/nonexistent/ucx")
    assert text.count(NO_LIBRARY) == 1 and "libucx0" in text and "libucx-cu13" in text
    assert "WARN" not in text


def test_no_library_though_there_are_rdma_devices(tmp_path) -> None:
    text = said(tmp_path, True, "/nonexistent/ucx")
    assert text.count(NO_VERBS) == 1 and "ibverbs-providers" in text and "WARN" in text


def test_no_library_though_the_lane_was_asked_for(tmp_path) -> None:
    text = said(tmp_path, False, "/nonexistent/ucx", "ucx")
    assert "/nonexistent" in text and "install libucx" in text
    assert "made" not in text


def test_a_library_that_is_there_is_not_missed(tmp_path) -> None:
    library = tmp_path / "libucp.so.0"
    library.touch()
    assert NO_LIBRARY not in said(tmp_path, False, str(library))
