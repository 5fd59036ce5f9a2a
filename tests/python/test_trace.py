"""agent.trace(): posts of an agent during a `with` block."""

from __future__ import annotations

import json

import nixl
import pytest


def test_every_post_is_an_event(pair, tmp_path):
    handles = [pair.write((i * 1000, 1000)) for i in range(3)]
    with pair.near.trace() as trace:
        for _ in range(2):
            for handle in handles:
                pair.near.transfer(handle=handle)
                handle.wait(10)
    pair.near.transfer(handles[0])
    assert len(trace.events) == 6
    for event in trace.events:
        assert (event["bytes"], event["descriptors"], event["segments"]) == (1000, 1, 1)
        assert (event["backend"], event["lane"], event["state"]) == ("UCX", "local", "DONE")
        assert event["start"] > 1e15
    trace.save(tmp_path / "trace.json")
    assert len(json.loads((tmp_path / "trace.json").read_text())["traceEvents"]) == 6


def test_errors_pass_through_and_released_handles_are_left_out(pair):
    handle = pair.write((0, 64))
    with pair.near.trace() as trace:
        pair.near.transfer(handle)
        handle.wait(10)
        pair.near.release_xfer_handle(handle)
        with pytest.raises(nixl.nixlInvalidParamError):
            pair.near.transfer(handle)
    assert trace.events == []
    assert "transfer" not in vars(pair.near)
