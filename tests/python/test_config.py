"""Configuration, backends by name, the log."""

from __future__ import annotations

import logging
from datetime import timedelta

import nixl
import pytest
from nixl._api import nixl_agent, nixl_agent_config, nixl_thread_sync_t
from nixl.errors import nixlError, nixlInvalidParamError


def test_own_options_reach_the_raw_configuration(tmp_path):
    config = nixl_agent_config(
        backends=[],
        enable_listen=True,
        sync_mode=nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT,
        backend_params={"POSIX": {"use_uring": True, "ios_pool_size": 5, "x": "y"}},
        listen_host="127.0.0.1",
        auth_key="0123456789abcdef",
        auth_key_file=tmp_path / "key",
        peer_timeout=2.5,
        xfer_timeout=timedelta(seconds=3),
        lanes=["host", "stream"],
        busy_poll_us=7,
        raise_on_error=False,
        metadata_store="file:/x",
        etcd={"lease": 5},
        use_etcd=False,
    )
    raw = config.raw()
    assert raw.useListenThread is True and config.enable_listen is True
    assert raw.syncMode == nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
    assert raw.backendParams == {"POSIX": {"use_uring": "true", "ios_pool_size": "5", "x": "y"}}
    assert (raw.listenHost, raw.authKey) == ("127.0.0.1", b"0123456789abcdef")
    assert raw.authKeyFile == str(tmp_path / "key")
    assert (raw.peerTimeout, raw.xferTimeout) == (timedelta(seconds=2.5), timedelta(seconds=3))
    assert (raw.lanes, raw.busyPollMicroseconds) == ("host,stream", 7)
    assert (raw.raiseOnError, raw.metadataStore, raw.etcd) == (False, "file:/x", {"lease": "5"})
    assert raw.useEtcd is False
    assert "0123456789abcdef" not in repr(config)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"listen_port": 65536}, nixlInvalidParamError, "listen_port=65536"),
        ({"listen_port": "8888"}, TypeError, "listen_port must be an integer, not str"),
        ({"num_threads": -1}, nixlInvalidParamError, "num_threads=-1"),
        ({"backends": "UCX"}, TypeError, "backends must be a list of names"),
        ({"backends": [5]}, TypeError, "backends: 5 is not a str"),
        ({"sync_mode": 1}, TypeError, "sync_mode must be a nixl_thread_sync_t"),
        ({"peer_timeout": -1}, nixlInvalidParamError, "peer_timeout=-1"),
        ({"peer_timeout": "1"}, TypeError, "peer_timeout must be a number"),
        ({"peer_timeout": None}, TypeError, "peer_timeout must be a number .* not NoneType"),
        ({"peer_timeout": 0}, nixlInvalidParamError, "peer_timeout=0: must be more than 0"),
        ({"peer_timeout": timedelta(days=110000)}, nixlInvalidParamError, "peer_timeout=.*1e9"),
        ({"xfer_timeout": timedelta.max}, nixlInvalidParamError, "xfer_timeout=.*within 0 ... 1e9"),
        ({"xfer_timeout": timedelta(-1)}, nixlInvalidParamError, "xfer_timeout=.*within 0 ... 1e9"),
        ({"backend_params": {"UCX": {"a": []}}}, TypeError, "backend UCX: option a="),
        ({"unknown": 1}, TypeError, "unknown"),
        ({"backends": ["\udcff"]}, nixlInvalidParamError, "backends: UTF-8 .* character 0"),
        ({"backend_params": {"OBJ": {"a": "b\udcff"}}}, nixlInvalidParamError, "OBJ: option a: U"),
        ({"backend_params": {"\udcff": {}}}, nixlInvalidParamError, "backend_params: a name: U"),
        ({"auth_key": "secret\udcff"}, nixlInvalidParamError, "auth_key: UTF-8 .* character 6"),
        ({"auth_key_file": "/\udcff"}, nixlInvalidParamError, "auth_key_file: UTF-8"),
        ({"auth_key_file": 5}, TypeError, "auth_key_file must be a path, not int"),
        ({"metadata_store": "/\udcff"}, nixlInvalidParamError, "metadata_store: UTF-8"),
        ({"lanes": "\udcff"}, nixlInvalidParamError, "lanes: UTF-8"),
        ({"etcd": {"user": "\udcff"}}, nixlInvalidParamError, "etcd: user: UTF-8"),
    ],
)
def test_wrong_options_are_named(options, error, text):
    with pytest.raises(error, match=text):
        nixl_agent_config(**options)


def test_defaults_are_not_shared():
    nixl_agent_config().backends.append("X")
    assert nixl_agent_config().backends == ["UCX"]


def test_the_raw_configuration_is_positional_too():
    raw = nixl.nixlAgentConfig(
        True, True, 5, nixl.NIXL_THREAD_SYNC_RW, 2, 3, 4, True, timedelta(seconds=1)
    )
    assert (raw.useProgThread, raw.useListenThread, raw.listenPort) == (True, True, 5)
    assert (raw.syncMode, raw.numWorkers) == (nixl.NIXL_THREAD_SYNC_RW, 2)
    assert (raw.pthrDelay, raw.lthrDelay, raw.captureTelemetry) == (3, 4, True)
    assert raw.etcdWatchTimeout == timedelta(seconds=1)
    assert nixl.nixlAgentConfig().listenPort == 8888


def test_wrong_agents_are_refused():
    with pytest.raises(TypeError, match="nixl_conf must be a nixl_agent_config, not dict"):
        nixl_agent("x", {})
    with pytest.raises(TypeError):
        nixl_agent(5)
    with pytest.raises(nixlError):
        nixl_agent("", nixl_agent_config(backends=[]))


@pytest.mark.parametrize(("wanted", "made"), [(["POSIX", "NOPE"], ["POSIX"]), (["NOPE"], [])])
def test_an_unknown_backend_is_a_warning(run_python, wanted, made):
    program = f"""
from nixl._api import nixl_agent, nixl_agent_config
agent = nixl_agent("x", nixl_agent_config(backends={wanted}))
print(sorted(agent.backends))
agent.create_backend("UCX")
"""
    result = run_python(program)
    assert result.stdout.strip() == str(made)
    (warning,) = [line for line in result.stderr.splitlines() if "NOPE" in line]
    assert "WARN" in warning and "POSIX" in warning


def test_a_backend_that_cannot_be_loaded_is_an_error_where_it_is_the_only_one(run_python, tmp_path):
    program = """
from nixl._api import nixl_agent, nixl_agent_config
try:
    nixl_agent("x", nixl_agent_config(backends=["NOPE", "BROKEN"]))
except Exception as error:
    print(error)
"""
    (tmp_path / "libplugin_broken.so").touch()
    result = run_python(program, NIXL_PLUGIN_DIR=str(tmp_path))
    assert "cannot be loaded" in result.stdout and "broken" in result.stdout


def test_options_of_an_unknown_backend_are_a_warning(run_python):
    program = """
from nixl._api import nixl_agent, nixl_agent_config
options = {"UCXX": {"num_threads": 1}, "POSIX": {"use_aio": "y"}, "ucx": {}}
print(sorted(nixl_agent("x", nixl_agent_config(backends=["UCX"], backend_params=options)).backends))
"""
    result = run_python(program)
    assert result.stdout.strip() == "['UCX']"
    (warning,) = result.stderr.splitlines()
    assert "WARN" in warning and 'options of a backend "UCXX"' in warning and "UCX?" in warning


def test_unknown_options_are_one_warning(run_python):
    program = """
from nixl._api import nixl_agent, nixl_agent_config
agent = nixl_agent("x", nixl_agent_config(backends=[]))
agent.create_backend("POSIX", {"active": True, "file_path": "/x", "use_aio": "true"})
print(agent.get_backend_params("POSIX")["use_aio"])
"""
    result = run_python(program)
    assert result.stdout.strip() == "true"
    told = [line for line in result.stderr.splitlines() if "active" in line]
    assert len(told) == 1 and "use_uring" in told[0]


def test_wrong_values_are_errors(make_agent):
    agent = make_agent(backends=())
    with pytest.raises(nixlInvalidParamError, match="use_aio"):
        agent.create_backend("POSIX", {"use_aio": "perhaps"})
    with pytest.raises(TypeError, match="option use_aio="):
        agent.create_backend("POSIX", {"use_aio": []})
    with pytest.raises(TypeError):
        agent.agent.createBackend("POSIX", {"use_aio": True})
    assert agent.backends == {}


def test_num_threads_goes_to_backends_that_have_it(make_agent):
    agent = make_agent(backends=["UCX", "POSIX"], num_threads=3)
    assert agent.get_backend_params("UCX")["num_threads"] == "3"
    assert "num_threads" not in agent.get_backend_params("POSIX")
    params = {"UCX": {"num_threads": "2"}}
    agent = make_agent(backends=["UCX"], num_threads=3, backend_params=params)
    assert agent.get_backend_params("UCX")["num_threads"] == "2"


def test_backend_params_of_the_configuration_are_used(make_agent):
    agent = make_agent(backends=(), backend_params={"POSIX": {"use_aio": "true"}})
    agent.create_backend("POSIX")
    assert agent.get_backend_params("POSIX")["use_aio"] == "true"
    told = agent.backend_capabilities("POSIX")
    assert told["local"] is True and told["remote"] is False
    assert set(told["memory_types"]) >= {"DRAM_SEG", "FILE_SEG"}
    assert set(agent.backend_mems["POSIX"]) == set(told["memory_types"])
    assert agent.backend_options["POSIX"]["use_aio"] == "true"


def test_missing_plugins_warn_once(agent, caplog):
    with caplog.at_level(logging.WARNING, "nixl"):
        for _ in range(2):
            assert agent.get_plugin_params("NOPE") == {}
            assert agent.get_plugin_mem_types("NOPE") == []
            assert agent.get_backend_params("POSIX") == {}
            assert agent.get_backend_mem_types("POSIX") == []
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "NOPE" in caplog.records[0].getMessage()


def test_messages_at_info(run_python):
    program = """
from nixl._api import nixl_agent, nixl_agent_config
nixl_agent("loud", nixl_agent_config(backends=["POSIX"]))
"""
    told = run_python(program, NIXL_LOG_LEVEL="INFO").stderr
    assert "Backend POSIX was instantiated" in told
    assert "Initialized NIXL agent: loud" in told
    assert run_python(program, NIXL_LOG_LEVEL="").stderr == ""
    assert "NIXL_LOG_LEVEL" in run_python(program, NIXL_LOG_LEVEL="LOUD").stderr


def test_the_log_goes_where_the_application_sends_it(run_python):
    program = """
import logging, sys
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="app %(message)s")
from nixl._api import nixl_agent, nixl_agent_config
nixl_agent("loud", nixl_agent_config(backends=["POSIX"]))
"""
    result = run_python(program, NIXL_LOG_LEVEL="INFO")
    assert "app Initialized NIXL agent: loud" in result.stdout
    assert "Initialized NIXL agent" not in result.stderr


def test_instantiate_all():
    with nixl_agent("all", nixl_agent_config(backends=[]), True) as agent:
        assert "POSIX" in agent.backends


def test_inside_looks(agent):
    assert isinstance(agent.stats(), dict)
    assert agent.name in agent.dump_state()
    assert agent.name in repr(agent)


@pytest.mark.parametrize("listen", [False, True])
def test_an_explicit_sync_mode_reaches_the_raw_configuration(listen):
    for mode in nixl_thread_sync_t:
        config = nixl_agent_config(backends=[], sync_mode=mode, enable_listen_thread=listen)
        assert config.raw().syncMode == mode, mode
    unset = nixl_agent_config(backends=[], enable_listen_thread=listen).raw().syncMode
    assert unset == (
        nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        if listen
        else nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE
    )


def test_an_agent_that_could_not_be_made_has_a_repr():
    config = nixl.nixl_agent_config(backends=["UCX"], auth_key="short")
    with pytest.raises(nixl.nixlInvalidParamError) as error:
        nixl.nixl_agent("half", config)
    frames = []
    trace = error.value.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    (half,) = [f.f_locals["self"] for f in frames if f.f_code.co_name == "__init__"]
    assert repr(half) == "<nixl_agent 'half' with no backend>"


def test_the_shortest_time_is_not_none():
    config = nixl_agent_config(peer_timeout=1e-9, xfer_timeout=timedelta(microseconds=1))
    assert config.raw().peerTimeout == config.raw().xferTimeout == timedelta(milliseconds=1)
    assert nixl_agent_config(xfer_timeout=None).raw().xferTimeout == timedelta(0)
    assert nixl_agent_config(peer_timeout=1e9).raw().peerTimeout == timedelta(seconds=1e9)


def test_an_agents_name_is_utf8():
    with pytest.raises(nixlInvalidParamError, match=r"agent_name '\\ud800': UTF-8 cannot"):
        nixl_agent("\ud800")
    with pytest.raises(nixlInvalidParamError, match="must be UTF-8"):
        nixl.nixlAgent(b"\xff", nixl_agent_config().raw())
