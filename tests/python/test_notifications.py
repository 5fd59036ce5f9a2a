"""Notifications: order, bytes, waiting, answers."""

from __future__ import annotations

import threading
import time

import pytest
from nixl.errors import (
    nixlInvalidParamError,
    nixlNotAllowedError,
    nixlNotFoundError,
    nixlTimeoutError,
)


def test_messages_are_bytes_in_order(pair):
    sent = [b"", b"\0", b"a\0b", bytes(range(256)), b"x" * 100_000, "text é".encode()]
    for message in sent[:-1]:
        pair.near.send_notif(pair.far.name, message)
    pair.near.send_notif(pair.far.name, "text é")
    got = []
    end = time.monotonic() + 10
    while len(got) < len(sent) and time.monotonic() < end:
        got += pair.far.get_new_notifs().get(pair.near.name, [])
    assert got == sent
    assert pair.far.get_new_notifs() == {}


def test_wait_notifs_counts_over_senders(make_agent):
    target = make_agent("target")
    senders = [make_agent("sender") for _ in range(3)]
    for sender in senders:
        sender.add_remote_agent(target.get_agent_metadata())
        target.add_remote_agent(sender.get_agent_metadata())
    senders[0].send_notif(target.name, b"other")
    for sender in senders:
        sender.send_notif(target.name, b"go-" + sender.name.encode())
    got = target.wait_notifs(b"go-", count=3, timeout=10)
    assert sorted(got) == sorted((s.name, b"go-" + s.name.encode()) for s in senders)
    assert target.notifs[senders[0].name] == [b"other"]
    with pytest.raises(nixlTimeoutError, match=r"1 of 2 notifications tagged b'oth'"):
        target.wait_notifs(b"oth", count=2, timeout=0.05)
    assert target.wait_notifs("oth", timeout=1) == [(senders[0].name, b"other")]
    with pytest.raises(nixlInvalidParamError, match="count=0"):
        target.wait_notifs(b"x", count=0)


def test_two_waiters_get_their_own(pair):
    results = {}

    def wait(tag: bytes) -> None:
        results[tag] = pair.far.wait_notifs(tag, count=5, timeout=20)

    threads = [threading.Thread(target=wait, args=(tag,)) for tag in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for i in range(5):
        pair.near.send_notif(pair.far.name, b"a%d" % i)
        pair.near.send_notif(pair.far.name, b"b%d" % i)
    for thread in threads:
        thread.join(30)
    assert [m for _, m in results[b"a"]] == [b"a%d" % i for i in range(5)]
    assert [m for _, m in results[b"b"]] == [b"b%d" % i for i in range(5)]


def test_check_remote_xfer_done_exactly(pair):
    for message in (b"tag10", b"tag1"):
        pair.near.send_notif(pair.far.name, message)
    pair.far.wait_notifs(b"tag10", timeout=10)
    pair.near.send_notif(pair.far.name, b"tag10")
    pair.near.send_notif(pair.far.name, b"end")
    pair.far.wait_notifs(b"end", timeout=10)
    done = pair.far.check_remote_xfer_done
    assert not done(pair.near.name, b"tag", exact=True)
    assert done(pair.near.name.encode(), "tag1", exact=True)
    assert pair.far.notifs[pair.near.name] == [b"tag10"]
    pair.far.notifs[pair.near.name].remove(b"tag10")
    assert not done(pair.near.name, b"tag")
    with pytest.raises(TypeError, match="tag must be bytes or str"):
        done(pair.near.name, 5)


def test_an_unknown_agent_is_named(agent):
    with pytest.raises(nixlNotFoundError, match="nobody"):
        agent.send_notif("nobody", b"x")
    with pytest.raises(TypeError):
        agent.send_notif("nobody", 5)


def test_who_sent_to_us_can_be_answered(make_agent):
    first, second = make_agent(), make_agent()
    first.add_remote_agent(second.get_agent_metadata())
    first.send_notif(second.name, b"question")
    assert second.wait_notifs(b"question", timeout=10) == [(first.name, b"question")]
    second.send_notif(first.name, b"answer")
    assert first.wait_notifs(b"answer", timeout=10) == [(second.name, b"answer")]


def test_fileno_tells(pair):
    import select

    poll = select.poll()
    poll.register(pair.far.fileno(), select.POLLIN)
    pair.far.drain()
    assert poll.poll(0) == []
    pair.near.send_notif(pair.far.name, b"x")
    assert poll.poll(10_000)
    assert pair.far.get_new_notifs() == {pair.near.name: [b"x"]}
    assert poll.poll(0) == []


def test_closing_wakes_everybody_who_waits(make_agent):
    agent = make_agent()
    ended = []

    def wait(number: int) -> None:
        with pytest.raises(nixlNotAllowedError, match="closed"):
            agent.wait_notifs(b"never-%d" % number)
        ended.append(number)

    threads = [threading.Thread(target=wait, args=(i,), daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    # One sleeps in the core, the others wait for it.
    condition = agent._notifs_changed
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with condition:
            if agent._somebody_waits_in_core and len(condition._waiters) == 3:
                break
        time.sleep(0.001)  # sleeps: between two looks
    else:
        pytest.fail("they never waited")
    agent.close()
    for thread in threads:
        thread.join(20)
    assert sorted(ended) == [0, 1, 2, 3]


def test_the_tag_itself_is_found_before_longer_messages(pair):
    name = pair.near.name
    for message in (b"req-10", b"req-1", b"req-11", b"a-req-1"):
        pair.near.send_notif(pair.far.name, message)
    pair.far.wait_notifs(b"a-req", timeout=10)
    found = pair.far.check_remote_xfer_done
    assert found(name, b"req-1") and pair.far.notifs == {name: [b"req-10", b"req-11"]}
    assert not found(name, b"req-1", exact=True)
    assert found(name, b"req-1") and pair.far.notifs == {name: [b"req-11"]}


def test_waiting_for_exactly_one_message(pair):
    for message in (b"req-10", b"req-1"):
        pair.near.send_notif(pair.far.name, message)
    assert pair.far.wait_notifs(b"req-1", timeout=10, exact=True) == [(pair.near.name, b"req-1")]
    with pytest.raises(nixlTimeoutError):
        pair.far.wait_notifs(b"req-1", timeout=0.01, exact=True)
    assert pair.far.wait_notifs(b"req-1", timeout=10) == [(pair.near.name, b"req-10")]


def test_what_another_call_brings_in_is_seen_by_who_waits(pair):
    """In the middle of a wait, and between its look and its sleep."""
    for _ in range(20):
        got: list[object] = []
        waiter = threading.Thread(
            target=lambda got=got: got.extend(pair.far.wait_notifs(b"mine", timeout=20))
        )
        pair.near.send_notif(pair.far.name, b"mine")
        waiter.start()
        start = time.monotonic()
        while waiter.is_alive():
            pair.far.update_notifs()
        assert time.monotonic() - start < 15
        assert got == [(pair.near.name, b"mine")]
