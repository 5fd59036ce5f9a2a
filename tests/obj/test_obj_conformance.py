"""The conformance suite over a real S3 server, with the plugin as its own witness."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest
from obj_support import parameters

# Without partial_write=merge a write is the whole object.
WHOLE = "an object is written whole"
INTO_THE_MIDDLE = [
    "RoundTripSizes",
    "RoundTripOddBuffers",
    "RoundTripLargest",
    "ScatteredSegments",
    "RegularRuns",
    "ManyPending",
    "ManyThreads",
    "EndsWithWorkInFlight",
    "DeregisterWhilePending",
    "AgentEndsWithWorkInFlight",
]


@pytest.mark.parametrize("mode", ["merge", "refuse"])
def test_conformance(weed, mode):
    build = os.environ.get("NIXL_BUILD_DIR")
    program = pathlib.Path(build or ".") / "bin" / "nixl_conformance"
    if not program.exists():
        pytest.skip("nixl_conformance is not built, or NIXL_BUILD_DIR not set")
    given = parameters(weed.endpoint, partial_write=mode)
    command = [program, "OBJ", "--remote=self:OBJ", "--largest=2097152"]
    command += [f"--param={key}={value}" for key, value in given.items()]
    if mode == "refuse":
        command += [f"--deviation={check}={WHOLE}" for check in INTO_THE_MIDDLE]
    environment = {**os.environ, "NIXL_PLUGIN_DIR": str(program.parent.parent / "lib/nixl/plugins")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert "[  PASSED  ]" in done.stdout
