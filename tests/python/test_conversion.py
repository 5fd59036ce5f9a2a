"""Reading Python lists while they change: their numbers may run code of the caller's."""

from __future__ import annotations

import gc

import nixl
import pytest
from nixl.errors import nixlError, nixlInvalidParamError


class Shrinks:
    """A number that takes everything out of a list when it is read, and fills the freed memory."""

    def __init__(self, victim: list, value: int = 4096) -> None:
        self.victim, self.value = victim, value

    def __index__(self) -> int:
        self.victim.clear()
        gc.collect()
        self.filler = [(b"x" * 40, object()) for _ in range(1000)]
        return self.value


class Grows(Shrinks):
    def __index__(self) -> int:
        self.victim.append((1, 2, 3))
        return self.value


@pytest.mark.parametrize("change", [Shrinks, Grows])
@pytest.mark.parametrize("field", [0, 1, 2])
@pytest.mark.parametrize("call", ["get_reg_descs", "get_xfer_descs"])
def test_a_list_of_tuples_that_changes_while_it_is_read(agent, call, field, change):
    for place in (0, 5):
        descs: list = [(i * 64 + 4096, 64, 0) for i in range(10)]
        odd = list(descs[place])
        odd[field] = change(descs)
        descs[place] = tuple(odd)
        del odd
        with pytest.raises(nixlInvalidParamError, match="the list changed its length"):
            getattr(agent, call)(descs, "DRAM")


def test_the_last_entry_may_change_the_list(agent):
    descs: list = [(4096, 64, 0), (8192, 64, 0)]
    descs.append((12288, Shrinks(descs, 64), 0))
    assert list(agent.get_xfer_descs(descs, "DRAM")) == [
        (4096, 64, 0),
        (8192, 64, 0),
        (12288, 64, 0),
    ]
    assert descs == []


def test_a_list_of_remote_descriptors_that_changes(agent):
    descs: list = [(4096, 64, 0, "a") for _ in range(10)]
    descs[2] = (4096, Shrinks(descs), 0, "b" * 100)
    with pytest.raises(nixlInvalidParamError, match="the list changed its length"):
        agent.get_remote_descs(descs, "DRAM")


@pytest.mark.parametrize("change", [Shrinks, Grows])
def test_indices_that_change_while_they_are_read(pair, change):
    near = [(pair.near_memory.address + i * 64, 64, 0) for i in range(64)]
    far = [(pair.far_memory.address + i * 64, 64, 0) for i in range(64)]
    left = pair.near.prep_xfer_dlist("", near, "DRAM")
    right = pair.near.prep_xfer_dlist(pair.far.name, far, "DRAM")
    for count in (3, 40):  # with and without memory of their own
        indices: list = list(range(count))
        indices[1] = change(indices, 1)
        with pytest.raises(nixlInvalidParamError, match="local: the list changed its length"):
            pair.near.make_prepped_xfer("WRITE", left, indices, right, list(range(count)))
        indices = list(range(count))
        indices[1] = change(indices, 1)
        with pytest.raises(nixlInvalidParamError, match="remote: the list changed its length"):
            pair.near.make_prepped_xfer("WRITE", left, list(range(count)), right, indices)


@pytest.mark.parametrize(
    ("kind", "entry"),
    [
        (nixl.nixlXferDList, (1, 2, 3)),
        (nixl.nixlRegDList, (1, 2, 3, b"x")),
        (nixl.nixlRemoteDList, (1, 2, 3, "x")),
    ],
)
def test_an_entry_that_empties_the_list_it_is_put_into(kind, entry):
    descs = kind(nixl.DRAM_SEG, [entry] * 50)
    with pytest.raises(IndexError, match="index 49 of a list of 0 descriptors"):
        descs[49] = (Shrinks(descs), *entry[1:])
    descs.append((Shrinks(descs, 7), *entry[1:]))
    assert [descs[i] for i in range(len(descs))] == [(7, *entry[1:])]
    with pytest.raises(nixlError, match="NOT_FOUND"):
        descs.index((Shrinks(descs), *entry[1:]))


def test_positions_that_are_no_integers():
    descs = nixl.nixlXferDList(nixl.DRAM_SEG, [(1, 2, 3)])
    for call in (
        lambda: descs["a"],
        lambda: descs[0.0],
        lambda: descs[0:1],
        lambda: descs.remDesc("a"),
        lambda: descs.__setitem__(None, (1, 2, 3)),
    ):
        with pytest.raises(TypeError, match="the index of a descriptor must be an integer, not"):
            call()
    assert descs[True - 1] == (1, 2, 3)
