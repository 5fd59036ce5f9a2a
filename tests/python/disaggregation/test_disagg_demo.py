"""The demo: decode servers go on from caches that arrived, with the tokens of one process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--requests", "6"], "6 of 6 requests"),
        (["--requests", "9", "--kill"], "prefill 0 has died; it is started anew"),
        (["--prefill", "1", "--decode", "3", "--requests", "4"], "1 prefill x 3 decode"),
    ],
)
def test_the_same_tokens_as_in_one_process(words, told):
    done = subprocess.run(
        [sys.executable, "-m", "nixl.disaggregation.demo", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"NIXL_LOG_LEVEL": "ERROR"},
    )
    assert done.returncode == 0 and told in done.stdout, done.stdout + done.stderr
    assert "DIFFERENT" not in done.stdout


def test_bad_words():
    done = subprocess.run(
        [sys.executable, "-m", "nixl.disaggregation.demo", "--decode", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "must be at least 1" in done.stderr
