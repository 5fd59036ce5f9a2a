"""Shared by the tests of disaggregated serving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("nixl", reason="the Python module is not built")
pytest.importorskip("zmq", reason="pyzmq is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")

import kv_support


@pytest.fixture
def place() -> Iterator[kv_support.Place]:
    made = kv_support.Place()
    yield made
    made.close()
