"""Dynamo as published over this package: embeddings that a sender writes into a receiver's ring."""

from __future__ import annotations

from client_runs import needs, run

pytestmark = needs("dynamo", "msgspec", "pydantic", "torch")


def test_embeddings_are_written_into_the_receivers_buffer():
    run("dynamo_ends.py", "receive")
