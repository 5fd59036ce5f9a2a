"""Configuration three ways, its checks, and which backend it selects with any subset usable."""

from __future__ import annotations

import json
import logging

import pytest
from hicache_support import called_as
from nixl._api import nixl_agent
from nixl.hicache import config as configuration
from nixl.hicache import schema
from nixl.hicache.config import SCHEMA, ConfigError, load
from nixl.hicache.nixl_utils import NixlBackendConfig, NixlBackendSelection

TOML = """\
use_direct_io = true

[hicache]
layout = "packed"
max_bytes = "10 GiB"
storage_dirs = ["/a", "/b"]

[plugin.posix]
use_uring = "true"
active = true

[plugin.gds_mt]
thread_count = 8
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (
        configuration.ENV_DIR, configuration.ENV_PLUGIN, configuration.ENV_PLUGIN_OLD,
        configuration.ENV_DIRECT, "AWS_DEFAULT_BUCKET",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@called_as(nixl_agent)
class Agent:
    """An agent with some plugins, of which some cannot be created."""

    def __init__(self, plugins, broken=()):
        self.plugins = list(plugins)
        self.broken = broken
        self.backends = {}

    def get_plugin_list(self):
        return self.plugins

    def create_backend(self, backend, initParams):
        if backend in self.broken:
            raise RuntimeError(f"{backend}: lib{backend.lower()}.so was not found")
        self.backends[backend] = initParams


def selected(plugins, config=None, plugin="auto", broken=()):
    agent = Agent(plugins, broken)
    selection = NixlBackendSelection(plugin, NixlBackendConfig(config))
    ok = selection.create_backend(agent)
    assert ok == (selection.backend_name is not None) == bool(agent.backends)
    return selection.backend_name, agent, selection


ALL = ["GDS", "POSIX", "OBJ", "GDS_MT", "3FS", "UCX"]


@pytest.mark.parametrize(
    ("plugins", "broken", "expected"),
    [
        (ALL, (), "3FS"),
        (ALL, ("3FS",), "POSIX"),
        (ALL, ("3FS", "POSIX"), "GDS_MT"),
        (ALL, ("3FS", "POSIX", "GDS_MT"), "GDS"),
        (["GDS", "GDS_MT"], (), "GDS_MT"),
        (["HF3FS", "POSIX"], (), "HF3FS"),
        (["UCX"], (), None),
        (["OBJ"], (), None),  # no bucket
        ([], (), None),
    ],
)
def test_automatic_order_skips_what_is_unusable(plugins, broken, expected):
    assert selected(plugins, broken=broken)[0] == expected


def test_the_order_holds_for_every_subset_of_plugins(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_BUCKET", "pages")
    order = ["3FS", "POSIX", "GDS_MT", "GDS", "OBJ"]
    for bits in range(1 << len(order)):
        usable = [name for i, name in enumerate(order) if bits >> i & 1]
        first = usable[0] if usable else None
        assert selected(usable)[0] == first
        missing = [name for name in order if name not in usable]
        name, _, selection = selected(
            order, broken=missing
        )  # listed, but their library is not there
        assert name == first
        tried = order[: order.index(first)] if first else order
        assert sorted(selection.reasons) == sorted(tried)


def test_object_storage_needs_a_bucket(monkeypatch):
    name, _, selection = selected(["OBJ"])
    assert name is None and "AWS_DEFAULT_BUCKET" in selection.reasons["OBJ"]
    monkeypatch.setenv("AWS_DEFAULT_BUCKET", "unset-later")
    selection = NixlBackendSelection("OBJ")
    selection.set_bucket("pages")
    agent = Agent(["OBJ"])
    assert selection.create_backend(agent)
    assert agent.backends["OBJ"] == {"bucket": "pages"} and selection.mem_type == "OBJ"
    name, agent, _ = selected(ALL, {"plugin": {"obj": {"bucket": "mine", "active": True}}})
    assert name == "OBJ" and agent.backends["OBJ"]["bucket"] == "mine"


def test_an_explicit_plugin_wins_and_is_not_replaced(monkeypatch, caplog):
    file = {"plugin": {"gds": {"active": True}}}
    assert selected(ALL, file, plugin="POSIX")[0] == "POSIX"
    name, _, selection = selected(ALL, plugin="GDS", broken=("GDS",))
    assert name is None and "libgds.so" in selection.reasons["GDS"]
    assert "libgds.so was not found" in caplog.text
    monkeypatch.setenv(configuration.ENV_PLUGIN, "gds_mt")
    assert NixlBackendConfig(file).get_specified_plugin() == "GDS_MT"


def test_active_decides_among_configured_plugins(caplog):
    both = {"plugin": {"gds": {}, "posix": {}}}
    assert selected(ALL, both)[0] == "POSIX"
    assert selected(ALL, {"plugin": {"gds": {}, "posix": {"active": False}}})[0] == "GDS"
    assert selected(ALL, {"plugin": {"gds": {"active": True}, "posix": {}}})[0] == "GDS"
    caplog.clear()
    two = {"plugin": {"gds": {"active": True}, "gds_mt": {"active": "true"}}}
    assert selected(ALL, two)[0] == "GDS_MT"
    assert caplog.text.count("several plugins are active") == 1
    assert selected(ALL, two, broken=("GDS_MT",))[0] == "GDS"


def test_a_configured_but_unusable_plugin_is_skipped_with_its_reason(caplog):
    name, _, _ = selected(ALL, {"plugin": {"gds": {"active": True}}}, broken=("GDS",))
    assert name == "POSIX"
    assert "GDS skipped" in caplog.text and "libgds.so was not found" in caplog.text


def test_three_forms_of_a_file_say_the_same(tmp_path):
    raw = {
        "use_direct_io": True,
        "hicache": {"layout": "packed", "max_bytes": "10 GiB", "storage_dirs": ["/a", "/b"]},
        "plugin": {"posix": {"use_uring": "true", "active": True}, "gds_mt": {"thread_count": 8}},
    }
    (tmp_path / "c.toml").write_text(TOML)
    (tmp_path / "c.json").write_text(json.dumps(raw))
    sources = [raw, json.dumps(raw), repr(raw), f"@{tmp_path}/c.json", f"@{tmp_path}/c.toml"]
    try:
        import yaml

        (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
        sources.append(f"@{tmp_path}/c.yaml")
    except ImportError:
        pass
    for source in sources:
        read = load(source)
        assert read.get("max_bytes") == 10 << 30 and read.get("layout") == "packed", source
        assert read.direct and read.get("storage_dirs") == ["/a", "/b"]
        config = NixlBackendConfig(source)
        assert config.get_specified_plugin() == "POSIX"
        assert config.get_backend_initparams("POSIX") == {"use_uring": "true"}
        assert config.get_backend_initparams("GDS_MT") == {"thread_count": "8"}


def test_the_guides_single_quoted_inline_string(caplog):
    config = NixlBackendConfig("{'use_uring': 'true'}")
    assert config.get_specified_plugin() == "auto"
    assert config.get_backend_initparams("POSIX") == {"use_uring": "true"}
    assert not caplog.records
    assert config.get_backend_initparams("GDS_MT") == {}
    assert caplog.text.count("has no use_uring") == 1


def test_unknown_names_are_warnings_with_the_nearest(caplog):
    load({"plugin": {"posx": {}, "posix": {"use_urin": "true"}}, "hicache": {"layot": "packed"}})
    for name in ("plugin.posix", "use_uring", "layout"):
        assert f'did you mean "{name}"' in caplog.text
    caplog.clear()
    load({"plugins": {}, "hicache": {}})
    assert 'unknown section "plugins"; did you mean "plugin"' in caplog.text
    caplog.clear()
    load({"use_urng": "true"})
    assert 'did you mean "use_uring"' in caplog.text


def test_keys_that_sglang_reads_are_not_unknown(caplog):
    load({"interface_v1": 1, "module_path": "x", "class_name": "y", "backend_name": "z",
          "hicache": {}, "l3_cleaner_enabled": False})  # fmt: skip
    assert not caplog.records


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('[hicache]\nlayout = "other"', "line 2: hicache.layout = 'other': expected one of auto"),
        ("[hicache]\nmax_bytes = true", "line 2: hicache.max_bytes = True: expected a number"),
        ('[hicache]\n\nmax_bytes = "1 Q"', "line 3: hicache.max_bytes = '1 Q'"),
        ("[hicache]\nsegment_bytes = 5", "out of range"),
        ("[plugin.3fs]\niopool_size = 63", "iopool_size = 63: out of range [64, 1048576]"),
        ("[plugin.3fs]\niopool_size = 1048577", "out of range"),
        ('[plugin.3fs]\nmem_config = "vram"', "expected one of dram, dram_zc, auto"),
        ('[plugin.gds]\nbatch_limit = "many"', "plugin.gds.batch_limit = 'many': expected an int"),
        ("[plugin.gds]\nbatch_limit = 1.5", "expected an integer"),
        ('[plugin.posix]\nuse_uring = "perhaps"', 'expected "true" or "false"'),
        ("[plugin.posix]\nactive = 7", "expected true or false"),
        ("[plugin.obj]\nbucket = 5", "expected a string"),
        ("plugin = 5", "expected a section"),
        ("[hicache", "c.toml"),
    ],
)
def test_wrong_values_are_errors_with_file_line_and_key(tmp_path, line, expected):
    file = tmp_path / "c.toml"
    file.write_text(line)
    with pytest.raises(ConfigError) as error:
        load(f"@{file}")
    assert expected in str(error.value) and "c.toml" in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "c.json",
            '{\n "hicache": {\n  "layout": "other"\n }\n}',
            "c.json, line 3: hicache.layout",
        ),
        (
            "c.json",
            '{"interface_v1": 1,\n "plugin": {\n  "posix": {"active": true},\n'
            '  "GDS": {\n   "batch_limit": "many"}}}',
            "c.json, line 5: plugin.gds.batch_limit = 'many'",
        ),
        ("c.yaml", "hicache:\n  verify: auto\n  layout: other\n", "c.yaml, line 3: hicache.layout"),
        (
            "c.yml",
            "plugin:\n  hf3fs:\n    iopool_size: 1\n",
            "c.yml, line 3: plugin.3fs.iopool_size",
        ),
        ("c.yaml", "layout: packed\nmax_bytes: x\n", "c.yaml, line 2: hicache.max_bytes"),
        ("c.toml", "[plugin]\nposix.use_uring = 5", "c.toml, line 2: plugin.posix.use_uring = 5"),
        ("c.toml", "[plugin]\n\nposix = {use_uring = 5}", "c.toml, line 3: plugin.posix.use_uring"),
        ("c.toml", "[plugin.HF3FS]\niopool_size = 1", "c.toml, line 2: plugin.3fs.iopool_size"),
        ("c.toml", "[hicache]\n[plugin]\ngds = 5", "c.toml, line 3: plugin.gds = 5: expected a se"),
        ("c.json", '{\n\n"a": }', "c.json: Expecting value: line 3"),
        ("c.yaml", "\na: [", "line 2, column 5"),
    ],
)
def test_the_line_is_named_in_every_form_of_file(tmp_path, name, text, expected):
    if not name.endswith(("json", "toml")):
        pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        load(f"@{tmp_path}/{name}")
    assert expected in str(error.value)


def test_warnings_name_the_line_too(tmp_path, caplog):
    (tmp_path / "c.json").write_text('{\n "hicache": {\n  "layut": "packed"},\n "plugn": {}}')
    load(f"@{tmp_path}/c.json")
    assert 'c.json, line 3: unknown key "layut"; did you mean "layout"?' in caplog.text
    assert 'c.json, line 4: unknown section "plugn"; did you mean "plugin"?' in caplog.text
    (tmp_path / "c.toml").write_text(
        "[hicache]\n[plugin.possix]\n[plugin.POSIX]\nUSE_URING = 'true'"
    )
    load(f"@{tmp_path}/c.toml")
    assert 'line 2: unknown section "plugin.possix"; did you mean "plugin.posix"?' in caplog.text
    assert 'line 4: unknown key "USE_URING"; did you mean "use_uring"?' in caplog.text


def every_wrong_value() -> list[tuple[str, str, object]]:
    odd = [-1, 2**70, 1.5, float("nan"), float("inf"), 10**400, "", "-1", [], {}, [1], b"x", None,
           "x" * 5000, {"a": 1}, object(), "9" * 400 + " GiB", "1e999"]  # fmt: skip
    return [(section, key, value) for section in SCHEMA for key in SCHEMA[section] for value in odd]


def test_every_wrong_value_is_an_error_that_names_the_key():
    """Or it is taken, and then it is of the type and in the range of the table."""
    refused = 0
    for section, key, value in every_wrong_value():
        outer, _, inner = section.partition(".")
        raw = {key: value} if not section else {outer: {key: value}}
        if inner:
            raw = {outer: {inner: {key: value}}}
        try:
            read = load(raw)
        except ConfigError as error:
            refused += 1
            assert key in str(error) and len(str(error)) < 400
            continue
        where = {"": read.top, "hicache": read.hicache}.get(section)
        taken = read.plugins[configuration.plugin_name(inner)] if where is None else where
        known = SCHEMA[section][key]
        if known.low is not None and taken[key] != known.default:
            assert known.low <= taken[key] <= known.high, (key, value)
        assert not isinstance(taken[key], (dict, bytes)), (key, value)
    assert refused > 300


@pytest.mark.parametrize("key", ["max_bytes", "segment_bytes", "compact_dead_fraction", "timeout"])
@pytest.mark.parametrize("value", [-1, 2**70, "-1"])
def test_what_is_out_of_range_is_refused_here(key, value, tmp_path):
    with pytest.raises(ConfigError, match=rf"hicache\.{key} = "):
        load({"hicache": {key: value}})
    (tmp_path / "c.toml").write_text(f"[hicache]\n{key} = {json.dumps(value)}\n")
    with pytest.raises(ConfigError, match="c.toml, line 2"):
        load(f"@{tmp_path}/c.toml")


@pytest.mark.parametrize("value", ["0800", "600 ", 0o1000, 0o077, "rw", 1.5, True, "0o7777", [6]])
def test_file_modes(value):
    if value == "600 ":
        assert load({"hicache": {"file_mode": value}}).get("file_mode") == 0o600
        return
    with pytest.raises(ConfigError, match="file_mode"):
        load({"hicache": {"file_mode": value}})
    assert load({"hicache": {"file_mode": "0o640"}}).get("file_mode") == 0o640


def test_keys_that_are_no_strings():
    for raw, inside in (
        ({1: 2}, ""), ({"hicache": {1: 2}}, "in hicache"), ({"plugin": {1: {}}}, "in plugin"),
        ({"plugin": {"posix": {None: 2}}}, "in plugin.posix"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"key (1|None) ?{inside}.*: expected a string"):
            load(raw)
        with pytest.raises(ConfigError, match="expected a string"):
            load(repr(raw))


def test_a_file_that_is_not_utf_8(tmp_path):
    for name in ("c.toml", "c.json", "c.yaml"):
        (tmp_path / name).write_bytes("# a\n# Schlüssel\n".encode("latin-1"))
        with pytest.raises(ConfigError, match=rf"{name}, line 2: byte 0xfc is not UTF-8"):
            load(tmp_path / name)


def test_deep_nesting(tmp_path):
    deep = 100_000
    texts = {
        "c.json": '{"a": ' * deep + "1" + "}" * deep,
        "c.toml": "a = " + "[" * deep + "]" * deep,
        "c.yaml": "a: " + "[" * deep + "]" * deep,
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=name):
            load(f"@{tmp_path}/{name}")
    for text in (texts["c.json"], "{'a': " + "(" * deep + ")" * deep + "}"):
        with pytest.raises(ConfigError, match="inline configuration") as error:
            load(text)
        assert len(str(error.value)) < 400
    nested: dict = {}
    inner = nested
    for _ in range(deep):
        inner["hicache"] = {}
        inner = inner["hicache"]
    with pytest.raises(ConfigError):
        load({"hicache": {"layout": nested}})


def test_a_section_alone_that_is_misspelt(caplog):
    read = load({"hicach": {"layout": "packed"}})
    assert 'unknown section "hicach"; did you mean "hicache"?' in caplog.text
    assert not read.flat
    load({"use_dirct_io": True})
    assert 'did you mean "use_direct_io"' in caplog.text


def test_the_environment_is_checked_too(monkeypatch):
    monkeypatch.setenv(configuration.ENV_DIRECT, "perhaps")
    with pytest.raises(ConfigError, match=f"{configuration.ENV_DIRECT} = 'perhaps'"):
        NixlBackendConfig().get_use_direct_io()
    for word, said in (("Y", True), ("disable", False)):
        monkeypatch.setenv(configuration.ENV_DIRECT, word)
        assert NixlBackendConfig().get_use_direct_io() is said


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load("@/missing/config.toml")
    (tmp_path / "c.ini").write_text("")
    with pytest.raises(ConfigError, match=r"expected \.toml"):
        load(f"@{tmp_path}/c.ini")
    with pytest.raises(ConfigError, match="inline"):
        load("{'a': ")
    with pytest.raises(ConfigError, match="expected {key"):
        load("[1, 2]")
    with pytest.raises(ConfigError, match="int"):
        load(5)


def test_storage_directories(monkeypatch, tmp_path):
    read = load({"hicache": {"storage_dirs": "/x, /y"}})
    assert configuration.storage_dirs(load(None), tmp_path) == [str(tmp_path)]
    assert load({"hicache": {"storage_dirs": [tmp_path, "/y"]}}).get("storage_dirs")[1] == "/y"
    for wrong in (5, [5], [b"x"], {"a": 1}):
        with pytest.raises(ConfigError, match="expected a path"):
            configuration.storage_dirs(load(None), wrong)
    assert configuration.storage_dirs(read, "/d") == ["/x", "/y"]
    assert configuration.storage_dirs(load(None), "/d") == ["/d"]
    monkeypatch.setenv(configuration.ENV_DIR, "/e,/f")
    assert configuration.storage_dirs(read, "/d") == ["/e", "/f"]
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setenv(configuration.ENV_DIR, f"{tmp_path},{tmp_path}/link")
    with pytest.raises(ConfigError, match="given twice"):
        configuration.storage_dirs(read, "/d")


@pytest.mark.parametrize(("words", "said"), [
    ("true 1 yes y on enable", True), ("false 0 no n off disable", False),
])  # fmt: skip
def test_words_for_yes_and_no_in_any_case(words, said):
    for word in words.split():
        for text in (word, word.upper(), word.capitalize(), f" {word} "):
            read = load({
                "use_direct_io": text,
                "hicache": {"verify": text},
                "plugin": {"posix": {"use_uring": text, "active": text}},
            })  # fmt: skip
            assert read.top["use_direct_io"] is said and read.plugins["POSIX"]["active"] is said
            assert read.plugins["POSIX"]["use_uring"] == read.get("verify") == str(said).lower()
            assert read.direct is said
    for value in (True, 1) if said else (False, 0):
        assert load({"use_direct_io": value}).direct is said


def test_sizes():
    assert configuration.parse_size("1.5 GiB") == 3 << 29
    assert configuration.parse_size("10g") == 10**10
    assert configuration.parse_size("4096") == 4096
    assert configuration.parse_size("9007199254740993") == 9007199254740993
    for bad in ("", "GiB", "-1", "1 i", True, 1.5, "1.5", None, b"1"):
        with pytest.raises(ValueError):
            configuration.parse_size(bad)


def test_the_sample_has_every_section_and_key_and_no_warning(caplog):
    import pathlib

    import nixl.hicache

    sample = pathlib.Path(nixl.hicache.__file__).parent / "nixl.config.toml.sample"
    text = sample.read_text()
    with caplog.at_level(logging.WARNING):
        loaded = configuration._Reader("sample", text).read(configuration._toml(text))
    assert not caplog.records and loaded.plugins
    for section, keys in SCHEMA.items():
        assert not section or f"[{section}]" in text.replace('"', "")
        for key in keys:
            assert f"{key} =" in text, (section, key)


def test_the_readme_has_the_tables_of_the_schema():
    import pathlib

    import nixl.hicache

    readme = (pathlib.Path(nixl.hicache.__file__).parent / "README.md").read_text()
    for section in SCHEMA:
        assert schema.schema_table(section) in readme, section
