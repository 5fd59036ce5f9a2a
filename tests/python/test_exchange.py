"""Metadata by address: fetched from listeners, sent to them, taken back; what changes later."""

from __future__ import annotations

import errno
import re
import socket
import threading
import time

import nixl
import pytest
from nixl import nixl_agent, nixl_agent_config
from nixl_support import finish

KEY = "a key of 16 bytes or more"
HERE = "127.0.0.1"
PATIENCE = 30.0


def eventually(what, seconds: float = PATIENCE):
    """The first true value of what(); fails where none comes."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)  # sleeps: between two looks
    return value


@pytest.fixture
def listener(make_agent):
    """Makes agents that listen on loopback, on ports that the system chooses."""

    def make(name: str = "target", **options) -> nixl_agent:
        options = {"listen_host": HERE, "listen_port": 0, **options}
        return make_agent(name, enable_listen_thread=True, **options)

    return make


def registered(agent, memory, size: int = 4096):
    piece = memory(size, 7)
    return piece, agent.register_memory([(piece.address, size, 0, "")], "DRAM")


def transfer_list(agent, piece):
    return agent.get_xfer_descs([(piece.address, piece.size, 0)], "DRAM")


@pytest.fixture
def namesake():
    """Agents of names that are given; the fixture make_agent gives each a name of its own."""
    made = []

    def make(name: str, **options) -> nixl_agent:
        made.append(nixl_agent(name, nixl_agent_config(**options)))
        return made[-1]

    yield make
    for agent in made:
        agent.close()


def test_the_guides_way(listener, make_agent, memory):
    """Fetch and send return at once; a loop of checks sees the other; then bytes move both ways."""
    target, initiator = listener(), make_agent("initiator")
    there, _ = registered(target, memory)
    here, _ = registered(initiator, memory)
    initiator.fetch_remote_metadata(target.name, HERE, target.listen_port)
    initiator.send_local_metadata(HERE, target.listen_port)
    eventually(lambda: initiator.check_remote_metadata(target.name))
    eventually(lambda: target.check_remote_metadata(initiator.name))
    here.set(b"x" * 4096)
    handle = initiator.initialize_xfer(
        "WRITE", transfer_list(initiator, here), transfer_list(initiator, there), target.name, b"m"
    )
    initiator.transfer(handle)
    assert finish(initiator, handle) == "DONE"
    assert there.get() == b"x" * 4096
    back = target.initialize_xfer(
        "READ", transfer_list(target, there), transfer_list(target, here), initiator.name
    )
    target.transfer(back)
    assert finish(target, back) == "DONE"
    assert initiator.listen_port == 0


@pytest.mark.parametrize("host", ["localhost", HERE, "::1", "[::1]"])
@pytest.mark.parametrize("bound", ["", "localhost", "the same"])
def test_names_and_addresses(listener, make_agent, host, bound):
    if ":" in host:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        if bound == "localhost" and not any(
            family == socket.AF_INET6 for family, *_ in socket.getaddrinfo("localhost", 1)
        ):
            pytest.skip("localhost has no IPv6 address here")
    key = {"auth_key": KEY}
    target = listener(listen_host=host if bound == "the same" else bound, **key)
    initiator = make_agent("initiator", **key)
    initiator.fetch_remote_metadata(target.name, host, target.listen_port, timeout=PATIENCE)
    assert initiator.check_remote_metadata(target.name)


def free_port() -> int:
    with socket.create_server((HERE, 0)) as server:
        return server.getsockname()[1]


def test_a_failed_fetch_says_where_and_why(make_agent):
    agent, port = make_agent(), free_port()
    with pytest.raises(nixl.nixlRemoteDisconnectError) as caught:
        agent.fetch_remote_metadata("nobody", HERE, port, timeout=PATIENCE)
    assert f"{HERE}:{port}: Connection refused" in str(caught.value)
    assert caught.value.errno == errno.ECONNREFUSED
    agent.fetch_remote_metadata("nobody", HERE, port)
    with pytest.raises(nixl.nixlRemoteDisconnectError, match=rf"{HERE}:{port}.*refused"):
        eventually(lambda: agent.check_remote_metadata("nobody"))
    with pytest.raises(nixl.nixlRemoteDisconnectError):
        agent.check_remote_metadata("nobody")  # until something else is asked for
    assert agent.check_remote_metadata("somebody else") is False
    with pytest.raises(nixl.nixlNotFoundError, match="no.such.host.invalid"):
        agent.fetch_remote_metadata("nobody", "no.such.host.invalid", 1, timeout=PATIENCE)


def test_a_failed_fetch_is_forgotten_once_the_metadata_is_here(listener, make_agent):
    agent, target = make_agent(), listener()
    with pytest.raises(nixl.nixlRemoteDisconnectError):
        agent.fetch_remote_metadata(target.name, HERE, free_port(), timeout=PATIENCE)
    agent.add_remote_agent(target.get_agent_metadata())
    assert agent.check_remote_metadata(target.name)
    agent.remove_remote_agent(target.name)
    assert not agent.check_remote_metadata(target.name)


def test_another_agent_answers(listener, make_agent):
    agent, target = make_agent(), listener()
    with pytest.raises(nixl.nixlNotFoundError) as caught:
        agent.fetch_remote_metadata("wanted", HERE, target.listen_port, timeout=PATIENCE)
    assert f'agent "{target.name}" answers' in str(caught.value)
    assert '"wanted"' in str(caught.value) and str(target.listen_port) in str(caught.value)
    assert agent.peers() == []


def test_who_does_not_answer_is_waited_for_in_vain(make_agent):
    agent = make_agent()
    with socket.create_server((HERE, 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(nixl.nixlTimeoutError) as caught:
            agent.fetch_remote_metadata("silent", HERE, port, timeout=0.2)
        assert f"{HERE}:{port}" in str(caught.value) and caught.value.errno == errno.ETIMEDOUT
        with pytest.raises(nixl.nixlTimeoutError):
            agent.send_local_metadata(HERE, port, timeout=0.2)
        agent.fetch_remote_metadata("silent", HERE, port)
        assert agent.check_remote_metadata("silent") is False
        started = threading.Thread(
            target=agent.fetch_remote_metadata,
            args=("silent", HERE, port),
            kwargs={"timeout": 60},
            daemon=True,
        )
        caught = []
        hook, threading.excepthook = threading.excepthook, lambda args: caught.append(args)
        started.start()
        silent.accept()
        agent.close()
        started.join(PATIENCE)
        threading.excepthook = hook
        assert not started.is_alive()
        assert caught[0].exc_type in (nixl.nixlCancelledError, nixl.nixlNotAllowedError)


def test_bad_arguments(listener, make_agent):
    agent = make_agent()
    for host, port in [(HERE, 0), ("a\0b", 1), ("x" * 300, 1)]:
        with pytest.raises(nixl.nixlInvalidParamError, match=agent.name):
            agent.fetch_remote_metadata("peer", host, port)
        with pytest.raises(nixl.nixlInvalidParamError):
            agent.send_local_metadata(host, port)
        with pytest.raises(nixl.nixlInvalidParamError):
            agent.invalidate_local_metadata(host, port)
    for port in (-1, 65536, "5"):
        with pytest.raises((TypeError, nixl.nixlInvalidParamError)):
            agent.fetch_remote_metadata("peer", HERE, port)
    for call in (agent.send_local_metadata, agent.invalidate_local_metadata):
        with pytest.raises(nixl.nixlInvalidParamError, match="central store"):
            call()
    with pytest.raises(nixl.nixlInvalidParamError):
        agent.fetch_remote_metadata("", HERE, 5)
    taken = listener()
    with pytest.raises(nixl.nixlBackendError, match=f"{taken.listen_port}.*in use.*listen_port=0"):
        listener(listen_port=taken.listen_port)
    with pytest.raises(nixl.nixlNotFoundError, match="listen_host.*no.such.host.invalid"):
        listener(listen_host="no.such.host.invalid")


def test_listening_to_everybody_without_a_key_is_one_warning(run_python):
    program = """
from nixl import nixl_agent, nixl_agent_config
for options in ({%s}, {%s, "auth_key": "a key of 16 bytes or more"}):
    nixl_agent("a", nixl_agent_config(backends=[], enable_listen=True, listen_port=0, **options))
"""
    everybody = program.replace("%s", '"listen_host": ""')
    told = run_python(everybody).stderr
    assert len(re.findall("listens on port", told)) == 1
    assert "auth_key" in told and "listen_host" in told
    loopback = program.replace("%s", '"listen_host": "127.0.0.1"')
    assert "listens" not in run_python(loopback).stderr


def test_a_part_is_sent(listener, make_agent, memory):
    target, sender = listener(), make_agent("sender")
    part, descs = registered(sender, memory)
    rest, _ = registered(sender, memory)
    sender.send_partial_agent_metadata(
        descs, True, ["UCX"], HERE, target.listen_port, timeout=PATIENCE
    )
    assert target.check_remote_metadata(sender.name)
    assert target.check_remote_metadata(sender.name, transfer_list(target, part))
    assert not target.check_remote_metadata(sender.name, transfer_list(target, rest))


def test_what_is_registered_later_is_told(listener, make_agent, memory):
    """The difference alone, to those who fetched and to those it was sent to."""
    target, other = listener(), listener("other")
    follower = make_agent("follower")
    for _ in range(300):
        registered(target, memory, 64)
    follower.fetch_remote_metadata(target.name, HERE, target.listen_port, timeout=PATIENCE)
    target.send_local_metadata(HERE, other.listen_port, timeout=PATIENCE)
    before = follower.stats()["exchange_bytes_in"], other.stats()["exchange_bytes_in"]
    piece, descs = registered(target, memory)

    def known(who) -> bool:
        return who.check_remote_metadata(target.name, transfer_list(who, piece))

    eventually(lambda: known(follower) and known(other))
    for who, had in zip((follower, other), before, strict=True):
        assert 0 < who.stats()["exchange_bytes_in"] - had < 300
        assert who.stats()["exchange_updates_taken"] >= 1
    target.deregister_memory(descs)
    eventually(lambda: not known(follower) and not known(other))
    assert target.stats()["exchange_updates_sent"] >= 4


def test_an_agent_that_was_removed_does_not_come_back(listener, make_agent, memory):
    target, follower = listener(), make_agent("follower")
    follower.fetch_remote_metadata(target.name, HERE, target.listen_port, timeout=PATIENCE)
    follower.remove_remote_agent(target.name)
    registered(target, memory)
    witness = make_agent("witness")
    witness.fetch_remote_metadata(target.name, HERE, target.listen_port, timeout=PATIENCE)
    registered(target, memory)
    eventually(lambda: witness.stats()["exchange_updates_taken"] == 1)
    assert follower.peers() == []
    follower.fetch_remote_metadata(target.name, HERE, target.listen_port, timeout=PATIENCE)
    assert follower.peers() == [target.name]


def test_metadata_is_taken_back(listener, make_agent):
    target, sender = listener(), make_agent("sender")
    sender.send_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    assert target.peers() == [sender.name]
    sender.invalidate_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    assert target.peers() == []
    sender.invalidate_local_metadata(HERE, target.listen_port, timeout=PATIENCE)  # harmless


def test_nobody_takes_back_what_came_otherwise(listener, make_agent):
    """Without a key, only the connection it came over may."""
    target, sender = listener(), make_agent("sender")
    target.add_remote_agent(sender.get_agent_metadata())
    with pytest.raises(nixl.nixlNotAllowedError, match=sender.name):
        sender.invalidate_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    assert target.peers() == [sender.name]
    # Its metadata has the grant that is known, so it may bring it up to date.
    sender.send_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    assert target.peers() == [sender.name]


@pytest.mark.parametrize("known_by", ["sending", "bytes", "fetching"])
def test_a_namesake_takes_nobodys_place(listener, namesake, make_agent, memory, known_by):
    target, real = listener(), listener("real")
    piece, _ = registered(real, memory)
    if known_by == "sending":
        real.send_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    elif known_by == "bytes":
        target.add_remote_agent(real.get_agent_metadata())
    else:
        target.fetch_remote_metadata(real.name, HERE, real.listen_port, timeout=PATIENCE)
    false = namesake(real.name)
    with pytest.raises(nixl.nixlNotAllowedError, match=f'"{real.name}".*auth_key'):
        false.send_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    with pytest.raises(nixl.nixlNotAllowedError):
        false.invalidate_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    assert target.check_remote_metadata(real.name, transfer_list(target, piece))
    if known_by == "sending":  # once the real one has gone its place is free
        real.close()
        eventually(lambda: sent(false, target))
        assert not target.check_remote_metadata(real.name, transfer_list(target, piece))


def sent(agent, target) -> bool:
    try:
        agent.send_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    except nixl.nixlNotAllowedError:
        return False
    return True


def test_with_the_key_a_restarted_agent_takes_its_place(listener, namesake, memory):
    target = listener(auth_key=KEY)
    first = namesake("restarts", auth_key=KEY)
    first.send_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    again = namesake("restarts", auth_key=KEY)
    piece, _ = registered(again, memory)
    again.send_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    assert target.check_remote_metadata("restarts", transfer_list(target, piece))


@pytest.mark.parametrize("has", ["", "another key of 16 bytes"])
def test_without_the_key_nothing_is_read_or_changed(listener, make_agent, namesake, has):
    target = listener(auth_key=KEY)
    friend = make_agent("friend", auth_key=KEY)
    friend.send_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    stranger = namesake(friend.name, auth_key=has)
    with pytest.raises(nixl.nixlNotAllowedError, match="auth_key") as caught:
        stranger.fetch_remote_metadata(target.name, HERE, target.listen_port, timeout=PATIENCE)
    assert str(target.listen_port) in str(caught.value)
    with pytest.raises(nixl.nixlNotAllowedError):
        stranger.send_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    with pytest.raises(nixl.nixlNotAllowedError):
        stranger.invalidate_local_metadata(HERE, target.listen_port, timeout=PATIENCE)
    assert stranger.peers() == [] and target.peers() == [friend.name]


def test_a_restarted_target_is_found_again(listener, namesake, make_agent, memory):
    """Whoever follows comes back by itself, and learns of the new one."""
    follower = make_agent("follower")
    options = {"enable_listen_thread": True, "listen_host": HERE}
    first = namesake("restarts", listen_port=0, **options)
    port = first.listen_port
    follower.fetch_remote_metadata("restarts", HERE, port, timeout=PATIENCE)
    first.close()
    again = namesake("restarts", listen_port=port, **options)
    piece, _ = registered(again, memory)
    eventually(lambda: follower.check_remote_metadata("restarts", transfer_list(follower, piece)))


def test_many_registrations_at_once_arrive_all(listener, make_agent, memory):
    target, follower = listener(), make_agent("follower")
    follower.fetch_remote_metadata(target.name, HERE, target.listen_port, timeout=PATIENCE)
    piece = memory(64 << 10)
    threads = [
        threading.Thread(
            target=lambda first: [
                target.register_memory([(piece.address + 16 * i, 16, 0, "")], "DRAM")
                for i in range(first, 1000, 4)
            ],
            args=(first,),
        )
        for first in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_of_them = follower.get_xfer_descs(
        [(piece.address + 16 * i, 16, 0) for i in range(1000)], "DRAM"
    )
    eventually(lambda: follower.check_remote_metadata(target.name, all_of_them))
    assert follower.stats()["exchange_updates_taken"] <= 1000


def test_a_large_table_goes_whole(listener, make_agent, memory):
    target, follower = listener(), make_agent("follower")
    piece = memory(1 << 20)
    target.register_memory(
        [(piece.address + 97 * i, 16 + i % 7, 0, "") for i in range(10_000)], "DRAM"
    )
    follower.fetch_remote_metadata(target.name, HERE, target.listen_port, timeout=PATIENCE)
    descs = follower.get_xfer_descs([(piece.address + 97 * 9999, 16, 0)], "DRAM")
    assert follower.check_remote_metadata(target.name, descs)
    follower.fetch_remote_metadata(target.name, HERE, target.listen_port, timeout=PATIENCE)
    assert follower.stats()["exchange_bytes_in"] < 400_000  # the second time nothing is new


def test_agents_without_backends_and_the_own_name(listener, make_agent):
    target = listener(backends=())
    agent = make_agent(backends=())
    agent.fetch_remote_metadata(target.name, HERE, target.listen_port, timeout=PATIENCE)
    assert agent.peers() == [target.name]
    target.fetch_remote_metadata(target.name, HERE, target.listen_port, timeout=PATIENCE)
    assert target.check_remote_metadata(target.name) and target.peers() == []
