"""LMCache as published over this package: its transfer channels and its storage agents."""

from __future__ import annotations

import socket

import pytest
from client_runs import needs, run

pytestmark = needs("lmcache", "msgspec", "zmq", "numpy", "torch")


def free_url() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def test_the_channel_between_engines():
    run("lmcache_ends.py", "channel_near", free_url())


def test_the_channel_between_caches():
    run("lmcache_ends.py", "context_near", free_url(), free_url())


@pytest.mark.parametrize("store", ["a_file_per_object", "a_pool_of_files"])
def test_storage_in_three_modes_buffered_and_direct(tmp_path, store):
    run("lmcache_ends.py", "in_all_modes", store, str(tmp_path))
