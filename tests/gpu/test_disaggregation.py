"""Disaggregated serving with caches in memory of GPUs."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("zmq", reason="pyzmq is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")

import nixl
from gpu_kv import HEADS, PAGES, Cache, content, digest, until
from nixl.disaggregation import conn

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def bootstrap():
    with conn.NixlKVBootstrapServer("127.0.0.1", 0) as server:
        yield server


@pytest.mark.parametrize(("kind", "tp"), [("VRAM", 1), ("VRAM", 2), ("DRAM", 1), ("DRAM", 2)])
def test_rooms_from_one_gpu_to_another(bootstrap, other_gpu, kind, tp):
    """Also cut out of each token, where the prefill side has two ranks; also into host memory."""
    whole = content(3)
    sources = [Cache(HEADS // tp) for _ in range(tp)]
    target = Cache(kind=kind, device=other_gpu if kind == "VRAM" else 0)
    managers = []
    try:
        for at, source in enumerate(sources):
            each = HEADS // tp
            source.set([part[:, :, at * each : (at + 1) * each] for part in whole])
            managers.append(source.rank("prefill", bootstrap.port, at, tp))
        managers.append(target.rank("decode", bootstrap.port))
        assert managers[0].layout.mem_kind == "VRAM" and managers[-1].layout.mem_kind == kind
        here, there = np.array([5, 0, 11, 2], np.int32), np.array([1, 7, 8, 10], np.int32)
        receiver = conn.NixlKVReceiver(managers[-1], bootstrap.address, 7)
        receiver.init(there, 2)
        senders = [conn.NixlKVSender(one, bootstrap.address, 7) for one in managers[:-1]]
        for source, sender in zip(sources, senders, strict=True):
            source.aux[1] = 77
            sender.init(4, 1)
            sender.send(here[:3])
            sender.send(here[3:])
        until(receiver, *senders)
        others = np.setdiff1d(np.arange(PAGES), there)
        for got, right in zip(target.get(), whole, strict=True):
            assert np.array_equal(got[there], right[here]) and not got[others].any()
        assert (target.aux[2] == 77).all()
    finally:
        for manager in managers:
            manager.close()
        for cache in (*sources, target):
            cache.free()


def test_rooms_between_processes(bootstrap):
    whole, source = content(4), Cache()
    source.set(whole)
    pages = [3, 4, 9]
    child = subprocess.Popen(
        [sys.executable, HERE / "gpu_kv.py", str(bootstrap.port), "5", *map(str, pages)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with source.rank("prefill", bootstrap.port) as manager:
            sender = conn.NixlKVSender(manager, bootstrap.address, 5)
            sender.init(3, 0)
            sender.send(np.array([2, 6, 7], np.int32))
            assert child.stdout.readline() == "asked\n"
            until(sender)
            assert child.stdout.readline().strip() == digest(whole, [2, 6, 7])
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
        source.free()


def test_memory_that_is_not_of_the_gpu_that_is_named(bootstrap, other_gpu):
    cache = Cache(device=other_gpu)
    try:
        cache.device = 0
        with pytest.raises(nixl.nixlInvalidParamError, match="it belongs to device 1"):
            cache.rank("prefill", bootstrap.port)
    finally:
        cache.free()
