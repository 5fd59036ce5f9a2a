"""What goes wrong between us and a store: each is repeated where that helps, else told truly."""

from __future__ import annotations

import errno
import mmap
import os
import re
import threading
import time

import nixl
import numpy as np
import pytest
from fault_proxy import Fault, error_answer, first
from obj_support import pattern
from weed import BUCKET

KEY = "the-object"
DATA = pattern(300_000)


@pytest.fixture
def through(make_objects, proxy, witness):
    witness.put_object(Bucket=BUCKET, Key=KEY, Body=DATA)

    def make(**more: str):
        return make_objects(proxy.endpoint, **{"retry_delay": "1ms", "max_attempts": "4", **more})

    return make


PASSING = {
    "500": Fault(answer=error_answer("500 Internal Server Error", "InternalError")),
    "503 without a body": Fault(answer=error_answer("503 Service Unavailable")),
    "slow down": Fault(answer=error_answer("503 Slow Down", "SlowDown", "Retry-After: 0\r\n")),
    "429": Fault(answer=error_answer("429 Too Many Requests", "Whatever")),
    "request timeout": Fault(answer=error_answer("400 Bad Request", "RequestTimeout")),
    "closed without a word": Fault(refuse=True),
    "garbage": Fault(answer=b"\x00\x01\x02 no HTTP\r\n\r\nconnection: close"),
    "html of a gateway": Fault(
        answer=b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>"
    ),
}
OF_READS = {
    "reset in mid-body": Fault(reset_after=100_000),
    "truncated": Fault(cut_after=299_999),
}
OF_RANGES = {
    "another range": Fault(head=lambda h: re.sub(rb"bytes 5-", b"bytes 6-", h)),
    "no range told": Fault(head=lambda h: re.sub(rb"Content-Range: [^\r]*\r\n", b"", h)),
    "another end": Fault(head=lambda h: re.sub(rb"bytes 5-1004/", b"bytes 5-1003/", h)),
}


@pytest.mark.parametrize("fault", [*PASSING, *OF_READS])
def test_a_read_is_repeated(through, proxy, fault):
    objects = through()
    proxy.script = first(2, {**PASSING, **OF_READS}[fault], "GET")
    assert objects.get(KEY, len(DATA)) == DATA
    assert proxy.count("GET") == 3


@pytest.mark.parametrize("fault", OF_RANGES)
def test_a_range_that_was_not_asked_for_is_not_taken(through, proxy, fault):
    objects = through()
    proxy.script = first(2, OF_RANGES[fault], "GET")
    assert objects.get(KEY, 1000, 5) == DATA[5:1005]
    assert proxy.count("GET") == 3


@pytest.mark.parametrize("fault", PASSING)
def test_a_write_is_repeated(through, proxy, witness, prefix, fault):
    objects = through()
    proxy.script = first(2, PASSING[fault], "PUT")
    objects.put(prefix + "k", DATA)
    assert witness.get_object(Bucket=BUCKET, Key=prefix + "k")["Body"].read() == DATA
    assert proxy.count("PUT") == 3


def test_repeats_end_and_the_error_says_how_often(through, proxy):
    objects = through()
    proxy.script = first(99, PASSING["500"], "GET")
    with pytest.raises(
        nixl.nixlBackendError,
        match=rf'"{BUCKET}/{KEY}" at 0: 0 of 300000 bytes: HTTP 500 InternalError: told so '
        r"\(endpoint http://127.*, request id r-1\) \(tried 4 times\)",
    ):
        objects.get(KEY, len(DATA))
    assert proxy.count("GET") == 4


def test_what_no_repeat_helps_is_told_at_once(through, proxy):
    objects = through()
    proxy.script = first(99, Fault(answer=error_answer("403 Forbidden", "AccessDenied")))
    with pytest.raises(nixl.nixlNotAllowedError, match="HTTP 403 AccessDenied: told so"):
        objects.get(KEY, 5)
    assert len(proxy.seen) == 1


def test_retry_after_is_honoured(through, proxy):
    objects = through()
    wait = Fault(answer=error_answer("503 Slow Down", "SlowDown", "Retry-After: 1\r\n"))
    proxy.script = first(1, wait, "GET")
    start = time.monotonic()
    assert objects.get(KEY, 5) == DATA[:5]
    assert time.monotonic() - start >= 1


def test_corrupted_bytes_are_noticed_by_the_checksum(through, proxy, prefix):
    """Written by us, so with a checksum; the proxy turns one bit of what comes back."""
    spoil = Fault(body=lambda body: body[:-1] + bytes([body[-1] ^ 1]))
    for algorithm in ("CRC32C", "SHA256"):
        objects = through(checksum_algorithm=algorithm)
        key = prefix + algorithm
        objects.put(key, DATA)
        before = proxy.count("GET")
        proxy.script = first(1, spoil, "GET")
        assert objects.get(key, len(DATA)) == DATA
        assert proxy.count("GET") == before + 2
        proxy.script = first(99, spoil, "GET")
        with pytest.raises(nixl.nixlBackendError, match="do not have the object's checksum"):
            objects.get(key, len(DATA))


def test_corrupted_bytes_of_a_write_are_noticed_by_the_store(through, proxy, prefix, witness):
    """What the store got is not what was sent: it refuses, and gets it again."""
    objects = through()
    refused = Fault(answer=error_answer("400 Bad Request", "BadDigest"))
    proxy.script = first(1, refused, "PUT")
    objects.put(prefix + "k", DATA)
    assert witness.get_object(Bucket=BUCKET, Key=prefix + "k")["Body"].read() == DATA


def test_an_object_that_is_longer_than_it_was_registered(through, proxy, prefix):
    """Asked for whole first; as there is more, its range comes by a second request."""
    objects = through()
    assert objects.get(KEY, 1000) == DATA[:1000]
    asked = [request.headers.get("range") for request in proxy.seen if request.method == "GET"]
    assert asked == [None, "bytes=0-999"]


def test_ranges_of_two_versions_are_no_object(through, proxy, witness, prefix):
    objects = through(part_size="64K", max_connections="1")
    key = prefix + "k"
    witness.put_object(Bucket=BUCKET, Key=key, Body=DATA)

    def script(request):
        if request.method == "GET" and request.headers["range"].startswith("bytes=131072-"):
            witness.put_object(Bucket=BUCKET, Key=key, Body=pattern(300_000, 2))
        return None

    proxy.script = script
    with pytest.raises(nixl.nixlBackendError, match="was replaced while it was read"):
        objects.get(key, len(DATA))


def test_a_store_that_ignores_ranges(through, proxy):
    objects = through()

    def whole(head: bytes) -> bytes:
        head = re.sub(rb"HTTP/1.1 206[^\r]*", b"HTTP/1.1 200 OK", head)
        head = re.sub(rb"Content-Range: [^\r]*\r\n", b"", head)
        return re.sub(rb"Content-Length: \d+", b"Content-Length: 300000", head)

    proxy.script = lambda request: Fault(head=whole, body=lambda body: DATA)
    assert objects.get(KEY, 1000, 5000) == DATA[5000:6000]


def test_a_slow_body_is_waited_for_and_a_silent_one_is_not(through, proxy):
    objects = through(idle_timeout="1", max_attempts="2")
    go = threading.Event()
    proxy.script = first(1, Fault(hold=go, hold_after=1000), "GET")
    assert objects.get(KEY, len(DATA)) == DATA  # the second try
    assert proxy.count("GET") == 2
    go.set()


def test_cancel_closes_what_is_under_way(through, proxy):
    objects = through()
    go = threading.Event()
    proxy.script = lambda request: Fault(hold=go, hold_after=100_000)
    memory = np.zeros(len(DATA), np.uint8)
    with objects.transfer("READ", memory, [(KEY, 0, len(DATA), 0)]) as handle:
        objects.agent.transfer(handle)
        while handle.progress[0] < 100_000:
            time.sleep(0.001)  # sleeps: between two looks at the progress
        assert handle.progress == (100_000, len(DATA))
        handle.cancel()
        with pytest.raises(nixl.nixlCancelledError):
            handle.wait(10)
        before = memory.copy()
        go.set()
        assert (memory == before).all()
    proxy.script = lambda request: None
    assert objects.get(KEY, 10) == DATA[:10]


def test_a_deadline_ends_a_transfer(make_objects, proxy, witness):
    go = threading.Event()
    proxy.script = lambda request: Fault(hold=go, hold_after=0)
    witness.put_object(Bucket=BUCKET, Key=KEY, Body=DATA)
    from obj_support import parameters

    config = nixl.nixl_agent_config(backends=[], xfer_timeout=0.3)
    agent = nixl.nixl_agent("obj-deadline", config)
    try:
        agent.create_backend("OBJ", parameters(proxy.endpoint))
        memory = np.zeros(1000, np.uint8)
        regs = agent.register_memory(memory)
        there = agent.register_memory([(0, 1000, 1, KEY)], "OBJ")
        handle = agent.initialize_xfer("READ", regs.trim(), there.trim(), agent.name)
        agent.transfer(handle)
        with pytest.raises(nixl.nixlTimeoutError):
            handle.wait(30)
        handle.release()
    finally:
        go.set()
        agent.close()


PARTED = {"part_size": "5M", "multipart_threshold": "5M", "max_connections": "2"}
LARGE = pattern(11 << 20)


def uploads(witness) -> list[str]:
    return [one["Key"] for one in witness.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]


def wait_for_no_uploads(witness) -> None:
    deadline = time.monotonic() + 30
    while uploads(witness) and time.monotonic() < deadline:
        time.sleep(0.05)  # sleeps: between two looks at the store
    assert uploads(witness) == []


def test_a_part_that_cannot_be_written_ends_the_upload(through, proxy, witness, prefix):
    objects = through(**PARTED)
    proxy.script = first(99, PASSING["500"], "PUT", "partNumber=2")
    with pytest.raises(nixl.nixlBackendError, match="part 2 of 3: HTTP 500 InternalError"):
        objects.put(prefix + "k", LARGE)
    wait_for_no_uploads(witness)
    assert objects.query(prefix + "k") == [None]


def test_a_canceled_upload_leaves_nothing(through, proxy, witness, prefix):
    objects = through(**PARTED)
    go = threading.Event()
    reached = threading.Event()

    def script(request):
        if "partNumber=2" not in request.target:
            return None
        reached.set()
        return Fault(hold=go)

    proxy.script = script
    memory = np.frombuffer(LARGE, np.uint8).copy()
    with objects.transfer("WRITE", memory, [(prefix + "k", 0, len(LARGE), 0)]) as handle:
        objects.agent.transfer(handle)
        assert reached.wait(30)
        handle.cancel()
        with pytest.raises(nixl.nixlCancelledError):
            handle.wait(30)
    go.set()
    objects.close()  # waits for what it removes
    wait_for_no_uploads(witness)
    assert "Contents" not in witness.list_objects_v2(Bucket=BUCKET, Prefix=prefix)


def test_parts_and_their_end_are_repeated(through, proxy, witness, prefix):
    objects = through(**PARTED)
    proxy.script = first(2, Fault(refuse=True), "PUT", "partNumber")
    objects.put(prefix + "k", LARGE)
    late = b"<Error><Code>InternalError</Code><Message>late</Message></Error>"
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(late)}\r\n\r\n".encode()
    proxy.script = first(1, Fault(answer=head + late), "POST", "uploadId")
    objects.put(prefix + "l", LARGE)
    for name in "kl":
        assert witness.get_object(Bucket=BUCKET, Key=prefix + name)["Body"].read() == LARGE
    wait_for_no_uploads(witness)


def test_an_end_whose_answer_was_lost_is_found_out(through, proxy, witness, prefix):
    """The store completed the upload and nobody heard: the second try finds it gone, and done."""
    objects = through(**PARTED)
    proxy.script = first(1, Fault(lose_answer=True), "POST", "uploadId")
    objects.put(prefix + "k", LARGE)
    assert witness.get_object(Bucket=BUCKET, Key=prefix + "k")["Body"].read() == LARGE


def test_a_store_without_checksums(through, proxy, witness, prefix):
    refusal = Fault(
        answer=error_answer("400 Bad Request", "InvalidArgument", message="x-amz-checksum-crc32c?")
    )

    def script(request):
        return refusal if "x-amz-checksum-crc32c" in request.headers else None

    proxy.script = script
    with pytest.raises(nixl.nixlBackendError, match="HTTP 400 InvalidArgument"):
        through().put(prefix + "k", DATA)
    tolerant = through(req_checksum="supported")
    for name in "ab":
        tolerant.put(prefix + name, DATA)
    sent = ["x-amz-checksum-crc32c" in r.headers for r in proxy.seen if r.method == "PUT"]
    assert sent == [True, True, False, False]


def test_a_wrong_clock_is_corrected(through, proxy):
    skewed = error_answer(
        "403 Forbidden", "RequestTimeTooSkewed", "Date: Wed, 01 Jan 2031 00:00:00 GMT\r\n"
    )
    proxy.script = first(1, Fault(answer=skewed))
    objects = through()
    with pytest.raises(nixl.nixlNotAllowedError):
        objects.get(KEY, 5)  # the server's own clock disagrees with the proxy's tale
    dates = [request.headers["x-amz-date"][:8] for request in proxy.seen]
    assert dates[1] in ("20301231", "20310101")


def test_queries_listings_and_removals_are_repeated(through, proxy, prefix):
    objects = through()
    objects.put(prefix + "a", b"x")
    for call in (
        lambda: objects.query(prefix + "a"),
        lambda: objects.agent.list_storage("OBJ", prefix),
        lambda: objects.agent.remove_storage("OBJ", [prefix + "a", prefix + "b"]),
    ):
        proxy.script = first(2, PASSING["503 without a body"])
        call()
    proxy.script = first(99, PASSING["500"])
    with pytest.raises(nixl.nixlBackendError, match="HTTP 500"):
        objects.query(prefix + "a")


def test_a_listing_that_never_ends_is_told(through, proxy):
    page = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated>"
        b"<NextContinuationToken>t</NextContinuationToken></ListBucketResult>"
    )
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(page)}\r\n\r\n".encode()
    proxy.script = lambda request: Fault(answer=head + page)
    with pytest.raises(nixl.nixlBackendError, match="the same page again"):
        through().agent.list_storage("OBJ", "")


def mapped(path, size: int, access: int) -> np.ndarray:
    """A file's bytes as memory, which cutting the file short takes away."""
    path.write_bytes(pattern(size))
    with open(path, "r+b") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), size, access=access), np.uint8)


@pytest.mark.parametrize("size", [1000, 300_000])
def test_memory_that_may_not_be_written_fails_a_read(through, tmp_path, size):
    objects = through()
    memory = mapped(tmp_path / "memory", size, mmap.ACCESS_READ)
    with objects.transfer("READ", memory, [(KEY, 0, size, 0)]) as handle:
        objects.agent.transfer(handle)
        with pytest.raises(nixl.nixlBackendError, match="cannot write the memory at") as caught:
            handle.wait(60)
    assert caught.value.errno == errno.EFAULT
    assert memory.tobytes() == pattern(size)
    assert objects.get(KEY, len(DATA)) == DATA


@pytest.mark.parametrize("signed", ["false", "true"])
@pytest.mark.parametrize("op", ["READ", "WRITE"])
def test_memory_that_is_gone_fails_the_transfer(through, tmp_path, op, signed):
    objects = through(sign_payload=signed)
    file = tmp_path / "memory"
    memory = mapped(file, len(DATA), mmap.ACCESS_WRITE)
    with objects.transfer(op, memory, [(KEY, 0, len(DATA), 0)]) as handle:
        os.truncate(file, 8192)
        with pytest.raises(nixl.nixlBackendError, match="cannot (read|write) the memory at"):
            objects.agent.transfer(handle)
            handle.wait(60)
    assert objects.get(KEY, len(DATA)) == DATA
