"""docs/performance_rows.md: every row that a file of benchmarks/baselines keeps, as a page.

`./dev bench versus` writes it anew after each run; `python benchmarks/versus/page.py` does it from
what is kept. Why a target is not reached is for people to say: not_reached.json has a paragraph for
each row that misses one, and a page without it says so.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BASELINES = ROOT / "benchmarks" / "baselines"
REASONS = HERE / "not_reached.json"
PAGE = ROOT / "docs" / "performance_rows.md"
NO_REASON = "No reason is written down yet."

OPENING = """# Every row of versus, as last measured

Written by `./dev bench versus`, from the files of `benchmarks/baselines/`; do not edit it. How the
rows are measured, and the story behind the figures, is in [performance.md](performance.md).

Medians, with the least and the third quartile in brackets (of rates: the first quartile and the
most). A ratio is the median of the rounds' own ratios, ours over the other. Only the columns of one
row can be compared: rows are of different days. `R` is the number of rounds, and load the load
average of one minute when the row began: above the number of processors, other work took part.
"""
HEAD = "| what | ours | published 1.5.1 | ratio | limit | ratio | target | reached |"


def number(value: float) -> str:
    if value != value:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def with_spread(median: float, low: float, high: float) -> str:
    if median == low == high:
        return number(median)
    return f"{number(median)} ({number(low)}-{number(high)})"


def shown(entry: dict[str, Any] | None) -> str:
    return with_spread(entry["median"], *entry["spread"]) if entry else ""


def ratio(entry: dict[str, Any] | None) -> str:
    value = (entry or {}).get("ours_over_it")
    return "" if value is None or value != value else number(value)


def verdict(metric: dict[str, Any]) -> str:
    words = {True: "yes", False: "NO", None: "not told"}
    return "; ".join(words[target["reached"]] for target in metric["targets"])


def line(name: str, metric: dict[str, Any]) -> str:
    peer, limit, mooncake = (metric.get(key) for key in ("published", "limit", "mooncake"))
    targets = "; ".join(target["target"] for target in metric["targets"])
    beside = [shown(limit)] if limit else []
    beside += [f"Mooncake: {shown(mooncake)}"] if mooncake else []
    ratios = [ratio(limit)] if limit else []
    ratios += [ratio(mooncake)] if mooncake else []
    cells = [f"{name}, {metric['unit']}", shown(metric.get("ours")), shown(peer), ratio(peer)]
    cells += ["; ".join(beside), "; ".join(ratios), targets.replace("peer", "published")]
    return "| " + " | ".join([*cells, verdict(metric)]) + " |"


def missed(row: dict[str, Any]) -> list[str]:
    """The metrics of a row that miss a target."""
    return [
        name
        for name, metric in row["metrics"].items()
        if any(target["reached"] is False for target in metric["targets"])
    ]


def section(name: str, row: dict[str, Any], reasons: dict[str, str]) -> list[str]:
    rounds = max(metric["rounds"] for metric in row["metrics"].values())
    load = f", load {row['load']:.1f}" if "load" in row else ""
    out = [f"### {name}", f"{row['title']}. {row['date']}, R = {rounds}{load}.", ""]
    out += [HEAD, "|" + " --- |" * HEAD.count(" | ") + " --- |"]
    out += [line(metric, figures) for metric, figures in row["metrics"].items()]
    if lacking := missed(row):
        out += ["", f"Not reached ({'; '.join(lacking)}): {reasons.get(name, NO_REASON)}"]
    return [*out, ""]


def counts(rows: dict[str, Any]) -> tuple[int, int, int]:
    """Targets that are reached, that are not, and of which it could not be told."""
    metrics = [metric for row in rows.values() for metric in row["metrics"].values()]
    states = [target["reached"] for metric in metrics for target in metric["targets"]]
    return states.count(True), states.count(False), states.count(None)


def machine_line(machine: dict[str, Any]) -> str:
    gpus = machine.get("gpus") or []
    return (
        f"{machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}, "
        f"Linux {machine['kernel']}" + "".join(f", {gpu}" for gpu in gpus)
    )


def page(kept: dict[str, dict[str, Any]], reasons: dict[str, str]) -> str:
    """`kept` by machine."""
    out = [OPENING]
    for _, record in sorted(kept.items()):
        machine, rows = record["machine"], record["rows"]
        told = "{} targets reached, {} not, {} could not be told.".format(*counts(rows))
        out += [f"## {machine['processor']}", f"{machine_line(machine)}. {told}", ""]
        for name in sorted(rows):
            out += section(name, rows[name], reasons)
    return "\n".join(out).rstrip() + "\n"


def baselines() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in BASELINES.glob("*.json")}


def unexplained(kept: dict[str, dict[str, Any]], reasons: dict[str, str]) -> list[str]:
    """Rows that miss a target, and nobody has written why."""
    every = {name: row for record in kept.values() for name, row in record["rows"].items()}
    return sorted(name for name, row in every.items() if missed(row) and not reasons.get(name))


def main() -> int:
    kept, reasons = baselines(), json.loads(REASONS.read_text())
    PAGE.write_text(page(kept, reasons))
    print(f"written: {PAGE.relative_to(ROOT)}")
    if lacking := unexplained(kept, reasons):
        print(f"{REASONS.relative_to(ROOT)} says nothing about: {', '.join(lacking)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
