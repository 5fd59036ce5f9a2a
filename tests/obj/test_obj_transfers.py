"""Memory to and from a real S3 server: sizes, ranges, many objects, parts, checksums."""

from __future__ import annotations

import nixl
import numpy as np
import pytest
from obj_support import pattern
from weed import BUCKET


def body(witness, key: str) -> bytes:
    return witness.get_object(Bucket=BUCKET, Key=key)["Body"].read()


@pytest.mark.parametrize("size", [1, 17, 4096, 100_001, (1 << 20) + 3])
def test_what_is_written_is_there_and_comes_back(objects, witness, prefix, size):
    data = pattern(size)
    objects.put(prefix + "one", data)
    assert body(witness, prefix + "one") == data
    assert objects.get(prefix + "one", size) == data


def test_ranges_of_an_object_go_where_they_belong(objects, witness, prefix):
    """Any offset and length, several of one object, in any order, in one transfer."""
    data = pattern(300_000)
    witness.put_object(Bucket=BUCKET, Key=prefix + "k", Body=data)
    memory = np.full(50_000, 0xEE, np.uint8)
    places = [(299_990, 10, 0), (0, 1, 20), (150_001, 9_999, 1000), (7, 3, 49_000), (7, 3, 30)]
    objects.run("READ", memory, [(prefix + "k", *place) for place in places])
    wanted = np.full(50_000, 0xEE, np.uint8)
    for offset, size, at in places:
        wanted[at : at + size] = np.frombuffer(data[offset : offset + size], np.uint8)
    assert (memory == wanted).all()


def test_an_object_is_gathered_from_pieces_and_replaced_whole(objects, witness, prefix):
    memory = np.frombuffer(pattern(9000), np.uint8).copy()
    key = prefix + "gathered"
    objects.run("WRITE", memory, [(key, 5000, 1000, 8000), (key, 0, 5000, 10)])
    assert body(witness, key) == memory[10:5010].tobytes() + memory[8000:9000].tobytes()
    objects.run("WRITE", memory, [(key, 0, 3, 0)])
    assert body(witness, key) == memory[:3].tobytes()


def test_a_write_with_a_gap_is_refused_and_says_why(objects, prefix):
    memory = np.zeros(100, np.uint8)
    with pytest.raises(nixl.nixlError, match="bytes 0 to 9 are missing.*partial_write"):
        objects.run("WRITE", memory, [(prefix + "k", 10, 20, 0)])


def test_merge_changes_a_part(make_objects, witness, prefix):
    merging = make_objects(partial_write="merge")
    key = prefix + "merged"
    witness.put_object(Bucket=BUCKET, Key=key, Body=b"0123456789")
    memory = np.frombuffer(b"abcdefghij", np.uint8).copy()
    merging.run("WRITE", memory, [(key, 3, 2, 0), (key, 8, 4, 4)])
    assert body(witness, key) == b"012ab567efgh"
    merging.run("WRITE", memory, [(prefix + "fresh", 2, 3, 0)])
    assert body(witness, prefix + "fresh") == b"\0\0abc"


def test_keys_of_all_kinds(objects, witness, prefix):
    keys = ["a b+c%d", "täg/ü", "x//y", "dots/.../z", "q?a=b&c#d", "~-._!*'()", "end "]
    for number, key in enumerate(keys):
        objects.put(prefix + key, pattern(100, number))
    listed = witness.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
    assert {entry["Size"] for entry in listed} == {100}
    for number, key in enumerate(keys):
        assert objects.get(prefix + key, 100) == pattern(100, number), key


def test_an_object_of_no_bytes(objects, witness, prefix):
    witness.put_object(Bucket=BUCKET, Key=prefix + "empty", Body=b"")
    assert objects.query(prefix + "empty")[0]["size"] == "0"
    with pytest.raises(nixl.nixlError, match="0 of 5 bytes"):
        objects.get(prefix + "empty", 5)


def test_a_short_object_names_the_bytes(objects, witness, prefix):
    witness.put_object(Bucket=BUCKET, Key=prefix + "short", Body=b"x" * 100)
    memory = np.full(300, 0xEE, np.uint8)
    pieces = [(prefix + "short", 0, 60, 0), (prefix + "short", 60, 60, 60)]
    pieces.append((prefix + "short", 1000, 60, 120))
    with objects.transfer("READ", memory, pieces) as handle:
        with pytest.raises(nixl.nixlBackendError, match="the object ends at 100"):
            objects.agent.transfer(handle)  # raises where it has failed by then
            handle.wait(30)
        assert {index: bytes_ for index, (_, bytes_) in handle.failed.items()} == {1: 40, 2: 0}
    assert memory[:100].tobytes() == b"x" * 100
    assert (memory[100:] == 0xEE).all()


def test_one_missing_object_of_many_is_one_failure(objects, witness, prefix):
    for number in (0, 1, 3):
        witness.put_object(Bucket=BUCKET, Key=f"{prefix}{number}", Body=bytes([number]) * 50)
    memory = np.full(200, 0xEE, np.uint8)
    pieces = [(f"{prefix}{number}", 0, 50, 50 * number) for number in range(4)]
    with objects.transfer("READ", memory, pieces) as handle:
        with pytest.raises(nixl.nixlNotFoundError, match=f'"{BUCKET}/{prefix}2".*NoSuchKey'):
            objects.agent.transfer(handle)
            handle.wait(30)
        assert list(handle.failed) == [2]
    for number in (0, 1, 3):
        assert (memory[50 * number : 50 * number + 50] == number).all()


def test_large_objects_go_in_parts(make_objects, witness, prefix):
    """Lowered thresholds stand for 5 GiB: parts grow with the object, the last is shorter."""
    parted = make_objects(part_size="5M", multipart_threshold="6M", num_threads="2")
    data = pattern((17 << 20) + 5)
    parted.put(prefix + "large", data)
    head = witness.head_object(Bucket=BUCKET, Key=prefix + "large")
    assert head["ETag"].strip('"').endswith("-4")
    assert body(witness, prefix + "large") == data
    assert parted.get(prefix + "large", len(data)) == data
    assert parted.get(prefix + "large", 7 << 20, 3 << 20) == data[3 << 20 : 10 << 20]
    parted.put(prefix + "below", data[: 6 << 20])
    assert "-" not in witness.head_object(Bucket=BUCKET, Key=prefix + "below")["ETag"]
    assert not witness.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


@pytest.mark.parametrize("more", [
    {"checksum_algorithm": "SHA256"},
    {"sign_payload": "true"},
    {"req_checksum": "supported", "sign_payload": "yes", "checksum_algorithm": "SHA256"},
])  # fmt: skip
def test_checksums_of_all_kinds(make_objects, witness, prefix, more):
    other = make_objects(part_size="5M", multipart_threshold="5M", **more)
    for size in (1000, (5 << 20) + 1):
        data = pattern(size)
        other.put(f"{prefix}{size}", data)
        assert other.get(f"{prefix}{size}", size) == data
        assert body(witness, f"{prefix}{size}") == data


def test_ten_thousand_small_objects(objects, prefix):
    count, size = 10_000, 100
    memory = np.frombuffer(pattern(count * size), np.uint8).copy()
    pieces = [(f"{prefix}{n}", 0, size, n * size) for n in range(count)]
    objects.run("WRITE", memory, pieces, 120)
    back = np.zeros_like(memory)
    objects.run("READ", back, pieces, 120)
    assert (back == memory).all()
    assert len(objects.agent.list_storage("OBJ", prefix)) == count
    assert objects.agent.remove_storage("OBJ", [piece[0] for piece in pieces]) == {}
    assert objects.agent.list_storage("OBJ", prefix) == {}


def test_a_transfer_is_posted_again_and_again(objects, witness, prefix):
    memory = np.zeros(1000, np.uint8)
    with objects.transfer("WRITE", memory, [(prefix + "k", 0, 1000, 0)]) as handle:
        for round_ in range(20):
            memory[:] = round_
            objects.agent.transfer(handle)
            assert handle.wait(30) == "DONE"
            assert handle.progress == (1000, 1000)
    assert body(witness, prefix + "k") == bytes([19]) * 1000
