"""The Python peer dials agents of the library: what docs/protocol.md says is what they do."""

from __future__ import annotations

import os
import random
import time

import pytest

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
np = pytest.importorskip("numpy")

import wire  # noqa: E402
from interop_support import KEY  # noqa: E402
from wire import DATA, Blob  # noqa: E402

from peer import COST, WINDOW, Failed, Refused, Session  # noqa: E402


def sender(peer) -> str:
    return peer.me.name.decode()


def test_messages_both_ways(make_real, make_peer, path, key, sockets):
    real = make_real(auth_key=key, socket_dir=sockets)
    peer = make_peer(key=key)
    session = peer.dial(real.blob(), path=path)
    sizes = [0, 1, 65536, 65537, 1 << 20]
    sent = [os.urandom(size) for size in sizes]
    for message in sent:
        last = session.notify(message)
    assert real.notifications(sender(peer), len(sent)) == sent
    assert session.flushed(last)
    for message in sent:  # never told of the peer, the agent answers over the session
        real.agent.send_notif(sender(peer), message)
    assert [session.take() for _ in sent] == sent
    assert not session.inbox and session.received == len(sent)


@pytest.mark.parametrize("flags", [0, wire.CHECKSUMS], ids=["plain", "checksums"])
def test_payload_both_ways(make_real, make_peer, path, key, flags, sockets):
    real = make_real(auth_key=key, socket_dir=sockets, size=1 << 20)
    peer = make_peer(key=key)
    blob = real.blob()
    peer.dial(blob, path=path)
    channel = peer.dial(blob, DATA, path=path)
    channel.prove(blob.grant)
    region = real.region()
    where = [(region.id, region.generation)]
    data = random.Random(4).randbytes(300_000)  # more than a chunk
    channel.write(blob.grant, where, [(0, real.address + 5, len(data), 0, 1)], data, flags)
    assert bytes(real.buffer[5 : 5 + len(data)]) == data
    assert bytes(real.buffer[:5]) == bytes(5) and real.buffer[5 + len(data)] == 0
    # Three runs, backwards strides and all, come back in their order.
    runs = [(0, real.address + 400, 8, 16, 5), (0, real.address + 300, 4, -8, 3),
            (0, real.address + 5, 1, 0, 1)]  # fmt: skip
    spots = [(400 + 16 * i, 8) for i in range(5)] + [(300 - 8 * i, 4) for i in range(3)] + [(5, 1)]
    wanted = b"".join(bytes(real.buffer[at : at + size]) for at, size in spots)
    assert channel.read(blob.grant, where, runs, flags) == wanted
    channel.write(blob.grant, where, runs, bytes(range(len(wanted))), flags)
    assert channel.read(blob.grant, where, runs, flags) == bytes(range(len(wanted)))
    channel.write(blob.grant, [], [], b"")  # nothing is a legal request


@pytest.fixture
def channel(make_real, make_peer):
    """(real, peer, blob, channel) over TCP, the grant proved."""
    real, peer = make_real(size=1 << 20), make_peer()
    blob = real.blob()
    peer.dial(blob)
    opened = peer.dial(blob, DATA)
    opened.prove(blob.grant)
    return real, peer, blob, opened


def refusal(opened, grant, regions, address, size=16) -> int:
    """The code of the refusal of a WRITE and a READ, which are the same; the channel goes on."""
    codes = []
    for call in (
        lambda: opened.write(grant, regions, [(0, address, size, 0, 1)], bytes(size)),
        lambda: opened.read(grant, regions, [(0, address, size, 0, 1)]),
    ):
        with pytest.raises(Failed) as failed:
            call()
        codes.append(failed.value.code)
    assert codes[0] == codes[1]
    return codes[0]


def test_requests_outside_what_was_given_are_refused(channel):
    real, _, blob, opened = channel
    region = real.region()
    good = [(region.id, region.generation)]
    before = bytes(real.buffer)
    assert refusal(opened, blob.grant, good, real.address + real.size - 15) == 6
    assert refusal(opened, blob.grant, good, real.address - 1) == 6
    assert refusal(opened, blob.grant, good, 2**64 - 8) == 6
    assert refusal(opened, blob.grant, [(region.id, region.generation + 1)], real.address) == 4
    assert refusal(opened, blob.grant, [(region.id + 999, 0)], real.address) == 4
    assert refusal(opened, os.urandom(16), good, real.address) == 6
    assert bytes(real.buffer) == before
    assert opened.read(blob.grant, good, [(0, real.address, 16, 0, 1)]) == before[:16]


def test_a_grant_that_is_proved_wrongly_opens_nothing(channel):
    real, peer, blob, _ = channel
    opened = peer.dial(blob, DATA)
    opened.key = bytes(32)  # the proof is for another connection
    opened.prove(blob.grant)
    region = real.region()
    assert refusal(opened, blob.grant, [(region.id, region.generation)], real.address) == 6


def test_the_grant_of_a_partial_blob_opens_its_regions_alone(make_real, make_peer):
    real, peer = make_real(size=4096), make_peer()
    other = bytearray(b"x" * 4096)
    more = real.agent.register_memory(np.frombuffer(other, np.uint8))
    partial, rest, whole = real.partial(real.registration), real.partial(more), real.blob()
    assert len({partial.grant, rest.grant, whole.grant}) == 3
    assert real.partial(real.registration).grant == partial.grant
    ((mine,), (foreign,)) = partial.regions, rest.regions
    peer.dial(partial)  # it opens a session, too
    opened = peer.dial(partial, DATA)
    opened.prove(partial.grant)
    opened.write(partial.grant, [(mine.id, mine.generation)], [(0, mine.address, 2, 0, 1)], b"ok")
    assert bytes(real.buffer[:2]) == b"ok"
    there = [(foreign.id, foreign.generation)]
    assert refusal(opened, partial.grant, there, foreign.address) == 6
    both = [(mine.id, mine.generation), *there]
    runs = [(0, mine.address, 8, 0, 1), (1, foreign.address, 8, 0, 1)]
    with pytest.raises(Failed) as failed:
        opened.write(partial.grant, both, runs, bytes(16))
    assert failed.value.code == 6 and other == b"x" * 4096
    opened.prove(rest.grant)  # whoever gets the other blob later reaches that, over the same way
    opened.write(rest.grant, there, [(0, foreign.address, 2, 0, 1)], b"ok")
    assert other[:2] == b"ok"
    real.agent.deregister_memory(more)
    assert refusal(opened, rest.grant, there, foreign.address) == 4


def test_the_grant_of_a_blob_without_regions_opens_a_session(make_real, make_peer):
    real, peer = make_real(), make_peer()
    empty = real.agent.get_reg_descs([], "DRAM")
    blob = Blob.decode(real.agent.get_partial_agent_metadata(empty, True))
    peer.dial(blob).notify(b"hello")
    assert real.notifications(sender(peer), 1) == [b"hello"]
    opened = peer.dial(blob, DATA)
    opened.prove(blob.grant)
    region = real.region()
    assert refusal(opened, blob.grant, [(region.id, region.generation)], region.address) == 6


def test_the_old_generation_is_refused(channel):
    real, _, blob, opened = channel
    old = real.region()
    real.agent.deregister_memory(real.registration)
    assert refusal(opened, blob.grant, [(old.id, old.generation)], real.address) == 4
    real.register()
    new = real.region()
    assert (new.id, new.generation) != (old.id, old.generation)
    assert refusal(opened, blob.grant, [(old.id, old.generation)], real.address) == 4
    opened.write(blob.grant, [(new.id, new.generation)], [(0, real.address, 2, 0, 1)], b"ok")
    assert bytes(real.buffer[:2]) == b"ok"


def test_a_damaged_chunk_fails_its_request_alone(channel):
    real, _, blob, opened = channel
    region = real.region()
    where, run = [(region.id, region.generation)], [(0, real.address, 4, 0, 1)]
    spoilt = bytearray(wire.chunk(b"good", wire.CHECKSUMS))
    spoilt[-1] ^= 1
    opened.ask(wire.WRITE, blob.grant, where, run, wire.CHECKSUMS, bytes(spoilt))
    with pytest.raises(Failed) as failed:
        opened.answer()
    assert failed.value.code == 3
    opened.write(blob.grant, where, run, b"good", wire.CHECKSUMS)
    assert bytes(real.buffer[:4]) == b"good"


def test_a_write_ended_by_its_sender_is_answered(channel):
    real, _, blob, opened = channel
    region = real.region()
    where, run = [(region.id, region.generation)], [(0, real.address, 8, 0, 1)]
    abort = b"\xff\xff\xff\xff\0\0\0\0"
    opened.ask(wire.WRITE, blob.grant, where, run, 0, wire.chunk(b"half", 0) + abort)
    with pytest.raises(Failed) as failed:
        opened.answer()
    assert failed.value.code == 11 and failed.value.offset == 4
    opened.write(blob.grant, where, run, b"complete")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"versions": (2, 9)}, 1),
        ({"to": bytes(16)}, 2),
    ],
)
def test_hello_is_refused_with_its_code(make_real, make_peer, change, code):
    with pytest.raises(Refused) as refused:
        make_peer().dial(make_real().blob(), **change)
    assert refused.value.code == code


def test_the_newest_version_of_both_is_taken(make_real, make_peer):
    make_peer().dial(make_real().blob(), versions=(1, 9))  # the peer insists on 1 in CHALLENGE


def test_an_unknown_grant_and_data_without_a_session_are_refused(make_real, make_peer):
    blob, peer = make_real().blob(), make_peer()
    peer.sessions[blob.name, blob.incarnation] = session = Session((blob.name, blob.incarnation))
    session.key = bytes(32)
    with pytest.raises(Refused) as refused:
        peer.dial(blob, DATA)
    assert refused.value.code == 3
    blob.grant = os.urandom(16)
    with pytest.raises(Refused) as refused:
        peer.dial(blob)
    assert refused.value.code == 3


@pytest.mark.parametrize(("ours", "theirs"), [(KEY, b""), (b"", KEY), (KEY, KEY[::-1])])
def test_keys_that_differ(make_real, make_peer, ours, theirs):
    """The peer notices it in CHALLENGE; one that does not look is refused with code 4."""
    blob, peer = make_real(auth_key=theirs).blob(), make_peer(key=ours)
    with pytest.raises(wire.ProtocolError, match="not as it must be"):
        peer.dial(blob)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Refused) as refused:
        patch.setattr(wire, "check_challenge", lambda *_: bytes(32))
        peer.dial(blob)
    assert refused.value.code == 4


def test_a_session_goes_on_over_a_new_connection(make_real, make_peer):
    real, peer = make_real(), make_peer()
    session = peer.dial(real.blob())
    first = session.notify(b"one")
    assert session.flushed(first)
    real.agent.send_notif(sender(peer), b"first")
    assert session.take() == b"first"
    epoch, lost = session.epoch, session.sock
    session.sock = None  # what is sent now reaches no connection
    session.notify(b"two")
    session.notify(b"three")
    lost.shutdown(2)
    assert peer.dial(real.blob()) is session
    assert session.epoch == epoch and session.flushed(3)
    assert real.notifications(sender(peer), 3) == [b"one", b"two", b"three"]
    real.agent.send_notif(sender(peer), b"second")
    assert session.take() == b"second" and session.received == 2
    # Everything again: recognised and dropped.
    for number, message in enumerate([b"one", b"two", b"three"], 1):
        session.sock.sendall(wire.pieces(number, message))
    session.notify(b"four")
    assert real.notifications(sender(peer), 1) == [b"four"]


def test_who_cannot_prove_the_session_starts_anew(make_real, make_peer):
    real, peer = make_real(auth_key=KEY), make_peer(key=KEY)
    session = peer.dial(real.blob())
    assert session.flushed(session.notify(b"one"))
    epoch, session.key = session.epoch, bytes(32)
    session.sock.close()
    peer.dial(real.blob())
    assert session.epoch != epoch and session.sent == 0
    session.notify(b"anew")
    assert real.notifications(sender(peer), 2) == [b"one", b"anew"]


def test_credit_holds_the_peer_until_the_application_takes(make_real, make_peer):
    real, peer = make_real(), make_peer()
    session = peer.dial(real.blob())
    message = bytes(1 << 20)
    most = WINDOW // (len(message) + COST)
    for _ in range(most):
        session.notify(message)
    with pytest.raises(TimeoutError):
        session.notify(message, timeout=0.3)
    assert len(real.notifications(sender(peer), most)) == most
    session.notify(message)
    assert real.notifications(sender(peer), 1) == [message]


def test_who_oversteps_its_credit_loses_the_session(make_real, make_peer):
    real, peer = make_real(), make_peer()
    session = peer.dial(real.blob())
    session.credited = WINDOW  # as if all had been taken
    with pytest.raises(OSError):
        for _ in range(80):
            session.notify(bytes(1 << 20))
            if session.sock is None:
                raise ConnectionError
    assert real.agent.get_agent_metadata()


def test_heartbeats_keep_a_session_and_their_lack_ends_it(make_real, make_peer):
    real, peer = make_real(peer_timeout=0.8), make_peer()
    session = peer.dial(real.blob())
    time.sleep(2)  # sleeps: for longer than the peer timeout, which heartbeats prolong
    assert session.sock is not None
    session.notify(b"still here")
    assert real.notifications(sender(peer), 1) == [b"still here"]
    session.on_frame = lambda *_: None  # hears and does not answer
    with session.changed:
        assert session.changed.wait_for(lambda: session.sock is None, 5)


def test_a_ping_is_answered_with_its_first_eight_bytes(make_real, make_peer):
    session = make_peer().dial(make_real().blob())
    heard, plain = [], session.on_frame

    def listen(sock, kind, body):
        heard.append((kind, body))
        plain(sock, kind, body)

    session.on_frame = listen
    session.sock.sendall(wire.frame(wire.PING, b"12345678-and-more"))
    with session.changed:
        assert session.changed.wait_for(lambda: (wire.PONG, b"12345678") in heard, 5)


@pytest.mark.parametrize(
    "bad",
    [
        wire.frame(99, b""),
        wire.frame(wire.READ, b""),
        b"\0\0\0\0" + bytes([wire.PING, 1, 0, 0]),
        b"\0\0\0\0" + bytes([wire.PING, 0, 1, 0]),
        b"\xff\xff\xff\0" + bytes([wire.PING, 0, 0, 0]),
        wire.frame(wire.ACK, b"\0\0\0"),
        wire.frame(wire.ACK, b"\5\0"),
        wire.frame(wire.NOTIFICATION, b"\3\1\0x"),
        wire.frame(wire.NOTIFICATION, b"\2\1\0"),
    ],
)
def test_what_the_page_forbids_ends_the_session(make_real, make_peer, bad):
    real, peer = make_real(), make_peer()
    session = peer.dial(real.blob())
    assert session.flushed(session.notify(b"one"))
    real.notifications(sender(peer), 1)
    session.sock.sendall(bad)
    with session.changed:
        assert session.changed.wait_for(lambda: session.sock is None, 5)
    epoch = session.epoch
    peer.dial(real.blob())
    assert session.epoch != epoch  # not resumed
    session.notify(b"again")
    assert real.notifications(sender(peer), 1) == [b"again"]


def test_bye_ends_the_session_for_good(make_real, make_peer):
    real, peer = make_real(), make_peer()
    session = peer.dial(real.blob())
    assert session.flushed(session.notify(b"one"))
    epoch = session.epoch
    session.bye()
    with session.changed:
        assert session.changed.wait_for(lambda: session.sock is None, 5)
    peer.dial(real.blob())
    assert session.epoch != epoch


def test_the_blob_of_many_regions_is_read(make_real):
    real = make_real(size=1 << 20)
    places = [(real.address + 4096 * i, 100, 0, "") for i in range(0, 200, 2)]
    odd = [(real.address + 5000, 77, 0, ""), (real.address + 9001, 1, 0, "")]
    real.agent.register_memory(places, "DRAM")
    real.agent.register_memory(odd, "DRAM")
    found = real.blob()
    assert found.name.decode() == real.agent.name and found.backends == [(b"UCX", b"")]
    ranges = {(r.address, r.size) for r in found.regions}
    assert ranges == {(a, s) for a, s, _, _ in places + odd} | {(real.address, real.size)}
    assert len({(r.id, r.generation) for r in found.regions}) == len(found.regions)
    assert Blob.decode(found.encode()) == found
