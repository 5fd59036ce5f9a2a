"""SGLang's connector of disaggregated serving as published, over this package."""

from __future__ import annotations

from client_runs import needs, run

pytestmark = needs("sglang", "msgspec", "zmq", "aiohttp", "requests", "torch")


def test_pages_in_chunks():
    run("sglang_kv.py", "1", "1")
