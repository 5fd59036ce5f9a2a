"""Looking at the store: query, list, remove, and errors that tell the truth."""

from __future__ import annotations

import time

import nixl
import pytest
from obj_support import pattern
from weed import BUCKET, READER, SECRET


def test_query_tells_size_time_and_etag(objects, witness, prefix):
    witness.put_object(Bucket=BUCKET, Key=prefix + "a", Body=b"hello")
    there, missing, again = objects.query(prefix + "a", prefix + "b", prefix + "a")
    assert missing is None
    assert there == again
    assert there["size"] == "5"
    assert abs(float(there["mtime"]) - time.time()) < 3600
    assert there["etag"] == "5d41402abc4b2a76b9719d911017c592"


def test_many_at_a_time(objects, witness, prefix):
    keys = [f"{prefix}{n}" for n in range(300)]
    for key in keys[::3]:
        witness.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    answers = objects.query(*keys)
    assert [a is not None for a in answers] == [n % 3 == 0 for n in range(300)]


def test_listing_goes_through_all_pages(objects, prefix):
    for n in range(7):
        objects.put(f"{prefix}many/{n}&<x>", pattern(10 + n))
    objects.put(prefix + "other", b"x")
    listed = objects.agent.list_storage("OBJ", prefix + "many/")
    assert {name: entry["size"] for name, entry in listed.items()} == {
        f"{prefix}many/{n}&<x>": str(10 + n) for n in range(7)
    }
    assert len(objects.agent.list_storage("OBJ", prefix, limit=3)) == 3
    assert objects.agent.list_storage("OBJ", prefix + "none") == {}


def test_removing(objects, witness, prefix):
    keys = [prefix + "a", prefix + "b&c", prefix + "d\n"]
    for key in keys:
        objects.put(key, b"x")
    objects.agent.remove_storage("OBJ", keys[0])
    assert objects.query(*keys)[0] is None
    assert objects.agent.remove_storage("OBJ", [*keys[1:], prefix + "missing"]) == {}
    assert objects.query(*keys) == [None, None, None]
    objects.agent.remove_storage("OBJ", keys[0])  # the store says the same of what is not there


def test_a_wrong_secret_is_told_and_not_shown(make_objects, prefix):
    wrong = make_objects(secret_key=SECRET + "-wrong")
    for call in (
        lambda: wrong.put(prefix + "k", b"x"),
        lambda: wrong.get(prefix + "k", 1),
        lambda: wrong.query(prefix + "k"),
        lambda: wrong.agent.list_storage("OBJ", prefix),
        lambda: wrong.agent.remove_storage("OBJ", prefix + "k"),
    ):
        with pytest.raises(nixl.nixlNotAllowedError, match="HTTP 403.*endpoint http://127") as told:
            call()
        assert SECRET not in str(told.value)
    with pytest.raises(nixl.nixlNotAllowedError, match="SignatureDoesNotMatch.*request id"):
        wrong.get(prefix + "k", 1)


def test_a_missing_bucket_is_an_error_and_no_missing_object(make_objects, weed, prefix):
    lost = make_objects(
        bucket="no-such-bucket", access_key=READER[0], secret_key=READER[1], max_attempts="2"
    )
    for call in (lambda: lost.query("a"), lambda: lost.agent.list_storage("OBJ", "")):
        with pytest.raises(nixl.nixlNotFoundError, match='"no-such-bucket.*NoSuchBucket'):
            call()
    with pytest.raises(nixl.nixlNotFoundError, match="NoSuchBucket"):
        lost.get("a", 1)


def test_a_store_that_is_not_there(make_objects):
    nobody = make_objects("http://127.0.0.1:9", max_attempts="2")
    for call in (lambda: nobody.query("a"), lambda: nobody.put("a", b"x")):
        with pytest.raises(nixl.nixlBackendError, match="127.0.0.1:9.*tried 2 times"):
            call()


def test_nothing_shows_a_secret(objects, capfd):
    agent = objects.agent
    shown = str(agent.get_backend_params("OBJ")) + str(agent.dump_state())
    shown += repr(agent.get_agent_metadata())
    assert SECRET not in shown
    assert "***" in shown
    out = capfd.readouterr()
    assert SECRET not in out.out + out.err


def test_files_answer_the_same_way(make_objects, tmp_path):
    """The same calls over files."""
    agent = nixl.nixl_agent("obj-files", nixl.nixl_agent_config(backends=["POSIX"]))
    try:
        (tmp_path / "a").write_bytes(b"12345")
        names = [str(tmp_path / name) for name in "ab"]
        there, missing = agent.query_memory([(0, 0, 0, name) for name in names], "POSIX", "FILE")
        assert (there["size"], missing) == ("5", None)
        left = agent.remove_storage("POSIX", names)
        assert list(left) == [names[1]]
        assert isinstance(left[names[1]], nixl.nixlNotFoundError)
        assert agent.list_storage("POSIX", str(tmp_path)) == {}
    finally:
        agent.close()
