"""Configuration of HiCache: the schema of every key, reading it from a file (TOML, JSON, YAML), an
inline string or a dictionary, and checking it. Values; no thread rule."""

from __future__ import annotations

import ast
import difflib
import json
import logging
import os
import pathlib
import re
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("nixl.hicache")

ENV_DIR = "SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR"
ENV_PLUGIN = "SGLANG_HICACHE_NIXL_BACKEND_PLUGIN_TYPE"
ENV_PLUGIN_OLD = "SGLANG_HICACHE_NIXL_BACKEND_PLUGIN"
ENV_DIRECT = "SGLANG_HICACHE_NIXL_USE_DIRECT_IO"

#: Automatic selection takes the first of these that is usable.
PRIORITY = ["3FS", "POSIX", "GDS_MT", "GDS", "OBJ"]
OBJECT_PLUGINS = ["OBJ"]


class ConfigError(ValueError):
    """A value of a wrong type or out of range; the text names file, line, key and cause."""


@dataclass(frozen=True)
class Key:
    """One configuration key: its type as the table shows it, default and meaning."""

    kind: str  # string, boolean, boolstring, integer, number, size, list, choice
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


_ACTIVE = Key("boolean", None, "Whether this plugin may be selected. Absent: it may.")

SCHEMA: dict[str, dict[str, Key]] = {
    "": {
        "use_direct_io": Key("boolean", False, "Open files with O_DIRECT (no page cache)."),
        "l3_cleaner_enabled": Key("boolean", True, "Accepted; `max_bytes` takes its place."),
        "l3_cleaner_high_watermark": Key("number", 80.0, "Accepted; see `max_bytes`.", (), 0, 100),
        "l3_cleaner_low_watermark": Key("number", 70.0, "Accepted; see `max_bytes`.", (), 0, 100),
    },
    "hicache": {
        "layout": Key(
            "choice",
            "auto",
            "`packed`: many blocks in one segment file; `files`: one file (or object) a key, which "
            "other connectors can read; `auto`: packed for blocks below 1 MiB, and for all with "
            "a cap.",
            ("auto", "packed", "files"),
        ),
        "verify": Key(
            "choice",
            "auto",
            "CRC32C check of what was read; `auto`: all but files of 1 MiB and more.",
            ("auto", "true", "false"),
        ),
        "max_bytes": Key(
            "size",
            0,
            "Cap on stored payload; above it the least recently used blocks go. 0: no cap. "
            "Kept in the packed layout.",
        ),
        "storage_dirs": Key(
            "list", [], "Directories that share the keys by a stable hash. Empty: the default one."
        ),
        "segment_bytes": Key(
            "size", 256 << 20, "Size of a segment file of the packed layout.", (), 1 << 16, 1 << 40
        ),
        "file_io": Key(
            "choice",
            "auto",
            "How payload reaches local files: `auto`: over POSIX the store writes and reads them "
            "itself, many blocks a system call, unless `plugin.posix` sets a mode; `backend`: "
            "always by the backend's transfers.",
            ("auto", "backend"),
        ),
        "durability": Key(
            "choice",
            "process",
            "What a stored block survives: `process` the end of the process, `disk` of the machine "
            "(fdatasync first).",
            ("process", "disk"),
        ),
        "compact_dead_fraction": Key(
            "number", 0.5, "A segment with more dead bytes than this is compacted.", (), 0.01, 1
        ),
        "timeout": Key("number", 0, "Seconds a transfer may take; 0: no limit.", (), 0, 86400),
    },
    "plugin.posix": {
        "use_uring": Key("boolstring", "false", "io_uring."),
        "use_posix_aio": Key("boolstring", "false", "POSIX AIO."),
        "use_aio": Key("boolstring", "false", "Linux AIO."),
        "active": _ACTIVE,
    },
    "plugin.gds": {
        "batch_pool_size": Key("integer", 128, "Requests kept in the pool.", (), 1, 1 << 20),
        "batch_limit": Key("integer", 128, "Requests of one batch at most.", (), 1, 1 << 20),
        "max_request_size": Key(
            "integer", 16777216, "Bytes of one request at most.", (), 4096, 1 << 40
        ),
        "active": _ACTIVE,
    },
    "plugin.gds_mt": {
        "thread_count": Key("integer", 4, "Worker threads that submit requests.", (), 1, 1024),
        "active": _ACTIVE,
    },
    "plugin.3fs": {
        "mount_point": Key("string", None, "Mount point of the 3FS file system."),
        "mem_config": Key(
            "choice",
            "dram",
            "`dram`: buffers; `dram_zc`: zero copy; `auto`: by platform.",
            ("dram", "dram_zc", "auto"),
        ),
        "iopool_size": Key("integer", 64, "Size of the I/O pool.", (), 64, 1 << 20),
        "active": _ACTIVE,
    },
    "plugin.obj": {
        "num_threads": Key("integer", 4, "Client worker threads.", (), 1, 1024),
        "endpoint_override": Key("string", "", "Endpoint URL of a server that is not AWS."),
        "scheme": Key("choice", "http", "`http` or `https`.", ("http", "https")),
        "region": Key("string", "", "Region."),
        "req_checksum": Key(
            "choice",
            "required",
            "`required`: always send a checksum; `supported`: where the server knows it.",
            ("required", "supported"),
        ),
        "ca_bundle": Key("string", "", "CA bundle file."),
        "access_key": Key("string", "", "Access key."),
        "secrete_key": Key("string", "", "Secret key (the established spelling)."),
        "secret_key": Key("string", "", "Secret key."),
        "session_token": Key("string", "", "Session token."),
        "use_virtual_addressing": Key("boolstring", "true", "Bucket in the host name."),
        "bucket": Key("string", "", "Bucket; else AWS_DEFAULT_BUCKET."),
        "crtMinLimit": Key("integer", None, "Accepted for other builds.", (), 0, 1 << 50),
        "throughput_target_gbps": Key("integer", None, "Accepted for other builds.", (), 1, 10000),
        "active": _ACTIVE,
    },
}

#: Keys that SGLang itself reads from the same dictionary.
FOREIGN = {
    "backend_name", "module_path", "class_name", "interface_v1", "prefetch_threshold",
    "prefetch_timeout_base", "prefetch_timeout_per_ki_token", "hicache_storage_pass_prefix_keys",
    "tp_lcm_size", "enable_metadata_cache", "metadata_ttl", "file_storage_path",
}  # fmt: skip

_TRUE = {"true", "1", "yes", "y", "on", "enable"}
_FALSE = {"false", "0", "no", "n", "off", "disable"}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}  # fmt: skip


def plugin_name(section: str) -> str:
    """The canonical name of a plugin: "3fs" and "hf3fs" are "3FS"."""
    name = section.upper()
    return "3FS" if name == "HF3FS" else name


def parse_size(value: Any) -> int:
    """An integer number of bytes, also as "64 GiB" or "10g"."""
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(value).lower())
    if not match or match[2] == "i":
        raise ValueError(value)
    return int(float(match[1]) * _UNITS[match[2]])


def truth(value: Any) -> bool | None:
    """What a word for yes or no says, in any case; None for any other."""
    text = str(value).strip().lower()
    return text in _TRUE if text in _TRUE or text in _FALSE else None


def to_bool(value: Any) -> bool:
    said = truth(value)
    if said is None:
        raise ValueError(value)
    return said


def _convert(key: Key, value: Any) -> Any:
    if key.kind == "boolean":
        return to_bool(value)
    if key.kind == "boolstring":
        return "true" if to_bool(value) else "false"
    if key.kind == "size":
        return parse_size(value)
    if key.kind == "integer":
        if isinstance(value, (bool, float)):
            raise ValueError(value)
        return int(value)
    if key.kind == "number":
        if isinstance(value, bool):
            raise ValueError(value)
        return float(value)
    if key.kind == "list":
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
            raise ValueError(value)
        return [item.strip() for item in items if item.strip()]
    if key.kind == "choice":
        text = str(value).strip().lower() if isinstance(value, (bool, str)) else ""
        if "true" in key.choices and truth(text) is not None:
            text = "true" if truth(text) else "false"
        if text not in key.choices:
            raise ValueError(value)
        return text
    if not isinstance(value, str):
        raise ValueError(value)
    return value


_EXPECTED = {
    "boolean": "true or false",
    "boolstring": '"true" or "false"',
    "size": "a number of bytes, such as 1073741824 or \"1 GiB\"",
    "integer": "an integer",
    "number": "a number",
    "list": "a list of strings",
    "string": "a string",
}  # fmt: skip


@dataclass
class Config:
    """A checked configuration: `plugins` by canonical name, `hicache`, and what stood on top."""

    plugins: dict[str, dict[str, Any]] = field(default_factory=dict)
    hicache: dict[str, Any] = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    flat: dict[str, Any] = field(default_factory=dict)
    source: str = "configuration"

    def get(self, key: str) -> Any:
        """A key of the [hicache] section, or its default."""
        return self.hicache.get(key, SCHEMA["hicache"][key].default)

    @property
    def direct(self) -> bool:
        if "use_direct_io" in self.top:
            return self.top["use_direct_io"]
        text = os.environ.get(ENV_DIRECT, "")
        return to_bool(text) if text else False


def _toml_line(text: str, path: list[str]) -> int | None:
    """The line of a key or section of a TOML text, also of a dotted key or in an inline table."""
    prefix: list[str] = []
    for number, line in enumerate(text.lower().splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]=]+?)\s*\]", line)
        names = header or re.match(r"\s*([\w.\-\"']+)\s*=", line)
        if not names:
            continue
        here = [name.strip(" \"'") for name in names[1].split(".")]
        if header:
            prefix = here
        else:
            here = prefix + here
        inside = not header and path[: len(here)] == here and path[-1] in line[names.end() :]
        if here == path or inside:
            return number
    return None


def _nested_line(text: str, path: list[str]) -> int | None:
    """The line of a key or section of a JSON or YAML text: each name behind the one around it."""
    at = 0
    for name in path:
        found = re.compile(rf"(?<![\w.-]){re.escape(name)}[\"']?\s*:").search(text.lower(), at)
        if not found:
            return None
        at = found.end()
    return text.count("\n", 0, at) + 1


class _Reader:
    """Checks a raw dictionary against the schema; knows the text it came from for line numbers."""

    def __init__(self, source: str, text: str = ""):
        self.source = source
        self.text = text

    def where(self, section: str, key: str) -> str:
        """The source and, where it can be found, the line of a key, or of a section."""
        path = [name for name in [*section.lower().split("."), key.lower()] if name]
        if not self.text:
            return self.source
        find = _toml_line if self.source.lower().endswith(".toml") else _nested_line
        number = find(self.text, path) or find(self.text, path[-1:])
        return f"{self.source}, line {number}" if number else self.source

    def warn_unknown(self, what: str, name: str, valid: list[str], place: str) -> None:
        by_lower = {known.lower(): known for known in valid}
        near = difflib.get_close_matches(name.lower(), by_lower, 1, 0.5)
        hint = f'; did you mean "{by_lower[near[0]]}"?' if near else ""
        hint = hint or f"; valid: {', '.join(sorted(valid))}"
        logger.warning('%s: unknown %s "%s"%s', place, what, name, hint)

    def value(self, section: str, name: str, key: Key, value: Any, written: str = "") -> Any:
        label = f"{section}.{name}" if section else name
        place = self.where(written or section, name)
        try:
            out = _convert(key, value)
        except (ValueError, TypeError):
            expected = _EXPECTED.get(key.kind) or f"one of {', '.join(key.choices)}"
            raise ConfigError(f"{place}: {label} = {value!r}: expected {expected}") from None
        if key.low is not None and out != key.default and not key.low <= out <= key.high:
            raise ConfigError(f"{place}: {label} = {value!r}: out of range [{key.low}, {key.high}]")
        return out

    def section(self, name: str, values: Any, written: str = "") -> dict[str, Any]:
        """Checks a section; `written` is its name in the text, where that is another one."""
        written = written or name
        if not isinstance(values, dict):
            raise ConfigError(f"{self.where(written, '')}: {name} = {values!r}: expected a section")
        out = {}
        for key, value in values.items():
            if key in SCHEMA[name]:
                out[key] = self.value(name, key, SCHEMA[name][key], value, written)
            else:
                self.warn_unknown("key", key, list(SCHEMA[name]), self.where(written, key))
                out[key] = value
        return out

    def read(self, raw: dict[str, Any]) -> Config:
        out = Config(source=self.source)
        structured = "plugin" in raw or "hicache" in raw
        for name, value in raw.items():
            if name == "plugin":
                self.plugins(value, out)
            elif name == "hicache":
                out.hicache = {
                    k: v for k, v in self.section(name, value).items() if k in SCHEMA[name]
                }
            elif name in SCHEMA[""]:
                out.top[name] = self.value("", name, SCHEMA[""][name], value)
            elif name in FOREIGN:
                continue
            elif structured:
                valid = ["plugin", "hicache", *SCHEMA[""]]
                self.warn_unknown(
                    "section" if isinstance(value, dict) else "key", name, valid,
                    self.where("", name),
                )  # fmt: skip
            elif name in SCHEMA["hicache"]:
                out.hicache[name] = self.value("hicache", name, SCHEMA["hicache"][name], value)
            else:
                out.flat[name] = value
        if not structured and not out.flat and not out.hicache:
            return out
        self.check_flat(out)
        return out

    def plugins(self, value: Any, out: Config) -> None:
        if not isinstance(value, dict):
            place = self.where("", "plugin")
            raise ConfigError(f"{place}: plugin = {value!r}: expected a section")
        valid = [name[7:] for name in SCHEMA if name.startswith("plugin.")]
        for name, keys in value.items():
            lower = plugin_name(name).lower()
            if lower in valid:
                section = self.section(f"plugin.{lower}", keys, f"plugin.{name}")
                out.plugins[plugin_name(name)] = section
            else:
                place = self.where(f"plugin.{name}", "")
                self.warn_unknown(
                    "section", f"plugin.{name}", [f"plugin.{v}" for v in valid], place
                )
                if isinstance(keys, dict):
                    out.plugins[plugin_name(name)] = dict(keys)

    def check_flat(self, out: Config) -> None:
        """Flat keys belong to whichever plugin is chosen; a key of no plugin is a warning."""
        known = {k: v for n, s in SCHEMA.items() if n.startswith("plugin.") for k, v in s.items()}
        for name, value in list(out.flat.items()):
            if name in known:
                out.flat[name] = self.value("", name, known[name], value)
            else:
                self.warn_unknown("key", name, [*known, *SCHEMA["hicache"]], self.where("", name))


def load(source: Any) -> Config:
    """Reads a configuration: None, a dictionary, "@file" or an inline JSON-style string."""
    if source is None or source == "":
        return Config()
    if isinstance(source, Config):
        return source
    if isinstance(source, dict):
        return _Reader("configuration").read(source)
    if not isinstance(source, str):
        raise ConfigError(f"configuration of type {type(source).__name__}: expected str or dict")
    if source.startswith("@"):
        return load_file(source[1:])
    return _Reader("inline configuration").read(_parse_inline(source))


def _parse_inline(text: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as json_error:
        try:
            raw = ast.literal_eval(text)  # the guide's single-quoted form
        except (ValueError, SyntaxError):
            raise ConfigError(f"inline configuration: {json_error}: {text!r}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"inline configuration: expected {{key: value, …}}, got {text!r}")
    return raw


def load_file(path: str | os.PathLike[str]) -> Config:
    """Reads a TOML, JSON or YAML file, told apart by its ending."""
    place = os.fspath(path)
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}") from error
    ending = pathlib.Path(path).suffix.lower()
    try:
        if ending == ".toml":
            raw = _toml(text)
        elif ending == ".json":
            raw = json.loads(text)
        elif ending in (".yaml", ".yml"):
            raw = _yaml(text)
        else:
            raise ConfigError(f"{place}: ending {ending!r}: expected .toml, .json, .yaml or .yml")
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{place}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{place}: expected sections and keys at the top")
    return _Reader(place, text).read(raw)


def _toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib
        except ImportError:
            raise ConfigError(
                "TOML needs Python 3.11 or the package tomli; JSON works as well"
            ) from None
    return tomllib.loads(text)


def _yaml(text: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise ConfigError("YAML needs the package pyyaml; TOML and JSON need nothing") from None
    return yaml.safe_load(text) or {}


def storage_dirs(config: Config, fallback: str) -> list[str]:
    """Where blocks are stored: environment, then configuration, then `fallback`."""
    raw = os.environ.get(ENV_DIR) or config.get("storage_dirs") or fallback
    paths = raw.split(",") if isinstance(raw, str) else list(raw)
    out: dict[str, str] = {}
    for path in (p.strip() for p in paths):
        if not path:
            continue
        real = os.path.realpath(path)
        if real in out:
            raise ConfigError(f"storage directory {path!r} is given twice (same as {out[real]!r})")
        out[real] = path
    if not out:
        raise ConfigError(f"no storage directory in {raw!r}")
    return list(out.values())


def schema_table(section: str) -> str:
    """The Markdown table of a section, for the README."""
    rows = ["| Key | Type | Default | Description |", "| --- | --- | --- | --- |"]
    for name, key in SCHEMA[section].items():
        default = "*none*" if key.default is None else f"`{json.dumps(key.default)}`"
        kind = {"boolstring": "string", "choice": "string", "size": "integer or string"}.get(
            key.kind, key.kind
        )
        limits = f" Range [{key.low}, {key.high}]." if key.low is not None else ""
        rows.append(f"| `{name}` | {kind} | {default} | {key.help}{limits} |")
    return "\n".join(rows)
