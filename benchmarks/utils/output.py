"""What a run leaves behind: a table, JSON or CSV on standard output, lines in a file, a report."""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import pathlib
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from . import machine
from .errors import Refused
from .metrics import Result, as_row, quantiles, report

# Options that say how a run is shown, not what it did.
_SHOWING = {
    "format",
    "json_lines",
    "report",
    "compare",
    "label",
    "no_progress",
    "default_iterations",
}
# Never written down.
_SECRET = ("secret", "password", "token", "access_key", "auth_key")


def records(
    options: argparse.Namespace, head: Mapping[str, str], results: Sequence[Result]
) -> list[dict[str, Any]]:
    """One for each size; everything that tells what the figures are worth stands in each."""
    program = pathlib.Path(sys.argv[0]).resolve()
    common = {
        "schema": 1,
        "run": uuid.uuid4().hex[:12],
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "benchmark": f"{program.parent.name}/{program.stem}",
        "label": options.label,
        "machine": machine.record(),
        "versions": machine.versions(),
        "parameters": _parameters(options),
        "environment": machine.environment(),
        "head": dict(head),
    }
    return [
        common | {"result": _rounded(as_row(result) | {"quantiles_us": quantiles(result)})}
        for result in results
    ]


def _rounded(value: Any) -> Any:
    """Floats to six digits: more of them mean nothing here."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def _parameters(options: argparse.Namespace) -> dict[str, Any]:
    def plain(name: str, value: Any) -> Any:
        if value and any(word in name for word in _SECRET):
            return "(hidden)"
        return value if isinstance(value, (bool, int, float, str, list, tuple)) else str(value)

    return {
        name: plain(name, value)
        for name, value in sorted(vars(options).items())
        if name not in _SHOWING and value is not None
    }


def show(
    options: argparse.Namespace | None, head: Mapping[str, str], results: Sequence[Result]
) -> None:
    form = getattr(options, "format", "table")
    rows = [as_row(result) for result in results]
    lines = records(options, head, results) if options is not None else []
    if form == "json":
        print(json.dumps({"head": dict(head), "results": rows}, indent=2, allow_nan=False))
    elif form == "jsonl":
        print("\n".join(_line(one) for one in lines))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        print(report(head, list(results)))
    sys.stdout.flush()
    if options is None:
        return
    if options.json_lines:
        append(options.json_lines, lines)
    if options.report:
        from .report import write_report

        earlier = [one for path in options.compare for one in load(path)]
        write_report(options.report, [*earlier, *lines])
        print(f"report: {options.report}", file=sys.stderr)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def append(path: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """In one write, so that runs that end together do not mix their lines."""
    data = "".join(_line(one) + "\n" for one in lines).encode()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb", buffering=0) as file:
        file.write(data)


def load(path: str) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; Refused names the line that is none."""
    found = []
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise Refused(f"{path}: line {number} is no JSON: {error}") from error
        if not isinstance(record, dict) or record.get("schema") != 1:
            raise Refused(f"{path}: line {number} is no record of a benchmark (schema 1)")
        if not isinstance(record.get("result"), dict) or "size" not in record["result"]:
            raise Refused(f"{path}: line {number} holds no result with a size")
        found.append(record)
    return found


def check_paths(options: argparse.Namespace | None) -> None:
    """Refuses what could only fail after the measuring."""
    if options is None:
        return
    for path in options.compare:
        load(path)
    for path in (options.json_lines, options.report):
        folder = pathlib.Path(path or ".").resolve().parent
        if not folder.is_dir():
            raise Refused(f"{path}: there is no folder {folder}")
