"""Who decides on a setting of the UCX library: the environment before a client's engine_config."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")

# Two agents of one process; prints the lane between them, or the error.
PROGRAM = """
import json, sys
from nixl import nixl_agent, nixl_agent_config

params = json.loads(sys.argv[1])
memory = bytearray(8192)
try:
    ends = [
        nixl_agent(name, nixl_agent_config(backends=["UCX"], backend_params={"UCX": params}))
        for name in ("near", "far")
    ]
    for end in ends:
        end.register_memory(memory)
    ends[0].add_remote_agent(ends[1].get_agent_metadata())
    descs = ends[0].get_xfer_descs(memory)
    handle = ends[0].initialize_xfer("WRITE", descs, descs, "far")
    print(ends[0].explain(handle)["lane"])
except Exception as error:
    print(type(error).__name__, error)
"""


def lane(params: dict[str, str], **environment: str) -> tuple[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("UCX_")}
    kept["NIXL_LOG_LEVEL"] = "INFO"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(params)],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    found, _ = lane({"lanes": "ucx"})
    if found != "ucx":
        pytest.skip(found)


def test_excluding_transports_asks_for_none():
    assert lane({"engine_config": "TLS=^rc_gda"})[0] == "local"
    assert lane({}, UCX_TLS="^rc_gda")[0] == "local"
    assert lane({"engine_config": "RCACHE_ENABLE=n,TLS=tcp,posix"})[0] == "ucx"


def test_the_environment_is_stronger_than_engine_config():
    found, log = lane({"engine_config": "TLS=^rc_gda"}, UCX_TLS="tcp")
    assert found == "ucx"
    assert 'UCX_TLS="tcp" of the environment is used, not "^rc_gda"' in log
    assert lane({"engine_config": "TLS=tcp"}, UCX_TLS="^tcp")[0] == "local"
    found, log = lane({"device_list": "nowhere0"}, UCX_TLS="tcp", UCX_NET_DEVICES="lo")
    assert found == "ucx"
    assert 'UCX_NET_DEVICES="lo" of the environment is used, not "nowhere0"' in log


def test_a_parameter_of_the_librarys_own_name_is_stronger_than_the_environment():
    assert lane({"UCX_TLS": "tcp"}, UCX_TLS="^tcp")[0] == "ucx"


def test_a_setting_that_the_library_does_not_take():
    found, _ = lane({"UCX_TLS": "tcp", "engine_config": "RNDV_THRESH=soon"})
    assert 'UCX_RNDV_THRESH="soon"' in found
