"""Ranks of unequal numbers: heads, layers and groups find their way; every byte is compared."""

from __future__ import annotations

import numpy as np
import pytest
from kv_support import Cache, KVPoll, until, why
from nixl.disaggregation.conn import NixlKVReceiver, NixlKVSender
from nixl.disaggregation.routes import sources, takers, told

HEADS, LAYERS = 4, 4
RNG = np.random.default_rng(5)


def whole_cache(mla: bool = False) -> Cache:
    made = Cache(layers=LAYERS, heads=HEADS, mla=mla)
    made.fill(11)
    return made


def heads_of(rank: int, size: int) -> slice:
    each = max(HEADS // size, 1)
    first = rank * HEADS // size
    return slice(first, first + each)


def part_of(whole: Cache, heads: slice, layers: slice) -> Cache:
    """The share of a rank of a cache."""
    mla = whole.mla
    count = len(range(LAYERS)[layers])
    made = Cache(layers=count, heads=heads.stop - heads.start, mla=mla)
    parts = [whole.kv] if mla else [whole.kv[:LAYERS], whole.kv[LAYERS:]]
    chosen = [buffer for half in parts for buffer in half[layers]]
    for own, of_all in zip(made.kv, chosen, strict=True):
        own[...] = of_all if mla else of_all[:, :, heads]
    for own, of_all in zip(made.aux, whole.aux, strict=True):
        own[...] = of_all
    return made


def serve(place, whole, prefill_tp, decode_tp, pp=1, decode_pp=1, chunks=(5,), tell_layers=True):
    """All ranks do one room; the decode ranks' caches hold afterwards what they should."""
    here = RNG.permutation(32)[: sum(chunks)].astype(np.int32)
    there = RNG.permutation(32)[: sum(chunks)].astype(np.int32)
    senders, receivers, checks = [], [], []
    total = HEADS if not whole.mla else 0
    for tp in range(prefill_tp):
        for stage in range(pp):
            layers = slice(stage * LAYERS // pp, (stage + 1) * LAYERS // pp)
            own = part_of(whole, heads_of(tp, prefill_tp), layers)
            checks.append(own)
            rank = place.rank(
                "prefill", own, tp, tp_size=prefill_tp, pp_size=pp, pp_rank=stage,
                prefill_start_layer=layers.start, total_kv_head_num=total,
            )  # fmt: skip
            senders.append(NixlKVSender(rank, place.address, 1, [0], stage))
    for tp in range(decode_tp):
        for stage in range(decode_pp):
            layers = slice(stage * LAYERS // decode_pp, (stage + 1) * LAYERS // decode_pp)
            wanted = part_of(whole, heads_of(tp, decode_tp), layers)
            own = Cache(layers=wanted.layers, heads=wanted.heads, mla=whole.mla)
            rank = place.rank(
                "decode", own, tp, tp_size=decode_tp, pp_size=decode_pp, pp_rank=stage,
                prefill_start_layer=layers.start if tell_layers else 0, total_kv_head_num=total,
            )  # fmt: skip
            receiver = NixlKVReceiver(rank, place.address, 1)
            receiver.init(there, 3)
            receivers.append((receiver, own, wanted))
    for sender in senders:
        sender.init(len(here), 6)
    at = 0
    for count in chunks:
        for sender in senders:
            sender.send(here[at : at + count])
        at += count
    until(*senders, *(receiver for receiver, _, _ in receivers))
    for _, own, wanted in receivers:
        for got, right in zip(own.kv, wanted.kv, strict=True):
            assert np.array_equal(got[there], right[here])
            assert not got[np.setdiff1d(np.arange(32), there)].any()
        assert np.array_equal(own.aux[1][3], whole.aux[1][6])


@pytest.mark.parametrize(
    ("prefill_tp", "decode_tp"), [(1, 2), (2, 1), (4, 2), (2, 4), (4, 4), (8, 2), (2, 8), (8, 4)]
)
def test_heads_are_cut_and_put_together(place, prefill_tp, decode_tp):
    serve(place, whole_cache(), prefill_tp, decode_tp, chunks=(3, 2))


@pytest.mark.parametrize(("prefill_tp", "decode_tp"), [(1, 2), (2, 1), (4, 2)])
def test_mla_is_whole_everywhere(place, prefill_tp, decode_tp):
    serve(place, whole_cache(mla=True), prefill_tp, decode_tp)


@pytest.mark.parametrize(("pp", "prefill_tp"), [(2, 1), (4, 1), (2, 2)])
def test_pipeline_stages(place, pp, prefill_tp):
    serve(place, whole_cache(), prefill_tp, 1, pp=pp, chunks=(1, 4))


@pytest.mark.parametrize(
    ("pp", "decode_pp", "prefill_tp", "decode_tp"),
    [(1, 2, 1, 1), (2, 2, 1, 1), (4, 2, 1, 1), (2, 4, 1, 1), (2, 2, 2, 1), (1, 2, 1, 2)],
)
def test_pipeline_stages_of_both(place, pp, decode_pp, prefill_tp, decode_tp):
    serve(place, whole_cache(), prefill_tp, decode_tp, pp=pp, decode_pp=decode_pp, chunks=(3, 2))


def test_decode_stages_take_the_layers_of_the_same_prefill_stage(place):
    """As SGLang's schedulers, which tell a decode stage of no first layer."""
    serve(place, whole_cache(), 1, 1, pp=2, decode_pp=2, tell_layers=False)


@pytest.mark.parametrize(
    ("prefill", "decode", "told"),
    [
        ({"layers": 2}, {"layers": 3}, "layers differ: prefill 0 to 1, decode 0 to 2"),
        ({"layers": 3}, {"layers": 2}, "layers differ: prefill 0 to 2, decode 0 to 1"),
        (
            {"layers": 4},
            {"layers": 2, "pp_size": 2, "pp_rank": 1},
            "prefill_start_layer of decode stage 1 is not known, which it must be where the stages "
            "differ (prefill 1 with layers 0 to 3, decode 2, this one of 2 layers)",
        ),
        (
            {"layers": 4},
            {"layers": 2, "pp_size": 2, "pp_rank": 1, "prefill_start_layer": 3},
            "layers differ: prefill 0 to 3, decode 3 to 4",
        ),
    ],
)
def test_layers_that_nobody_has(place, prefill, decode, told):
    place.rank("prefill", Cache(layers=prefill.pop("layers")), **prefill)
    rank = place.rank("decode", Cache(layers=decode.pop("layers")), **decode)
    receiver = NixlKVReceiver(rank, place.address, 1)
    assert told in why(receiver)


def test_every_prefill_rank_hears_of_every_room():
    for heads in (1, 2, 4, 8):
        for prefill in (1, 2, 4, 8, 16):
            for decode in (1, 2, 4, 8, 16):
                for mla in (False, True):
                    heard = {p: 0 for p in range(prefill)}
                    for rank in range(decode):
                        names = told(rank, decode, prefill, heads, mla)
                        assert set(sources(rank, decode, prefill, heads, mla)) <= set(names)
                        for name in names:
                            heard[name] += 1
                    for p, count in heard.items():
                        assert count == len(takers(p, prefill, decode, heads, mla)) > 0


def test_data_parallel_groups(place):
    """Two groups; rooms go to the one that is named, or by their number."""
    whole = [Cache() for _ in range(2)]
    senders = {}
    for dp, cache in enumerate(whole):
        cache.fill(dp)
        rank = place.rank("prefill", cache, dp_size=2, system_dp_rank=dp)
        for room in (10, 11, 20, 21):
            if (
                room in (10 + dp, 20, 21)
                and not (room == 20 and dp == 0)
                and not (room == 21 and dp == 1)
            ):
                senders[room] = (NixlKVSender(rank, place.address, room, [0], 0), cache)
    target = Cache()
    decode = place.rank("decode", target)
    pages = np.array([0], np.int32)
    for at, (room, dp) in enumerate([(10, None), (11, None), (20, 1), (21, 0)]):
        receiver = NixlKVReceiver(decode, place.address, room, dp)
        receiver.init(np.array([at], np.int32), 0)
        sender, cache = senders[room]
        sender.init(1, 0)
        sender.send(pages)
        until(sender, receiver)
        assert np.array_equal(target.kv[0][at], cache.kv[0][0]), room


def test_data_parallel_attention_inside_a_server(place):
    """engine_rank 0..3 of tp 4, dp 2: groups of two attention ranks each."""
    whole = whole_cache()
    for rank in range(4):
        part = part_of(whole, heads_of(rank % 2, 2), slice(0, LAYERS))
        made = place.rank("prefill", part, rank, tp_size=4, dp_size=2, enable_dp_attention=True)
        assert (made.dp_rank, made.attn_tp_rank, made.attn_tp_size) == (rank // 2, rank % 2, 2)
        made.part = part
    target = Cache(layers=LAYERS, heads=HEADS)
    decode = place.rank("decode", target)
    receiver = NixlKVReceiver(decode, place.address, 4, 1)
    receiver.init(np.arange(3, dtype=np.int32), 0)
    ends = [NixlKVSender(m, place.address, 4, [0], 0) for m in place.managers[2:4]]
    for end in ends:
        end.init(3, 0)
        end.send(np.arange(3, dtype=np.int32))
    until(receiver, *ends)
    assert all(np.array_equal(a[:3], b[:3]) for a, b in zip(target.kv, whole.kv, strict=True))


def test_layers_as_they_are_computed(place):
    """Each layer is sent before the next one exists; chunk after chunk."""
    source, target = Cache(layers=3), Cache(layers=3)
    prefill, decode = place.rank("prefill", source), place.rank("decode", target)
    receiver, sender = NixlKVReceiver(decode, place.address, 3), NixlKVSender(prefill, "", 3)
    here = np.array([8, 2, 30, 31], np.int32)
    receiver.init(here, 0)
    until(sender, wanted=KVPoll.WaitingForInput, others=[receiver])
    sender.init(4, 0)
    truth = Cache(layers=3)
    truth.fill(3)
    for chunk in (here[:3], here[3:]):
        for layer in range(3):
            for half in (0, 3):
                source.kv[half + layer][chunk] = truth.kv[half + layer][chunk]
            sender.send(chunk, range(layer, layer + 1))
            assert receiver.poll() != KVPoll.Success or layer == 2
    until(sender, receiver)
    assert all(np.array_equal(a[here], b[here]) for a, b in zip(target.kv, truth.kv, strict=True))
    with pytest.raises(RuntimeError, match="after all 4 pages"):
        sender.send(here[:1])


def test_layers_out_of_turn_are_refused(place):
    prefill = place.rank("prefill", Cache(layers=3))
    sender = NixlKVSender(prefill, "", 3)
    sender.init(4, 0)
    sender.send([1, 2], range(0, 1))
    with pytest.raises(ValueError, match="layer 1 of 2 pages comes next"):
        sender.send([1, 2], slice(2, 3))
    with pytest.raises(ValueError, match="layer 1 of 2 pages comes next"):
        sender.send([1], slice(1, 2))
    with pytest.raises(ValueError, match="not neighbours among 3 layers"):
        sender.send([1, 2], range(0, 3, 2))
    with pytest.raises(TypeError, match="neither a slice nor a range"):
        sender.send([1, 2], 1)


def test_a_cached_prefix_leaves_only_the_auxiliary_data(place):
    source, target = Cache(), Cache()
    source.fill(2)
    prefill, decode = place.rank("prefill", source), place.rank("decode", target)
    receiver, sender = NixlKVReceiver(decode, place.address, 3), NixlKVSender(prefill, "", 3)
    receiver.init(np.empty(0, np.int32), 4)
    sender.init(0, 1)
    sender.send(np.empty(0, np.int32))
    until(sender, receiver)
    assert np.array_equal(target.aux[0][4], source.aux[0][1]) and not target.kv[0].any()


def test_many_rooms_at_once(place):
    source, target = Cache(pages=256), Cache(pages=256)
    source.fill(9)
    prefill, decode = place.rank("prefill", source), place.rank("decode", target)
    ends, order = [], RNG.permutation(256).astype(np.int32)
    for room in range(64):
        receiver, sender = (
            NixlKVReceiver(decode, place.address, room),
            NixlKVSender(prefill, "", room),
        )
        receiver.init(order[room * 4 : room * 4 + 4], room % 8)
        sender.init(4, room % 8)
        sender.send(np.arange(room * 4, room * 4 + 2, dtype=np.int64))
        sender.send([room * 4 + 2, room * 4 + 3])
        ends += [receiver, sender]
    until(*ends)
    assert all(np.array_equal(a[order], b) for a, b in zip(target.kv, source.kv, strict=True))
    figures = prefill.metrics()
    assert figures["rooms_succeeded"] == 64 and figures["bytes_sent"] == sum(
        p.nbytes for p in source.kv
    )
    assert figures["rooms_active"] == figures["rooms_failed"] == figures["queued_chunks"] == 0
    assert 'nixl_disagg_rooms_succeeded{role="decode"' in decode.metrics_text()


def test_head_major_pages(place):
    """kv_layout "hnd": a rank's share of a page is in one piece."""
    whole = Cache(heads=4)
    whole.fill(6)
    target = Cache(heads=4)
    decode = place.rank("decode", target, kv_layout="hnd")
    ends = [NixlKVReceiver(decode, place.address, 1)]
    ends[0].init([7, 3], 0)
    for rank in range(2):
        own = Cache(heads=2)
        for part, of_all in zip(own.kv, whole.kv, strict=True):
            half = of_all.reshape(32, 4, -1)[:, 2 * rank : 2 * rank + 2]  # page, head, the rest
            part[...] = half.reshape(part.shape)
        manager = place.rank("prefill", own, rank, tp_size=2, kv_layout="hnd")
        ends.append(NixlKVSender(manager, place.address, 1))
        manager.keep = own
        ends[-1].init(2, 0)
        ends[-1].send([0, 1])
    until(*ends)
    assert all(
        np.array_equal(a[[7, 3]], b[[0, 1]]) for a, b in zip(target.kv, whole.kv, strict=True)
    )
