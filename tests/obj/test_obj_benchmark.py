"""The guide's program for objects, with its flags, over a real server."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from weed import ACCESS, BUCKET, SECRET

PROGRAM = pathlib.Path(__file__).parents[2] / "benchmarks" / "storage" / "obj_s3.py"


def test_the_guides_flags(weed, witness):
    words = ["--bucket_name", BUCKET, "--region", "us-west-2", "--buffer_sizes", "4KB,1MB"]
    words += ["--num_objects", "5", "--endpoint", weed.endpoint, "--memory", "2MB", "--verify_data"]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
    for operation in ("WRITE", "READ"):
        done = subprocess.run(
            [sys.executable, PROGRAM, *words, "--operation", operation],
            env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("same") == 2, done.stdout
    listed = witness.list_objects_v2(Bucket=BUCKET, Prefix="nixl-benchmark/")
    assert "Contents" not in listed
