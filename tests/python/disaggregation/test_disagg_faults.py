"""Peers and servers that die, hang, come back or talk nonsense: rooms end, and say why."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import nixl
import numpy as np
import pytest
import zmq
from kv_support import PATIENCE, Cache, KVPoll, patient, until, why
from nixl.disaggregation import conn
from nixl.disaggregation.frames import GUARD, TAG, note, read_note

HERE = pathlib.Path(__file__).parent


class Process:
    """kv_rank.py"""

    def __init__(self, mode: str, port: int, seed: int = 1) -> None:
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, HERE / "kv_rank.py", mode, str(port), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "NIXL_LOG_LEVEL": "ERROR"},
        )
        self.expect("ready")

    def begin(self, room: int, pages: list[int], hold: bool = False) -> None:
        self.process.stdin.write(json.dumps({"room": room, "pages": pages, "hold": hold}) + "\n")
        self.process.stdin.flush()

    def expect(self, start: str) -> str:
        line = self.process.stdout.readline()
        assert line.startswith(start), f"{line!r} instead of {start!r}"
        return line

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def process(place):
    made = []

    def start(mode: str, seed: int = 1) -> Process:
        made.append(Process(mode, place.server.port, seed))
        return made[-1]

    yield start
    for one in made:
        if one.process.returncode is None:
            one.kill()


def truth(seed: int) -> Cache:
    cache = Cache(pages=64)
    cache.fill(seed)
    return cache


def test_a_prefill_rank_dies_and_comes_back(place, process):
    target = Cache(pages=64)
    settings = patient(heartbeat=0.1, peer_timeout=1.0)
    decode = place.rank("decode", target, settings=settings)
    first = process("prefill", 1)
    for room, hold in ((1, False), (2, True)):
        receiver = conn.NixlKVReceiver(decode, place.address, room)
        receiver.init([room, room + 10, room + 20], 0)
        first.begin(room, [5, 6, 7], hold)
        first.expect(f"{room} sent")
        if not hold:
            until(receiver)
            first.expect("1 done")
    until(receiver, wanted=KVPoll.Transferring)
    first.kill()
    told = why(receiver)
    assert "prefill rank 0" in told and ("not answered" in told or "anew" in told)
    while not receiver.is_abort_release_safe():  # it might only have been stopped
        receiver.poll()
    second = process("prefill", 2)
    receiver = conn.NixlKVReceiver(decode, place.address, 3)
    receiver.init([40, 41], 0)
    second.begin(3, [8, 9])
    until(receiver)
    assert np.array_equal(target.kv[1][[40, 41]], truth(2).kv[1][[8, 9]])
    assert np.array_equal(target.kv[1][[1, 11, 21]], truth(1).kv[1][[5, 6, 7]])
    assert decode.metrics()["peers_lost"] >= 1


def test_pages_of_a_silent_prefill_rank_are_not_safe_before_it_has_stopped(place, process):
    """It was only stopped: what it goes on writing must not meet the next use of the pages."""
    settings = patient(heartbeat=0.1, peer_timeout=3.0)
    decode = place.rank("decode", Cache(pages=64), settings=settings)
    first = process("prefill")
    receiver = conn.NixlKVReceiver(decode, place.address, 1)
    receiver.init([1, 2, 3], 0)
    first.begin(1, [5, 6, 7], hold=True)
    first.expect("1 sent")
    until(receiver, wanted=KVPoll.Transferring)
    first.process.send_signal(signal.SIGSTOP)
    assert "has not answered" in why(receiver)
    assert not receiver.is_abort_release_safe()
    first.process.send_signal(signal.SIGCONT)
    first.expect("1 failed")
    while not receiver.is_abort_release_safe():  # it has answered, or time has passed
        receiver.poll()


def test_a_decode_rank_dies_and_comes_back(place, process):
    source = truth(3)
    prefill = place.rank("prefill", source, settings=patient(peer_timeout=1.0))
    first = process("decode")
    sender = conn.NixlKVSender(prefill, place.address, 1)
    sender.init(3, 0)
    sender.send([1, 2])
    first.begin(1, [1, 2, 3])
    until(sender, wanted=KVPoll.Transferring)
    first.kill()
    sender.send([3])
    assert "room 1" in why(sender)
    second = process("decode")
    sender = conn.NixlKVSender(prefill, place.address, 2)
    sender.init(2, 0)
    second.begin(2, [1, 2])
    sender.send([3, 4])
    until(sender)
    second.expect("2 asked")
    second.expect("2 done")


def test_two_by_two_with_a_killed_pair(place, process):
    """Two prefill servers' rooms to two decode servers; one of each dies, the others go on."""
    decodes = [process("decode") for _ in range(2)]
    prefills = [process("prefill", 1)]
    other = conn.NixlKVBootstrapServer("127.0.0.1", 0)
    try:
        prefills.append(Process("prefill", other.port, 2))
        for room in range(8):
            decodes[room % 2].begin(room, [room, room + 20])
            prefills[0].begin(room, [room, room + 1])
        for prefill in range(8):
            prefills[0].expect(f"{prefill} sent")
        lines = [decode.process.stdout.readline() for decode in decodes for _ in range(8)]
        done = sorted(int(line.split()[0]) for line in lines if "done" in line)
        assert done == list(range(8)), lines
        decodes[0].kill()
        prefills[1].kill()
        decodes[1].begin(100, [1, 2])
        prefills[0].begin(100, [3, 4])
        decodes[1].expect("100 asked")
        decodes[1].expect("100 done")
    finally:
        prefills[1].kill()
        other.close()


def test_nobody_asks_for_a_room(place):
    prefill = place.rank("prefill", Cache(), settings=patient(bootstrap_timeout=0.2))
    sender = conn.NixlKVSender(prefill, place.address, 5)
    sender.init(1, 0)
    sender.send([1])
    assert "room 5: 0 of 1 decode ranks asked for it within 0.2 s (nobody)" in why(sender)


def test_a_room_that_is_never_sent(place):
    place.rank("prefill", Cache(), settings=patient(waiting_timeout=0.3))
    decode = place.rank("decode", Cache())
    receiver = conn.NixlKVReceiver(decode, place.address, 5)
    receiver.init([1], 0)
    assert "no prefill request within 0.3 s" in why(receiver)
    assert receiver.is_abort_release_safe()


def test_a_receiver_that_is_never_told_where(place):
    place.rank("prefill", Cache())
    decode = place.rank("decode", Cache(), settings=patient(waiting_timeout=0.2))
    receiver = conn.NixlKVReceiver(decode, place.address, 5)
    assert "init() was not called within 0.2 s" in why(receiver)


def test_no_bootstrap_server(place):
    decode = place.rank("decode", Cache(), settings=patient(bootstrap_timeout=0.5))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, nobody listens
        address = f"127.0.0.1:{free.getsockname()[1]}"
        receiver = conn.NixlKVReceiver(decode, address, 1)
        assert "refused" in (told := why(receiver)) and address in told


def test_a_bootstrap_server_that_never_answers(place):
    decode = place.rank("decode", Cache(), settings=patient(bootstrap_timeout=1.0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        receiver = conn.NixlKVReceiver(decode, f"127.0.0.1:{server.getsockname()[1]}", 1)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100).startswith(b"GET /ranks")
            polls = 0
            while receiver.poll() == KVPoll.Bootstrapping:  # which would block here
                polls += 1
            assert polls > 10
    assert "waited 1 s" in why(receiver)


class Between:
    """Stands before a bootstrap server and holds its answers back, or answers itself."""

    def __init__(self, port: int, answer: bytes | None = None) -> None:
        self.port, self.answer = port, answer
        self.go, self.asked = threading.Event(), 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                question = connection.recv(4096)
                if not question:  # close() was here
                    return
                self.asked += 1
                answer = self.answer
                if answer is None:
                    self.go.wait(PATIENCE)
                    with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ranks") as server:
                        body = server.read()
                    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                with contextlib.suppress(OSError):
                    connection.sendall(answer)

    def close(self) -> None:
        socket.create_connection(self.listener.getsockname()).close()
        self.thread.join()
        self.listener.close()


def test_a_slow_bootstrap_server(place):
    source, target = Cache(), Cache()
    source.fill(5)
    prefill, decode = place.rank("prefill", source), place.rank("decode", target)
    slow = Between(place.server.port)
    try:
        receiver = conn.NixlKVReceiver(decode, slow.address, 1)
        sender = conn.NixlKVSender(prefill, place.address, 1)
        receiver.init([1, 2], 0)
        sender.init(2, 0)
        sender.send([3, 4])
        while not slow.asked:
            assert receiver.poll() == sender.poll() == KVPoll.Bootstrapping
        for _ in range(100):
            assert receiver.poll() == sender.poll() == KVPoll.Bootstrapping
        slow.go.set()
        until(receiver, sender)
        assert np.array_equal(target.kv[0][[1, 2]], source.kv[0][[3, 4]])
    finally:
        slow.go.set()
        slow.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-something\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhtml",
        b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"ranks": [{"a": 1}]}',
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
)
def test_a_bootstrap_server_that_talks_nonsense(place, answer):
    decode = place.rank("decode", Cache(), settings=patient(bootstrap_timeout=0.5))
    server = Between(0, answer)
    try:
        receiver = conn.NixlKVReceiver(decode, server.address, 1)
        told = why(receiver)
        assert server.address in told and "has not answered yet" not in told
        asked, again = server.asked, conn.NixlKVReceiver(decode, server.address, 2)
        until(again, wanted=KVPoll.Failed)
        assert server.asked > asked  # it is asked again for every room
    finally:
        server.close()


def test_a_room_that_is_ended_twice(place):
    source, target = Cache(), Cache()
    source.fill(5)
    prefill, decode = place.rank("prefill", source), place.rank("decode", target)
    receiver = conn.NixlKVReceiver(decode, place.address, 1)
    sender = conn.NixlKVSender(prefill, place.address, 1)
    receiver.init([1], 0)
    sender.init(1, 0)
    sender.send([3])
    until(receiver, sender)
    for end in (receiver, sender):
        end.abort()
        end.failure_exception()
        assert end.poll() == KVPoll.Success
        end.clear()
        end.clear()
    assert np.array_equal(target.kv[0][1], source.kv[0][3])
    for kind in (conn.NixlKVReceiver, conn.NixlKVSender):  # and one that has not begun
        end = kind(decode if kind is conn.NixlKVReceiver else prefill, place.address, 2)
        end.abort()
        end.abort()
        assert "aborted" in why(end)
        end.clear()
        end.clear()
        assert end.poll() == KVPoll.Failed


def test_a_rank_that_is_closed_with_rooms_under_way(place):
    prefill, decode = place.rank("prefill", Cache()), place.rank("decode", Cache())
    receiver = conn.NixlKVReceiver(decode, place.address, 1)
    sender = conn.NixlKVSender(prefill, place.address, 1)
    receiver.init([1, 2], 0)
    sender.init(2, 0)
    sender.send([1])
    until(receiver, wanted=KVPoll.Transferring)
    decode.close()
    assert "the rank was closed" in why(receiver)
    until(sender, wanted=KVPoll.Failed)
    prefill.close()
    with pytest.raises(nixl.nixlError, match="closed"):
        pointers = decode.kv_args.kv_data_ptrs
        prefill.send_kvcache(decode.agent.name, [1], pointers, [1], 0, b"")


def test_not_all_prefill_ranks_have_come(place):
    place.rank("prefill", Cache(heads=2), tp_size=2)
    decode = place.rank("decode", Cache(), settings=patient(bootstrap_timeout=1.0))
    receiver = conn.NixlKVReceiver(decode, place.address, 1)
    until_answered = why(receiver)
    assert "1 of 2 prefill ranks of group 0 have not registered" in until_answered
    receiver = conn.NixlKVReceiver(decode, place.address, 2, data_parallel_rank=3)
    assert "no data-parallel rank 3 of 1" in why(receiver)


def test_a_restarted_bootstrap_server(place):
    source, target = Cache(), Cache()
    source.fill(1)
    prefill = place.rank("prefill", source)
    decode = place.rank("decode", target)
    port = place.server.port
    for room in range(2):
        receiver = conn.NixlKVReceiver(decode, place.address, room)
        sender = conn.NixlKVSender(prefill, place.address, room)
        receiver.init([room], 0)
        sender.init(1, 0)
        sender.send([room])
        until(receiver, sender)
        place.server.close()
        place.server = conn.NixlKVBootstrapServer("127.0.0.1", port)
    fresh = place.rank("decode", Cache())
    receiver = conn.NixlKVReceiver(fresh, place.address, 9)
    until(receiver, wanted=KVPoll.WaitingForInput)


@pytest.mark.parametrize("by", ["decode", "prefill"])
def test_aborts(place, by):
    source, target = Cache(), Cache()
    prefill, decode = place.rank("prefill", source), place.rank("decode", target)
    receiver = conn.NixlKVReceiver(decode, place.address, 1)
    sender = conn.NixlKVSender(prefill, place.address, 1)
    receiver.init([1, 2], 0)
    sender.init(2, 0)
    sender.send([1])
    until(receiver, wanted=KVPoll.Transferring)
    one, other = (receiver, sender) if by == "decode" else (sender, receiver)
    one.abort()
    assert f"aborted by the {by} rank" in why(one)
    assert f"aborted by the {by} rank" in why(other)
    while not receiver.is_abort_release_safe():  # ends when the prefill rank has answered
        receiver.poll()
    sender.send([2])  # is ignored
    for end in (receiver, sender):
        end.clear()
    with pytest.raises(KeyError, match="room 1 is not known"):
        prefill.check_status(1)
    again = conn.NixlKVReceiver(decode, place.address, 1)  # the number may be used again
    again.init([3, 4], 0)
    sender = conn.NixlKVSender(prefill, place.address, 1)
    sender.init(2, 0)
    sender.send([5, 6])
    until(again, sender)


def test_messages_of_an_earlier_use_of_a_room_do_not_count(place):
    prefill, decode = place.rank("prefill", Cache()), place.rank("decode", Cache())
    receiver = conn.NixlKVReceiver(decode, place.address, 1)
    receiver.init([1], 0)
    sender = conn.NixlKVSender(prefill, place.address, 1)
    until(sender, wanted=KVPoll.WaitingForInput)
    name = decode.agent.name
    for text in (b"1_kv_0_1_00ff", b"1_aux_00ff", b"1_kv", b"1_kv_x_1_2", b"\xff\x00", b"1_aux"):
        prefill.agent.send_notif(name, text)
    while sum(decode.metrics()[f"{kind}_notifications"] for kind in ("late", "foreign")) < 6:
        assert receiver.poll() == KVPoll.WaitingForInput
    sender.init(1, 0)
    sender.send([1])
    until(receiver, sender)


def frames_of_a_decode_rank(decode, room: int) -> list[list[bytes]]:
    info = conn.TransferInfo(room, "127.0.0.1", 9, "x", np.array([1], np.int32), 0, 1, "00")
    words = {"endpoint": "127.0.0.1", "port": 9}
    return [
        decode.registration().to_zmq(),
        info.to_zmq(),
        note("ping", agent="x", **words),
        note("abort", agent="x", room=1, nonce="", **words),
    ]


def mangled(random_: random.Random, frames: list[bytes]) -> list[bytes]:
    out = [bytearray(frame) for frame in frames]
    for _ in range(random_.randint(1, 4)):
        what, at = random_.randint(0, 4), random_.randrange(len(out)) if out else 0
        if what == 0 and len(out) > 1:
            del out[at]
        elif what == 1:
            out.insert(at, bytearray(random_.randbytes(random_.randint(0, 40))))
        elif what == 2 and out[at]:
            out[at][random_.randrange(len(out[at]))] = random_.randrange(256)
        elif what == 3:
            out[at] = out[at][: random_.randint(0, len(out[at]))]
        else:
            out[at] += random_.choice([b"9" * 30, b"\0", b"-1", b"[" * 3000, b"\xff" * 8])
    return [bytes(frame) for frame in out]


def test_mangled_frames_are_refused_and_nothing_else(place):
    decode = place.rank("decode", Cache())
    random_ = random.Random(1)
    refused = 0
    for _ in range(4000):
        for at, frames in enumerate(frames_of_a_decode_rank(decode, 3)):
            wrong = mangled(random_, frames)
            read = (conn.KVArgsRegisterInfo.from_zmq, conn.TransferInfo.from_zmq, read_note)
            try:
                read[min(at, 2)](wrong)
            except conn.BadFrames:
                refused += 1
    assert refused > 8000


def test_garbage_does_not_stop_a_rank(place):
    source, target = Cache(), Cache()
    source.fill(4)
    prefill, decode = place.rank("prefill", source), place.rank("decode", target)
    random_ = random.Random(2)
    with zmq.Context() as context:
        for manager in (prefill, decode):
            with context.socket(zmq.PUSH) as out:
                out.connect(f"tcp://127.0.0.1:{manager.control.port}")
                for _ in range(300):
                    for frames in frames_of_a_decode_rank(decode, random_.randint(0, 9)):
                        wrong = mangled(random_, frames)
                        out.send_multipart(wrong if frames[0] == TAG else [GUARD, *wrong])
                for frames in ([b""], [b"", b""], [GUARD], [TAG], [TAG, b"{}"], [b"x" * 1000] * 50):
                    out.send_multipart(frames)
                    out.send_multipart(frames)
        with socket.create_connection(("127.0.0.1", prefill.control.port)) as raw:
            raw.sendall(random_.randbytes(10000))
        receiver = conn.NixlKVReceiver(decode, place.address, 77)
        receiver.init([1], 0)
        sender = conn.NixlKVSender(prefill, place.address, 77)
        sender.init(1, 0)
        sender.send([2])
        until(receiver, sender)
    assert np.array_equal(target.kv[0][1], source.kv[0][2])
    assert prefill.metrics()["garbage_messages"] > 100 < decode.metrics()["garbage_messages"]
