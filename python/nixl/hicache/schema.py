"""The schema of HiCache's configuration: every key with its type, default and meaning, and how a
value becomes of that type. Values; no thread rule."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """A value of a wrong type or out of range; the text names file, line, key and cause."""


@dataclass(frozen=True)
class Key:
    """One configuration key: its type as the table shows it, default and meaning."""

    kind: str  # string, boolean, boolstring, integer, number, size, list, mode, choice
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


_ACTIVE = Key("boolean", None, "Whether this plugin may be selected. Absent: it may.")

SCHEMA: dict[str, dict[str, Key]] = {
    "": {
        "use_direct_io": Key("boolean", False, "Open files with O_DIRECT (no page cache)."),
        "l3_cleaner_enabled": Key(
            "boolean",
            None,
            "Keep room on the disks, by the next three. Absent: in SGLang yes, alone no.",
        ),
        "l3_cleaner_high_watermark": Key(
            "number", 80.0, "Percent of a disk in use from which the oldest pages go.", (), 0, 100
        ),
        "l3_cleaner_low_watermark": Key(
            "number", 70.0, "Percent at which that ends; below the high one.", (), 0, 100
        ),
        "l3_cleaner_min_free": Key(
            "size", 0, "Bytes of a disk that stay free, whatever the percentages.", (), 0, 1 << 62
        ),
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
            "Not kept for one object a key.",
            (),
            0,
            1 << 62,
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
            "What a stored block survives: `process` the end of the process, `disk` a power cut "
            "(synced, with the folders that name it, before it counts).",
            ("process", "disk"),
        ),
        "file_mode": Key(
            "mode",
            0o600,
            "Rights of files that are made; folders fit them (`0640` makes folders of `0750`).",
            (),
            0o400,
            0o777,
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
        "profile": Key("string", "", "Profile of the AWS credentials file."),
        "max_connections": Key("integer", 32, "Requests at a time.", (), 1, 4096),
        "part_size": Key("string", "16M", "Bytes of one part of a large write or read."),
        "multipart_threshold": Key("string", "64M", "Writes above it go in parts."),
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


def parse_size(value: Any) -> int:
    """An integer number of bytes, also as "64 GiB" or "10g"."""
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, int):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(value).lower())
    if not match or match[2] == "i" or not isinstance(value, str):
        raise ValueError(value)
    if "." not in match[1]:
        return int(match[1]) * _UNITS[match[2]]
    if _UNITS[match[2]] == 1:
        raise ValueError(value)  # half a byte
    return int(float(match[1]) * _UNITS[match[2]])


def parse_mode(value: Any) -> int:
    """Rights of a file: octal digits as a string, or a number (0o640 in TOML)."""
    if isinstance(value, str):
        if not re.fullmatch(r"\s*(0o?)?[0-7]{3}\s*", value.lower()):
            raise ValueError(value)
        return int(value.lower().replace("o", ""), 8)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(value)
    return value


def truth(value: Any) -> bool | None:
    """What a word for yes or no says, in any case; None for any other."""
    text = str(value).strip().lower()
    return text in _TRUE if text in _TRUE or text in _FALSE else None


def to_bool(value: Any) -> bool:
    said = truth(value)
    if said is None:
        raise ValueError(value)
    return said


def convert(key: Key, value: Any) -> Any:
    if key.kind == "boolean":
        return to_bool(value)
    if key.kind == "boolstring":
        return "true" if to_bool(value) else "false"
    if key.kind == "size":
        return parse_size(value)
    if key.kind == "mode":
        return parse_mode(value)
    if key.kind == "integer":
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise ValueError(value)
        return int(value)
    if key.kind == "number":
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError(value)
        return float(value)
    if key.kind == "list":
        items = value.split(",") if isinstance(value, str) else value
        if isinstance(items, os.PathLike):
            items = [items]
        if not isinstance(items, (list, tuple)):
            raise ValueError(value)
        paths = [os.fspath(item) for item in items]
        if not all(isinstance(path, str) for path in paths):
            raise ValueError(value)
        return [path.strip() for path in paths if path.strip()]
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


EXPECTED = {
    "boolean": "true or false",
    "boolstring": '"true" or "false"',
    "size": "a number of bytes, such as 1073741824 or \"1 GiB\"",
    "integer": "an integer",
    "number": "a number",
    "list": "a list of strings",
    "mode": 'rights as octal digits, such as "0600"',
    "string": "a string",
}  # fmt: skip


def schema_table(section: str) -> str:
    """The Markdown table of a section, for the README."""
    rows = ["| Key | Type | Default | Description |", "| --- | --- | --- | --- |"]
    for name, key in SCHEMA[section].items():
        default = "*none*" if key.default is None else f"`{json.dumps(key.default)}`"
        kind = {
            "boolstring": "string", "choice": "string", "mode": "string",
            "size": "integer or string",
        }.get(key.kind, key.kind)  # fmt: skip
        limits = f" Range [{key.low}, {key.high}]." if key.low is not None else ""
        if key.kind == "mode":
            default, limits = f'`"{key.default:04o}"`', f" Range [{key.low:04o}, {key.high:04o}]."
        rows.append(f"| `{name}` | {kind} | {default} | {key.help}{limits} |")
    return "\n".join(rows)
