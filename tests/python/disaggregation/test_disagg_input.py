"""What callers may get wrong: each is an error that names the object, the value and the cause."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request

import numpy as np
import pytest
from kv_support import Cache, KVPoll, Place, patient, until, why
from nixl.disaggregation import conn
from nixl.disaggregation.counted import NotificationCounter
from nixl.disaggregation.settings import Settings


@pytest.mark.parametrize(
    ("mine", "theirs", "told"),
    [
        ({"page_size": 4}, {"page_size": 8}, "page sizes differ: prefill 4, decode 8"),
        ({"heads": 4}, {"heads": 2}, "KV head counts differ: prefill 4, decode 2"),
        ({"dim": 8}, {"dim": 16}, "bytes of a page differ for the same heads: prefill 128, decode"),
        ({"mla": True}, {}, "MLA differs: prefill True, decode False"),
    ],
)
def test_caches_that_do_not_fit(place, mine, theirs, told):
    prefill = place.rank("prefill", Cache(**mine))
    decode = place.rank("decode", Cache(**theirs))
    receiver = conn.NixlKVReceiver(decode, place.address, 1)
    receiver.init([1], 0)
    assert told in why(receiver)
    assert prefill.metrics()["refused_peers"] == ("bytes" in told)


def test_other_names_of_types_and_layouts_are_refused_by_the_prefill_rank(place):
    prefill = place.rank("prefill", Cache(), kv_cache_dtype_str="bfloat16", kv_layout="nhd")
    for told, more in (
        ("KV data types differ: prefill bfloat16, decode fp8", {"kv_cache_dtype_str": "fp8"}),
        ("KV layouts differ: prefill nhd, decode hnd", {"kv_layout": "HND"}),
        ("sizes of auxiliary data differ: prefill [16, 64], decode [64]", {}),
    ):
        cache = Cache()
        if not more:
            del cache.aux[0]
        decode = place.rank("decode", cache, **more)
        sender = conn.NixlKVSender(prefill, place.address, 1)
        receiver = conn.NixlKVReceiver(decode, place.address, 1)
        receiver.init([1], 0)
        assert told in why(receiver)
        assert told in why(sender)  # the prefill rank's own scheduler is told too


def test_counts_that_differ_are_named_at_both_ends(place):
    prefill, decode = place.rank("prefill", Cache()), place.rank("decode", Cache())
    receiver = conn.NixlKVReceiver(decode, place.address, 1)
    sender = conn.NixlKVSender(prefill, place.address, 1)
    receiver.init([1, 2, 3], 0)
    sender.init(2, 0)
    for end in (sender, receiver):
        assert "wants 3 pages, the prefill rank has 2" in why(end)


def test_indices_out_of_range(place):
    prefill, decode = place.rank("prefill", Cache(pages=8)), place.rank("decode", Cache(pages=8))
    receiver = conn.NixlKVReceiver(decode, place.address, 1)
    for wrong, told in (([3, 8], "page 8 at 1"), ([-1], "page -1 at 0")):
        with pytest.raises(ValueError, match=f"room 1: kv_indices: {told} is not one of 8 pages"):
            receiver.init(wrong, 0)
    with pytest.raises(ValueError, match="aux_index 8 is not one of 8"):
        receiver.init([1], 8)
    receiver.init([1, 2], 0)
    with pytest.raises(RuntimeError, match=r"init\(\) was called before"):
        receiver.init([1, 2], 0)
    sender = conn.NixlKVSender(prefill, place.address, 1)
    sender.init(2, 0)
    sender.send([7, 8])
    for end in (sender, receiver):
        assert "source page 8 is not one of 8 pages" in why(end)


def test_numbers_of_other_types(place):
    prefill = place.rank("prefill", Cache())
    sender = conn.NixlKVSender(prefill, place.address, 1)
    with pytest.raises(RuntimeError, match=r"send\(\) before init\(\)"):
        sender.send([1])
    for wrong in (-1, 1.5, True, "3"):
        with pytest.raises(ValueError, match="is not a number of pages"):
            sender.init(wrong, 0)
    sender.init(3, 0)
    with pytest.raises(TypeError, match="float64 are not numbers of pages"):
        sender.send([0.5])
    with pytest.raises(TypeError, match="bool are not numbers of pages"):
        sender.send(np.array([True]))
    with pytest.raises(ValueError, match="2 dimensions"):
        sender.send(np.zeros((2, 2), np.int32))
    with pytest.raises(ValueError, match="is no number of a page"):
        sender.send([1 << 40])
    with pytest.raises(ValueError, match=r"4 pages sent, but init\(\) said 3"):
        sender.send(np.arange(4, dtype=np.uint16))
    for kind in (np.int64, np.uint8, np.int32):
        sender.send(np.ones(1, kind))
    with pytest.raises(RuntimeError, match="after all 3 pages"):
        sender.send([1])


def test_rooms_and_modes(place):
    prefill, decode = place.rank("prefill", Cache()), place.rank("decode", Cache())
    conn.NixlKVSender(prefill, place.address, 1)
    with pytest.raises(ValueError, match="room 1 is in use by another sender"):
        conn.NixlKVSender(prefill, place.address, 1)
    conn.NixlKVReceiver(decode, place.address, 1)
    with pytest.raises(ValueError, match="room 1 is in use by another receiver"):
        conn.NixlKVReceiver(decode, place.address, 1)
    with pytest.raises(ValueError, match="needs a manager in the mode PREFILL"):
        conn.NixlKVSender(decode, place.address, 2)
    with pytest.raises(ValueError, match="needs a manager in the mode DECODE"):
        conn.NixlKVReceiver(prefill, place.address, 2)
    with pytest.raises(TypeError, match="'a' is not a number"):
        conn.NixlKVSender(prefill, place.address, "a")
    with pytest.raises(ValueError, match="-1 is not within"):
        conn.NixlKVSender(prefill, place.address, -1)
    with pytest.raises(ValueError, match='not "host:port"'):
        conn.NixlKVReceiver(decode, "somewhere", 3)
    with pytest.raises(ValueError, match="NULL"):
        conn.NixlKVManager(Cache().args(), conn.DisaggregationMode.NULL, conn.ServerArgs())


def test_ranks_that_cannot_be(place):
    for more, told in (
        ({"kv_item_lens": [1, 2, 3]}, "6 kv_data_ptrs but 3 kv_item_lens"),
        ({"kv_data_lens": [1 << 20]}, "6 kv_item_lens but 1 kv_data_lens"),
        ({"aux_item_lens": [16]}, "2 aux_data_ptrs but 1 aux_item_lens"),
        ({"kv_item_lens": [0] * 6}, "not sizes in bytes"),
        ({"rank": 2, "tp_size": 2}, "engine_rank 2 is not one of 2 ranks"),
        ({"pp_rank": 1}, "pipeline rank 1 of 1"),
        ({"kv_data_mem_kinds": ["DRAM", "VRAM"]}, "all must be of one kind"),
        ({"total_kv_head_num": 5, "tp_size": 2}, "5 heads are not divided by 2 ranks"),
    ):
        with pytest.raises(ValueError, match=told):
            place.rank("prefill", Cache(), **more)


def test_settings(monkeypatch):
    monkeypatch.setenv("NIXL_DISAGG_WAITING_TIMEOUT", "1.5")
    monkeypatch.setenv("NIXL_DISAGG_WINDOW", "7")
    assert (Settings.from_env().waiting_timeout, Settings.from_env().window) == (1.5, 7)
    monkeypatch.setenv("NIXL_DISAGG_WINDOW", "many")
    with pytest.raises(ValueError, match="NIXL_DISAGG_WINDOW='many' is not a number"):
        Settings.from_env()
    with pytest.raises(ValueError, match="heartbeat: -1 must be more than 0"):
        Settings(heartbeat=-1)
    with pytest.raises(TypeError, match="window: 1.5 is not a whole number"):
        Settings(window=1.5)


def test_a_full_queue_fails_the_room_and_no_other(place):
    settings = patient(window=1, queue_limit=1)
    source = Cache(pages=4096, page_size=16, dim=32)
    prefill = place.rank("prefill", source, settings=settings)
    decode = place.rank("decode", Cache(pages=4096, page_size=16, dim=32))
    ends = []
    for room in range(40):
        receiver = conn.NixlKVReceiver(decode, place.address, room)
        receiver.init(np.arange(100) + 100 * room, 0)
        sender = conn.NixlKVSender(prefill, place.address, room)
        until(sender, wanted=KVPoll.WaitingForInput, others=[receiver])
        sender.init(100, 0)
        ends.append((sender, receiver))
    for sender, _ in ends:
        sender.send(np.arange(100))
    for sender, receiver in ends:
        while sender.poll() not in (KVPoll.Success, KVPoll.Failed):
            pass
        if sender.poll() == KVPoll.Failed:
            assert "chunks wait to be sent, the limit" in why(sender)
            assert "chunks wait to be sent, the limit" in why(receiver)
        else:
            until(receiver)


def test_the_bootstrap_server_looks_at_what_it_gets(place):
    def ask(path: str, data: bytes | None = None) -> tuple[int, str]:
        request = urllib.request.Request(
            f"http://{place.address}{path}", data, method="PUT" if data is not None else "GET"
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert ask("/health") == (200, "OK")
    for data in (b"", b"[]", b"{}", b'{"tp_size": "1"}', b"\xff", b"[" * 5000):
        assert ask("/route", data)[0] == 400
    assert ask("/ranks") == (404, "no rank has registered")
    assert ask("/route?engine_rank=x&target_dp_group=0&target_pp_rank=0") == (
        400, "engine_rank: 'x' is not a number",
    )  # fmt: skip
    with place.rank("prefill", Cache(heads=2), tp_size=2):
        while ask("/ranks")[0] != 200:
            pass
        status, text = ask("/route?engine_rank=-1&target_dp_group=-1&target_pp_rank=-1")
        assert status == 200 and '"prefill_attn_tp_size": 2' in text
        assert ask("/route?engine_rank=0&target_dp_group=0&target_pp_rank=0")[0] == 200
        assert ask("/route?engine_rank=1&target_dp_group=0&target_pp_rank=0")[0] == 404
        other = json.loads(ask("/ranks")[1])["ranks"][0] | {"tp_size": 4, "tp_rank": 3}
        status, text = ask("/route", json.dumps(other).encode())
        assert status == 400 and "tp_size 4 differs from 2 of the other ranks" in text
    assert "nixl_bootstrap_refused_total" in ask("/metrics")[1]
    with pytest.raises(OSError, match="cannot listen at 127.0.0.1"):
        conn.NixlKVBootstrapServer("127.0.0.1", place.server.port)
    with pytest.raises(ValueError, match="port 70000"):
        conn.NixlKVBootstrapServer("127.0.0.1", 70000)


def test_calls_below_senders_and_receivers(place):
    source, target = Cache(), Cache()
    source.fill(8)
    prefill, decode = place.rank("prefill", source), place.rank("decode", target)
    receiver = conn.NixlKVReceiver(decode, place.address, 1)
    receiver.init([1, 2, 3], 4)
    while not prefill.decode_kv_args_table:
        receiver.poll()
    (name,) = prefill.decode_kv_args_table
    info = prefill.decode_kv_args_table[name].info
    job = prefill.send_kvcache(name, [9], info.dst_kv_ptrs, [20], 0, b"by hand#1")
    aux = prefill.send_aux(name, 1, info.dst_aux_ptrs, 7, b"by hand#2")
    decode.other_notifications.expect("by hand", 2)
    while not decode.other_notifications.done("by hand"):
        decode.update_transfer_status()
    while job.state < 2 or aux.state < 2:
        pass
    assert (job.state, aux.state, job.error) == (2, 2, "")
    assert np.array_equal(target.kv[5][20], source.kv[5][9])
    assert np.array_equal(target.aux[0][7], source.aux[0][1])
    with pytest.raises(KeyError, match="no decode rank 'nobody'"):
        prefill.send_kvcache("nobody", [9], [], [20], 0, b"")
    with pytest.raises(ValueError, match="page 32 at 0 is not one of 32 pages"):
        prefill.send_kvcache(name, [9], info.dst_kv_ptrs, [32], 0, b"")
    with pytest.raises(ValueError, match="2 prefill_kv_indices but 1 dst_kv_indices"):
        prefill.send_kvcache(name, [9, 8], info.dst_kv_ptrs, [3], 0, b"")
    sender = conn.NixlKVSender(prefill, place.address, 1)
    until(sender, wanted=KVPoll.WaitingForInput)
    with pytest.raises(ValueError, match="chunk 1 at page 0, but chunk 0 at page 0 comes next"):
        prefill.add_transfer_request(1, [5, 6], slice(0, 2), False, 1)
    with pytest.raises(ValueError, match="is_last is True after 2 of 3 pages"):
        prefill.add_transfer_request(1, [5, 6], slice(0, 2), True, 0, 2)
    assert len(prefill.add_transfer_request(1, [5, 6], slice(0, 2), False, 0)) == 1
    with pytest.raises(ValueError, match="the last chunk needs an aux_index"):
        prefill.add_transfer_request(1, [7], slice(2, 3), True, 1)
    assert len(prefill.add_transfer_request(1, [7], slice(2, 3), True, 1, 2)) == 2
    until(sender, receiver)
    assert np.array_equal(target.kv[0][[1, 2, 3]], source.kv[0][[5, 6, 7]])


def test_states_go_forward_only(place):
    prefill = place.rank("prefill", Cache())
    with pytest.raises(KeyError, match="room 4 is not known"):
        prefill.check_status(4)
    prefill.update_status(4, KVPoll.Transferring)
    prefill.update_status(4, KVPoll.Bootstrapping)
    assert prefill.check_status(4) == KVPoll.Transferring
    prefill.update_status(4, KVPoll.Failed)
    prefill.update_status(4, KVPoll.Success)
    assert prefill.check_status(4) == KVPoll.Failed
    with pytest.raises(ValueError, match="9 is not a state of KVPoll"):
        prefill.update_status(4, 9)
    sender = conn.NixlKVSender(prefill, place.address, 5)
    prefill.update_status(5, KVPoll.Failed)
    assert "failed by update_status" in why(sender)


def test_established_frames():
    frames = [
        b"7",
        b"10.0.0.1",
        b"5000",
        b"agent",
        np.array([3, 4], np.int32).tobytes(),
        b"2",
        b"1",
    ]
    info = conn.TransferInfo.from_zmq(frames)
    assert (info.room, info.endpoint, info.dst_port, info.agent_name) == (
        7,
        "10.0.0.1",
        5000,
        "agent",
    )
    assert info.dst_kv_indices.tolist() == [3, 4] and info.dst_kv_indices.dtype == np.int32
    assert (info.dst_aux_index, info.required_dst_info_num, info.is_dummy()) == (2, 1, False)
    frames[4] = b""
    assert conn.TransferInfo.from_zmq(frames).is_dummy()
    pointers = np.array([1 << 63, 5], np.uint64).tobytes()
    frames = [b"None", b"host", b"1", b"agent", b"metadata", pointers, pointers[:8], b"3"]
    told = conn.KVArgsRegisterInfo.from_zmq(frames)
    assert (told.room, told.agent_metadata, told.gpu_id) == ("None", b"metadata", 3)
    assert (told.dst_kv_ptrs, told.dst_aux_ptrs) == ([1 << 63, 5], [1 << 63])
    with pytest.raises(conn.BadFrames, match=r"3 frames: frame 3 \(agent name\) is missing"):
        conn.KVArgsRegisterInfo.from_zmq(frames[:3])
    with pytest.raises(conn.BadFrames, match="3 bytes are not 32-bit numbers"):
        conn.TransferInfo.from_zmq([b"7", b"h", b"1", b"a", b"123", b"2", b"1"])
    status = conn.TransferStatus()
    assert not status.is_done()
    status.received_kvs.add(0)
    status.num_kvs_expected, status.received_aux = 1, True
    assert status.is_done()


def test_counted_notifications():
    from nixl import nixl_agent

    with nixl_agent("counted-a") as near, nixl_agent("counted-b") as far:
        near.add_remote_agent(far.get_agent_metadata())
        counter = NotificationCounter(far)
        for at in range(3):
            near.send_notif("counted-b", f"layer1#{at}")
        near.send_notif("counted-b", "layer10")
        counter.expect("layer1", 4)
        with pytest.raises(TimeoutError, match="3 of 4 writes came within 0.2 s"):
            counter.wait("layer1", 0.2)
        assert not counter.done("layer1")
        near.send_notif("counted-b", "layer1")
        counter.wait("layer1", 60)
        counter.expect("layer10", 1)  # came before it was expected
        counter.wait("layer10", 60)
        near.send_notif("counted-b", "layer1")
        with pytest.raises(RuntimeError, match="5 writes came, 4 expected"):
            while True:
                counter.done("layer1")
        with pytest.raises(ValueError, match="is expected already"):
            counter.expect("layer1", 1)
        with pytest.raises(ValueError, match="count: 0"):
            counter.expect("layer2", 0)
        with pytest.raises(KeyError, match="is not expected"):
            counter.count("layer3")
        counter.forget("layer1")
        counter.expect("layer1", 1)


def run_python(text: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        env=os.environ | env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_needs_no_package_of_the_extra():
    run_python(
        """
        import sys
        for name in ("zmq", "aiohttp", "numpy", "torch", "sglang"):
            sys.modules[name] = None
        import nixl, nixl.disaggregation
        assert "nixl.disaggregation.conn" not in sys.modules
        del sys.modules["numpy"]
        from nixl.disaggregation import conn
        try:
            conn.NixlKVBootstrapServer("127.0.0.1", 0)
        except ImportError as error:
            assert "pip install nixl[disaggregation]" in str(error)
        else:
            raise SystemExit("no error")
        """
    )


def test_classes_of_sglang_are_taken_where_they_can_be(tmp_path):
    place = tmp_path / "sglang" / "srt" / "disaggregation"
    (place / "base").mkdir(parents=True)
    for folder in (tmp_path / "sglang", place.parent, place, place / "base"):
        (folder / "__init__.py").touch()
    (place / "base" / "conn.py").write_text(
        "class KVArgs: pass\nclass KVPoll:\n    Failed, Bootstrapping, WaitingForInput = 0, 1, 2\n"
        "    Transferring, Success = 3, 4\nclass KVTransferMetric: pass\n"
    )
    (place / "utils.py").write_text(
        "import enum\nDisaggregationMode = enum.Enum('DisaggregationMode', 'NULL PREFILL DECODE')\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    program = "from nixl.disaggregation import conn; print(conn.KVArgs.__module__)"
    assert run_python(program, PYTHONPATH=path).strip() == "sglang.srt.disaggregation.base.conn"
    own = run_python(program, PYTHONPATH=path, NIXL_DISAGG_SGLANG="0")
    assert own.strip() == "nixl.disaggregation.types"
    (place / "utils.py").write_text("import a_package_that_is_missing\n")
    assert run_python(program, PYTHONPATH=path).strip() == "nixl.disaggregation.types"


def test_a_closed_rank_fails_its_rooms():
    place = Place()
    try:
        prefill, decode = place.rank("prefill", Cache()), place.rank("decode", Cache())
        receiver = conn.NixlKVReceiver(decode, place.address, 1)
        receiver.init([1], 0)
        sender = conn.NixlKVSender(prefill, place.address, 1)
        until(sender, wanted=KVPoll.WaitingForInput)
        prefill.close()
        prefill.close()
        assert "the rank was closed" in why(sender)
        assert "the rank was closed" in why(receiver)
    finally:
        place.close()
