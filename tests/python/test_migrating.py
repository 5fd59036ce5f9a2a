"""Rows of docs/migrating.md that no other test holds, and the page itself."""

from __future__ import annotations

import pickle

import pytest
from nixl.errors import nixlInvalidParamError, nixlNotAllowedError


def test_what_the_other_package_writes_is_refused(agent):
    # Its metadata starts like this; its descriptor lists are pickles.
    metadata = b"nixlSerDes|Agent\x01\x00\x00\x00\x00\x00\x00\x00q|Conn" + bytes(300)
    with pytest.raises(nixlInvalidParamError, match="are not agent metadata"):
        agent.add_remote_agent(metadata)
    with pytest.raises(nixlInvalidParamError, match="are not a serialized descriptor list"):
        agent.deserialize_descs(pickle.dumps([(4096, 64, 0)]))


def test_empty_lists(make_agent):
    agent = make_agent(strict_descriptors=True)
    for call in (agent.get_reg_descs, agent.get_xfer_descs):
        assert list(call([], "DRAM")) == []
        with pytest.raises(nixlInvalidParamError, match="an empty list needs mem_type"):
            call([])


def test_a_second_backend_of_one_name(agent):
    with pytest.raises(nixlNotAllowedError, match="has a backend UCX already"):
        agent.create_backend("UCX")
