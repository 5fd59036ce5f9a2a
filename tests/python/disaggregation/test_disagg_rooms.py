"""Rooms from the first message to Success, with every byte compared."""

from __future__ import annotations

import time

import numpy as np
import pytest
from kv_support import PATIENCE, Cache, KVPoll, until, why
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


def test_rooms_move_on_while_nobody_polls(place):
    """A scheduler's poll tells what threads of ours have seen: it takes no notification."""
    source, target = Cache(), Cache()
    source.fill(1)
    prefill, decode = place.rank("prefill", source), place.rank("decode", target)
    receiver = NixlKVReceiver(decode, place.address, 7)
    sender = NixlKVSender(prefill, place.address, 7, [0], 0)
    here = np.array([3, 4, 9], np.int32)
    receiver.init(here, 5)
    until(sender, wanted=KVPoll.WaitingForInput)
    sender.init(3, 2)
    sender.send(here[:1])
    sender.send(here[1:])
    limit = time.monotonic() + PATIENCE
    while not decode.check_transfer_done(7):
        assert time.monotonic() < limit
        time.sleep(0.001)  # sleeps: nothing tells of it but what is looked at here
    equal_pages(source, target, here, here)
    while prefill.check_status(7) != KVPoll.Success:
        assert time.monotonic() < limit
        time.sleep(0.001)  # sleeps: as above
    assert (sender.poll(), receiver.poll()) == (KVPoll.Success, KVPoll.Success)


def test_a_sender_that_gave_up_before_it_was_asked(place):
    """Who asks for its pages afterwards is told, and the room may be used again."""
    source, target = Cache(), Cache()
    source.fill(4)
    prefill, decode = place.rank("prefill", source), place.rank("decode", target)
    pages = np.array([3, 4, 9], np.int32)
    NixlKVSender(prefill, place.address, 5).abort()
    late = NixlKVReceiver(decode, place.address, 5)
    late.init(pages, 0)
    assert "aborted by the prefill rank" in why(late)
    late.clear()
    receiver = NixlKVReceiver(decode, place.address, 5)
    receiver.init(pages, 0)
    sender = NixlKVSender(prefill, place.address, 5)
    until(sender, wanted=KVPoll.WaitingForInput)
    sender.init(3, 2)
    sender.send(pages)
    until(sender, receiver)
    equal_pages(source, target, pages, pages)


def test_a_lost_abort_is_sent_again_while_others_go_on(place):
    """Rooms under way ping the rank all the time; that must not take the place of the note."""
    prefill, decode = place.rank("prefill", Cache()), place.rank("decode", Cache())
    other, receiver = (NixlKVReceiver(decode, place.address, room) for room in (1, 2))
    senders = [NixlKVSender(prefill, place.address, room) for room in (1, 2)]
    for one, page in ((other, 1), (receiver, 2)):
        one.init(np.array([page], np.int32), 0)
    until(*senders, wanted=KVPoll.WaitingForInput)
    heard, on_abort = [], prefill._on_abort

    def lose_the_first(where, note) -> None:
        heard.append(note["room"])
        if len(heard) > 1:
            on_abort(where, note)

    prefill._on_abort = lose_the_first
    receiver.abort()
    limit = time.monotonic() + PATIENCE
    while not receiver.is_abort_release_safe():
        assert time.monotonic() < limit, heard
        assert other.poll() != KVPoll.Failed
        time.sleep(0.001)  # sleeps: nothing tells of it but what is looked at here
    assert heard[:2] == [2, 2]
