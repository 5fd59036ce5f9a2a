"""Rooms from the first message to Success, with every byte compared."""

from __future__ import annotations

import numpy as np
import pytest
from kv_support import Cache, KVPoll, until
from nixl.disaggregation.conn import NixlKVReceiver, NixlKVSender


def equal_pages(source, target, here, there) -> None:
    for left, right in zip(source.kv, target.kv, strict=True):
        assert np.array_equal(left[here], right[there])


@pytest.mark.parametrize("mla", [False, True])
def test_a_room(place, mla):
    source, target = Cache(mla=mla), Cache(mla=mla)
    source.fill(1)
    prefill = place.rank("prefill", source)
    decode = place.rank("decode", target)
    receiver = NixlKVReceiver(decode, place.address, 7)
    sender = NixlKVSender(prefill, place.address, 7, [0], 0)
    until(receiver, wanted=KVPoll.WaitingForInput)
    assert sender.poll() == KVPoll.Bootstrapping
    here, there = np.array([3, 4, 9], np.int32), np.array([1, 20, 21], np.int32)
    receiver.init(there, 5)
    until(sender, wanted=KVPoll.WaitingForInput)
    sender.init(3, 2)
    sender.send(here)
    until(sender, receiver)
    equal_pages(source, target, here, there)
    for left, right in zip(source.aux, target.aux, strict=True):
        assert np.array_equal(left[2], right[5])
    untouched = np.setdiff1d(np.arange(32), there)
    assert not any(part[untouched].any() for part in target.kv)
    assert decode.check_transfer_done(7)
    assert prefill.check_status(7) == KVPoll.Success
    assert sender.get_transfer_metric().transfer_total_bytes == 3 * sum(
        p[0].nbytes for p in source.kv
    )
    for end in (sender, receiver):
        end.failure_exception()
        end.clear()
