"""The report: one page that holds its plots, tables and records, for a phone and without a network.

python benchmarks/utils/report.py runs.jsonl other.jsonl --report out.html

Programs write it with --report. Runs that are shown beside each other may be of any program; the
first is what the others are compared with.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

if __name__ == "__main__":  # as a program: utils is a package of the folder above
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    __package__ = "utils"

from .config import size_text
from .errors import Refused
from .metrics import EXTRA, bandwidth_text, percent_text
from .page import STYLE
from .plots import Axis, Series, line_plot, swatch

_MOST_SIZES = 6  # of which the distribution is drawn
_DRAWN = (50, 75, 90, 95, 99, 99.9, 100)


class Run:
    """The records of one run, by size."""

    def __init__(self, records: Sequence[Mapping[str, Any]], colour: int) -> None:
        self.first, self.colour = records[0], colour
        self.rows = {one["result"]["size"]: one["result"] for one in records}
        self.sizes = sorted(self.rows)
        head = self.first.get("head", {})
        about = " ".join(
            str(head[key]) for key in ("Backend", "Pattern", "Operation") if key in head
        )
        self.name = str(self.first.get("label") or about or self.first.get("benchmark", "run"))

    def points(self, key: str) -> list[tuple[float, float]]:
        found = [(size, self.rows[size].get(key)) for size in self.sizes]
        return [(size, value) for size, value in found if isinstance(value, (int, float))]

    def series(self, key: str, band: tuple[str, str] | None = None) -> Series:
        between = []
        if band is not None:
            low, high = dict(self.points(band[0])), dict(self.points(band[1]))
            between = [(size, low[size], high[size]) for size in low if size in high]
        return Series(self.name, self.points(key), self.colour, between)


def runs_of(records: Sequence[Mapping[str, Any]]) -> list[Run]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in records:
        groups.setdefault(str(one.get("run")), []).append(one)
    runs = [Run(group, colour) for colour, group in enumerate(groups.values())]
    for run in runs:  # the same name twice helps nobody
        twins = [one for one in runs if one.name == run.name]
        if len(twins) > 1:
            for index, twin in enumerate(twins, 1):
                twin.name = f"{twin.name} ({index})"
    return runs


def time_text(us: float) -> str:
    for limit, factor, unit in ((1e3, 1, "μs"), (1e6, 1e3, "ms"), (math.inf, 1e6, "s")):
        if us < limit * 0.9995:
            return f"{us / factor:.3g} {unit}"
    return f"{us} μs"


def _short_size(size: float) -> str:
    return size_text(round(size)).replace(" ", "\u2009")


def _size_axis(runs: Sequence[Run]) -> Axis:
    sizes = sorted({size for run in runs for size in run.sizes})
    return Axis("buffer size", _short_size, log=True, ticks=sizes)


def _spread(series: Sequence[Series]) -> bool:
    """Whether values differ so much that only a logarithmic axis shows them all."""
    values = [value for one in series for _, value in one.points]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 30


def _rank_place(percent: float) -> float:
    """Where a percentile stands: each nine further right as wide as the one before."""
    return -math.log10(max(0.0001, 1 - percent / 100)) if percent < 100 else 3.6


def _rank_text(percent: float) -> str:
    return "max" if percent == 100 else f"P{percent:g}"


def _rank_axis() -> Axis:
    return Axis("percentile", _rank_text, ticks=_DRAWN, scale=_rank_place)


def _latency_axis() -> Axis:
    return Axis("logarithmic", time_text, log=True)


def _ranks(row: Mapping[str, Any]) -> list[tuple[float, float]]:
    return [(p, us) for p, us in row.get("quantiles_us", []) if p in _DRAWN and us > 0]


def _distribution_plots(runs: Sequence[Run]) -> list[str]:
    """Of one run a line for each size; of several a plot for each size they share."""
    if len(runs) == 1:
        sizes = _chosen(runs[0].sizes)
        series = [
            Series(size_text(size), _ranks(runs[0].rows[size]), index)
            for index, size in enumerate(sizes)
        ]
        legend = "".join(f"<li>{swatch(i)}{size_text(s)}</li>" for i, s in enumerate(sizes))
        plot = line_plot("Latency percentiles", _rank_axis(), _latency_axis(), series)
        return [plot.replace("</figcaption>", f"</figcaption><ul class=legend>{legend}</ul>", 1)]
    sizes = sorted(set.intersection(*(set(run.sizes) for run in runs)))
    return [
        line_plot(
            f"Latency percentiles, {size_text(size)}",
            _rank_axis(),
            _latency_axis(),
            [Series(run.name, _ranks(run.rows[size]), run.colour) for run in runs],
        )
        for size in _chosen(sizes)
    ]


def _chosen(sizes: Sequence[int]) -> list[int]:
    """A few of them, evenly, with the smallest and the largest."""
    if len(sizes) <= _MOST_SIZES:
        return list(sizes)
    last = len(sizes) - 1
    return [sizes[round(index * last / (_MOST_SIZES - 1))] for index in range(_MOST_SIZES)]


def _plots(runs: Sequence[Run]) -> list[str]:
    sizes = _size_axis(runs)
    few = len(runs) <= 3
    bandwidth = [run.series("bandwidth_gb_s") for run in runs]
    latency = [run.series("p50_us", ("p50_us", "p99_us") if few else None) for run in runs]
    per_gb = [run.series("cpu_s_per_gb") for run in runs]
    log = _spread(bandwidth)
    found = [
        line_plot("Bandwidth", sizes, Axis("logarithmic" if log else "", bandwidth_text, log),
                  bandwidth),
        line_plot("Latency, P50" + (" to P99" if few else ""), sizes, _latency_axis(),
                  latency),
        line_plot("Processor time for 1 GB", sizes,
                  Axis("logarithmic" if _spread(per_gb) else "",
                       lambda s: time_text(s * 1e6) if s else "0", _spread(per_gb)), per_gb),
        line_plot("Processor use", sizes, Axis("100 % is one core", percent_text),
                  [run.series("cpu_percent") for run in runs]),
        line_plot("GPU use", sizes, Axis("", percent_text),
                  [run.series("gpu_percent") for run in runs]),
        *_distribution_plots(runs),
    ]  # fmt: skip
    return [plot for plot in found if plot]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{escape(one)}</th>" for one in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(one)}</td>" for one in row) + "</tr>" for row in rows
    )
    return (f'<div class="wide"><table><thead><tr>{cells}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")  # fmt: skip


def _results(run: Run) -> str:
    times = [("Mean", "mean_us"), ("P50", "p50_us"), ("P95", "p95_us"), ("P99", "p99_us"),
             ("P99.9", "p999_us"), ("Max", "max_us")]  # fmt: skip
    extra = [name for name in EXTRA if any(name in row for row in run.rows.values())]
    gpu = any(row.get("gpu_percent") is not None for row in run.rows.values())
    head = ["Buffer", "Bandwidth", *(name for name, _ in times), "IOPS", "CPU", "CPU s/GB"]
    head += ["GPU"] * gpu + [EXTRA[name] for name in extra] + ["Data", "Iterations"]
    rows = []
    for size in run.sizes:
        row = run.rows[size]
        cells = [size_text(size), bandwidth_text(row["bandwidth_gb_s"])]
        cells += [time_text(row[key]) for _, key in times]
        cells += [f"{row['operations_per_s']:,.0f}", percent_text(row["cpu_percent"])]
        cells += [f"{row['cpu_s_per_gb']:.3f}"] + [percent_text(row.get("gpu_percent"))] * gpu
        cells += [f"{row[name]:.3g}" if name in row else "-" for name in extra]
        cells += [{None: "-", True: "same", False: "DIFFERS"}[row.get("verified")]]
        rows.append([*cells, f"{row['iterations']:,}"])
    return _table(head, rows)


def _comparison(runs: Sequence[Run]) -> str:
    base = runs[0]
    rows = []
    for run in runs[1:]:
        for size in run.sizes:
            if size not in base.rows:
                continue
            ours, theirs = run.rows[size], base.rows[size]
            pairs = [(ours[key], theirs[key])
                     for key in ("bandwidth_gb_s", "p50_us", "p99_us", "cpu_s_per_gb")]  # fmt: skip
            ratios = [f"× {a / b:.2f}" if b else "-" for a, b in pairs]
            rows.append([run.name, size_text(size), *ratios])
    if not rows:
        return ""
    head = ["Run", "Buffer", "Bandwidth", "Median latency", "P99 latency", "CPU s/GB"]
    return (f"<section><h2>Compared with {escape(base.name)}</h2><p>More is better for bandwidth, "
            f"less for the others.</p>{_table(head, rows)}</section>")  # fmt: skip


def _facts(run: Run) -> str:
    """What the figures are worth: where and with what they were made."""
    parts = []
    for title in ("head", "machine", "versions", "parameters", "environment"):
        values = run.first.get(title) or {}
        if not isinstance(values, Mapping) or not values:
            continue
        shown = "".join(
            f"<dt>{escape(str(key))}</dt><dd>{escape(_plain(value))}</dd>"
            for key, value in values.items()
        )
        parts.append(f"<h4>{title}</h4><dl>{shown}</dl>")
    return f"<details><summary>Machine, versions, parameters</summary>{''.join(parts)}</details>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _run_section(run: Run) -> str:
    about = f"{run.first.get('benchmark', '')} · {run.first.get('time', '')}"
    head = f"<h2>{swatch(run.colour)}{escape(run.name)}</h2>"
    quiet = f'<p class="quiet">{escape(about)}</p>'
    return f"<section>{head}{quiet}{_results(run)}{_facts(run)}</section>"


def _legend(runs: Sequence[Run]) -> str:
    items = []
    for run in runs:
        memory = run.first.get("head", {}).get("Memory Type", "")
        host = run.first.get("machine", {}).get("host", "")
        quiet = " · ".join(str(one) for one in (memory, host) if one)
        items.append(f"<li>{swatch(run.colour)}<span>{escape(run.name)} "
                     f'<span class="quiet">{escape(quiet)}</span></span></li>')  # fmt: skip
    return f'<ul class="legend runs">{"".join(items)}</ul>'


def _verdict(runs: Sequence[Run]) -> str:
    states = [row.get("verified") for run in runs for row in run.rows.values()]
    if False in states:
        return '<p class="bad">Bytes differed: see the column Data.</p>'
    if all(state is True for state in states):
        return '<p class="good">Every byte that was compared is right.</p>'
    if True in states:
        return '<p class="quiet">Where bytes were compared, they are right.</p>'
    return '<p class="quiet">Bytes were not compared (--verify_data).</p>'


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The whole page. Refused where there is no record."""
    if not records:
        raise Refused("there is no record to report")
    runs = runs_of(records)
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in records)
    data = base64.b64encode(lines.encode()).decode()
    title = "NIXL benchmarks"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head><body>'
        f"<header><h1>{title}</h1>{_verdict(runs)}{_legend(runs)}</header><main>"
        f'<section class="plots">{"".join(_plots(runs))}</section>'
        f"{_comparison(runs)}{''.join(_run_section(run) for run in runs)}</main>"
        f'<footer><a download="records.jsonl" href="data:application/x-ndjson;base64,{data}">'
        "The records of this page as JSON lines</a></footer></body></html>\n"
    )


def write_report(path: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Whole or not at all: a reader never sees half a page."""
    text = page(records)
    beside = f"{path}.{os.getpid()}.part"
    try:
        pathlib.Path(beside).write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        pathlib.Path(beside).unlink(missing_ok=True)


def main() -> int:
    from .output import load

    parser = argparse.ArgumentParser(description="a page of what --json_lines has written")
    parser.add_argument("files", nargs="+", help="JSON lines; the first run is the yardstick")
    parser.add_argument("--report", required=True, metavar="HTML")
    options = parser.parse_args()
    try:
        write_report(options.report, [one for path in options.files for one in load(path)])
    except (Refused, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    print(f"report: {options.report}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
