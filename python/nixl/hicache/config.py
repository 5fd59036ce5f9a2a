"""Configuration of HiCache: reading it from a file (TOML, JSON, YAML), an inline string or a
dictionary, and checking it against the schema. Values; no thread rule."""

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

from .schema import EXPECTED, FOREIGN, SCHEMA, ConfigError, Key, convert, parse_size, to_bool, truth

logger = logging.getLogger("nixl.hicache")

ENV_DIR = "SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR"
ENV_PLUGIN = "SGLANG_HICACHE_NIXL_BACKEND_PLUGIN_TYPE"
ENV_PLUGIN_OLD = "SGLANG_HICACHE_NIXL_BACKEND_PLUGIN"
ENV_DIRECT = "SGLANG_HICACHE_NIXL_USE_DIRECT_IO"

#: Automatic selection takes the first of these that is usable.
PRIORITY = ["3FS", "POSIX", "GDS_MT", "GDS", "OBJ"]
OBJECT_PLUGINS = ["OBJ"]

__all__ = ["SCHEMA", "Config", "ConfigError", "load", "parse_size", "storage_dirs", "truth"]


def plugin_name(section: str) -> str:
    """The canonical name of a plugin: "3fs" and "hf3fs" are "3FS"."""
    name = section.upper()
    return "3FS" if name == "HF3FS" else name


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

    def of_top(self, key: str) -> Any:
        """A key that stands above all sections, or its default."""
        return self.top.get(key, SCHEMA[""][key].default)

    @property
    def direct(self) -> bool:
        if "use_direct_io" in self.top:
            return self.top["use_direct_io"]
        text = os.environ.get(ENV_DIRECT, "").strip()
        try:
            return to_bool(text) if text else False
        except ValueError:
            raise ConfigError(f"{ENV_DIRECT} = {text!r}: expected true or false") from None


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


def _shown(value: Any) -> str:
    """A value for a message; long ones are cut."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply; an integer of thousands of digits
        return f"<{type(value).__name__}>"
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"


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

    def warn_unknown(self, what: str, name: str, valid: list[str], origin: str) -> None:
        by_lower = {known.lower(): known for known in valid}
        near = difflib.get_close_matches(name.lower(), by_lower, 1, 0.5)
        hint = f'; did you mean "{by_lower[near[0]]}"?' if near else ""
        hint = hint or f"; valid: {', '.join(sorted(valid))}"
        logger.warning('%s: unknown %s "%s"%s', origin, what, name, hint)

    def value(self, section: str, name: str, key: Key, value: Any, written: str = "") -> Any:
        label = f"{section}.{name}" if section else name
        origin = self.where(written or section, name)
        try:
            out = convert(key, value)
        except (ValueError, TypeError, OverflowError):
            expected = EXPECTED.get(key.kind) or f"one of {', '.join(key.choices)}"
            shown = _shown(value)
            raise ConfigError(f"{origin}: {label} = {shown}: expected {expected}") from None
        if key.low is not None and out != key.default and not key.low <= out <= key.high:
            low, high = (f"{n:04o}" if key.kind == "mode" else n for n in (key.low, key.high))
            raise ConfigError(f"{origin}: {label} = {_shown(value)}: out of range [{low}, {high}]")
        return out

    def section(self, name: str, values: Any, written: str = "") -> dict[str, Any]:
        """Checks a section; `written` is its name in the text, where that is another one."""
        written = written or name
        if not isinstance(values, dict):
            origin = self.where(written, "")
            raise ConfigError(f"{origin}: {name} = {_shown(values)}: expected a section")
        self.check_names(values, written)
        out = {}
        for key, value in values.items():
            if key in SCHEMA[name]:
                out[key] = self.value(name, key, SCHEMA[name][key], value, written)
            elif key in SCHEMA[""] and name != "hicache":
                continue  # see misplaced()
            else:
                self.warn_unknown("key", key, list(SCHEMA[name]), self.where(written, key))
                out[key] = value
        return out

    def check_names(self, values: dict[Any, Any], section: str = "") -> None:
        for key in values:
            if not isinstance(key, str):
                inside = f" in {section}" if section else ""
                origin = self.where(section, str(key))
                raise ConfigError(f"{origin}: key {_shown(key)}{inside}: expected a string")

    def read(self, raw: dict[str, Any]) -> Config:
        self.check_names(raw)
        out = Config(source=self.source)
        structured = "plugin" in raw or "hicache" in raw or "runtime" in raw
        for name, value in raw.items():
            if name == "plugin":
                self.plugins(value, out)
            elif name == "hicache":
                out.hicache = {
                    k: v for k, v in self.section(name, value).items() if k in SCHEMA[name]
                }
            elif name == "runtime" and isinstance(value, dict):
                continue  # below: what stands at the top counts more
            elif name in SCHEMA[""]:
                out.top[name] = self.value("", name, SCHEMA[""][name], value)
            elif name in FOREIGN:
                continue
            elif structured:
                valid = ["plugin", "hicache", "runtime", *SCHEMA[""]]
                self.warn_unknown(
                    "section" if isinstance(value, dict) else "key", name, valid,
                    self.where("", name),
                )  # fmt: skip
            elif name in SCHEMA["hicache"]:
                out.hicache[name] = self.value("hicache", name, SCHEMA["hicache"][name], value)
            else:
                out.flat[name] = value
        self.misplaced(raw, out)
        self.check_watermarks(out)
        self.check_flat(out)
        return out

    def misplaced(self, raw: dict[str, Any], out: Config) -> None:
        """Keys of the top that stand in [runtime] or with a plugin: taken as if they stood there;
        what SGLang reads at the top is named, as it does not apply where it is."""
        plugins = raw.get("plugin")
        origins = [("runtime", raw.get("runtime"))]
        origins += [
            (f"plugin.{name}", keys)
            for name, keys in (plugins.items() if isinstance(plugins, dict) else ())
        ]
        for section, keys in origins:
            for name, value in keys.items() if isinstance(keys, dict) else ():
                if name in SCHEMA[""]:
                    checked = self.value(section, name, SCHEMA[""][name], value)
                    out.top.setdefault(name, checked)
                    if section != "runtime":
                        logger.warning(
                            "%s: %s.%s belongs to the top of the configuration; it is taken so",
                            self.where(section, name), section, name,
                        )  # fmt: skip
                elif section == "runtime" and name in FOREIGN:
                    logger.warning(
                        "%s: runtime.%s does not apply: SGLang reads it at the top",
                        self.where(section, name), name,
                    )  # fmt: skip
                elif section == "runtime":
                    self.check_names({name: value}, section)
                    valid = list(SCHEMA[""])
                    self.warn_unknown("key", name, valid, self.where(section, name))

    def check_watermarks(self, out: Config) -> None:
        low, high = "l3_cleaner_low_watermark", "l3_cleaner_high_watermark"
        if out.of_top(low) >= out.of_top(high):
            key = low if low in out.top else high
            raise ConfigError(
                f"{self.where('', key)}: {low} = {out.of_top(low)} must be below "
                f"{high} = {out.of_top(high)}"
            )

    def plugins(self, value: Any, out: Config) -> None:
        if not isinstance(value, dict):
            origin = self.where("", "plugin")
            raise ConfigError(f"{origin}: plugin = {_shown(value)}: expected a section")
        self.check_names(value, "plugin")
        valid = [name[7:] for name in SCHEMA if name.startswith("plugin.")]
        for name, keys in value.items():
            lower = plugin_name(name).lower()
            if lower in valid:
                section = self.section(f"plugin.{lower}", keys, f"plugin.{name}")
                out.plugins[plugin_name(name)] = section
            else:
                origin = self.where(f"plugin.{name}", "")
                self.warn_unknown(
                    "section", f"plugin.{name}", [f"plugin.{v}" for v in valid], origin
                )
                if isinstance(keys, dict):
                    out.plugins[plugin_name(name)] = dict(keys)

    def check_flat(self, out: Config) -> None:
        """Flat keys belong to whichever plugin is chosen; a key of no plugin is a warning."""
        known = {k: v for n, s in SCHEMA.items() if n.startswith("plugin.") for k, v in s.items()}
        for name, value in list(out.flat.items()):
            if name in known:
                out.flat[name] = self.value("", name, known[name], value)
                continue
            section = isinstance(value, dict)
            valid = ["hicache", "plugin", "runtime", *SCHEMA[""]]
            valid = valid if section else [*known, *SCHEMA["hicache"], *valid]
            self.warn_unknown("section" if section else "key", name, valid, self.where("", name))
            if section:
                del out.flat[name]  # no parameter of a backend


def load(source: Any) -> Config:
    """Reads a configuration: None, a dictionary, "@file" or an inline JSON-style string."""
    if source is None or source == "":
        return Config()
    if isinstance(source, Config):
        return source
    if isinstance(source, dict):
        return _Reader("configuration").read(source)
    if isinstance(source, os.PathLike):
        return load_file(source)
    if not isinstance(source, str):
        raise ConfigError(f"configuration of type {type(source).__name__}: expected str or dict")
    if source.startswith("@"):
        return load_file(source[1:])
    return _Reader("inline configuration").read(_parse_inline(source))


def _parse_inline(text: str) -> dict[str, Any]:
    origin = "inline configuration"
    try:
        raw = json.loads(text)
    except RecursionError:
        raise ConfigError(f"{origin}: nested too deeply: {_shown(text)}") from None
    except ValueError as json_error:
        try:
            raw = ast.literal_eval(text)  # the guide's single-quoted form
        except (RecursionError, MemoryError):
            raise ConfigError(f"{origin}: nested too deeply: {_shown(text)}") from None
        except (ValueError, SyntaxError, TypeError):
            raise ConfigError(f"{origin}: {json_error}: {_shown(text)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin}: expected {{key: value, …}}, got {_shown(text)}")
    return raw


def load_file(path: str | os.PathLike[str]) -> Config:
    """Reads a TOML, JSON or YAML file, told apart by its ending."""
    origin = os.fspath(path)
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{origin}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        raise ConfigError(
            f"{origin}, line {before.count(10) + 1}: byte {error.object[error.start]:#04x} is not "
            "UTF-8; save the file as UTF-8"
        ) from None
    except ValueError as error:  # a path with a null byte
        raise ConfigError(f"{origin!r}: {error}") from None
    ending = pathlib.Path(path).suffix.lower()
    try:
        if ending == ".toml":
            raw = _toml(text)
        elif ending == ".json":
            raw = json.loads(text)
        elif ending in (".yaml", ".yml"):
            raw = _yaml(text)
        else:
            raise ConfigError(f"{origin}: ending {ending!r}: expected .toml, .json, .yaml or .yml")
    except ConfigError:
        raise
    except (RecursionError, MemoryError):
        raise ConfigError(f"{origin}: nested too deeply") from None
    except Exception as error:
        raise ConfigError(f"{origin}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin}: expected sections and keys at the top")
    return _Reader(origin, text).read(raw)


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


def storage_dirs(config: Config, fallback: Any) -> list[str]:
    """Where blocks are stored: environment, then configuration, then `fallback`."""
    raw = os.environ.get(ENV_DIR) or config.get("storage_dirs") or fallback
    try:
        paths = convert(SCHEMA["hicache"]["storage_dirs"], raw)
    except (ValueError, TypeError):
        raise ConfigError(
            f"storage directory {_shown(raw)}: expected a path, or a list of paths"
        ) from None
    out: dict[str, str] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in out:
            raise ConfigError(f"storage directory {path!r} is given twice (same as {out[real]!r})")
        out[real] = path
    if not out:
        raise ConfigError(f"no storage directory in {raw!r}")
    return list(out.values())
