"""nixl top: the agents of this user on this host, as they work: rates, peers, lanes, errors, and
the transfers that have been in progress longest.

It shows agents that were created with NIXL_TELEMETRY_ENABLE=yes or capture_telemetry=True.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from . import published

Agent = dict[str, Any]
Table = tuple[str, list[str], list[list[str]]]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nixl top", description=__doc__)
    parser.add_argument("--dir", help="the telemetry directory (default: as the library chooses)")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two looks (1)")
    parser.add_argument("--once", action="store_true", help="one look, after one interval, and end")
    parser.add_argument("--json", action="store_true", help="what agents tell now, as JSON; end")
    parser.add_argument("--agent", default="", help="only agents whose name has this in it")
    parser.add_argument("--rows", type=int, default=20, help="most lines of a table (20)")
    options = parser.parse_args(arguments)
    if not 0 < options.interval <= 3600:
        parser.error("--interval: must be more than 0 and at most 3600 seconds")
    return options


def amount(value: float, unit: str = "B") -> str:
    for prefix in ("", "K", "M", "G", "T"):
        if abs(value) < 1000 or prefix == "T":
            return f"{value:.3g} {prefix}{unit}" if value < 999.5 else f"{value:.0f} {prefix}{unit}"
        value /= 1000
    return ""


def duration(seconds: float) -> str:
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms"), (120, 1, "s")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def percentile(buckets: list[list[Any]], before: list[list[Any]], part: float) -> str:
    """The upper bound of the bucket a percentile lies in, of what came since `before`."""
    old = dict(before)
    new = [(bound, count - old.get(bound, 0)) for bound, count in buckets]
    left = part * sum(count for _, count in new)
    if left <= 0:
        return "-"
    for bound, count in new:
        left -= count
        if left <= 0:
            return "more" if bound is None else "<= " + duration(bound / 1e6)
    return "-"


def key_of(row: Agent) -> tuple[str, str, str, str]:
    return row["backend"], row["lane"], row["peer"], row["operation"]


def plain(text: str) -> str:
    """Names of agents are anything: nothing of them may act on the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def transfer_rows(agent: Agent, before: Agent | None) -> list[tuple[float, list[str]]]:
    elapsed = agent["time"] - before["time"] if before else 0.0
    old = {key_of(row): row for row in before["transfers"]} if before else {}
    rows = []
    for row in agent["transfers"]:
        last = old.get(key_of(row), {})
        bytes_rate = (row["bytes"] - last.get("bytes", 0)) / elapsed if elapsed > 0 else 0.0
        rate = (row["done"] - last.get("done", 0)) / elapsed if elapsed > 0 else 0.0
        errors = ", ".join(
            f"{n} {code.removeprefix('NIXL_ERR_')}" for code, n in row["errors"].items()
        )
        lane = row["backend"] + (f" {row['lane']}" if row["lane"] else "")
        times = row["microseconds"]
        spread = [percentile(times, last.get("microseconds", []), part) for part in (0.5, 0.99)]
        if rate == 0:
            spread = [percentile(times, [], part) for part in (0.5, 0.99)]
        cells = [agent["agent"], row["peer"] or "(storage)", lane, row["operation"]]
        cells += [amount(bytes_rate, "B/s"), amount(rate, "/s"), *spread]
        cells += [str(row["in_progress"]), amount(row["bytes"]), errors or "-"]
        rows.append((bytes_rate + rate, [plain(cell) for cell in cells]))
    return rows


def tables(agents: list[Agent], before: dict[str, Agent], most: int) -> list[Table]:
    """What is shown: agents, what they do with whom, and what takes long."""
    ours = [
        [
            plain(agent["agent"]),
            str(agent["pid"]),
            duration(agent["age"]),
            str(agent["peers"]),
            str(agent["prepared"]),
            amount(sum(memory["bytes"] for memory in agent["registered"].values())),
            str(sum(row["failed"] for row in agent["transfers"])),
        ]
        for agent in agents
    ]
    rows = [row for agent in agents for row in transfer_rows(agent, before.get(agent["id"]))]
    rows.sort(key=lambda row: -row[0])
    slow = sorted(
        ((one["seconds"], agent["agent"], one) for agent in agents for one in agent["pending"]),
        key=lambda entry: -entry[0],
    )
    pending = [
        [
            plain(name),
            plain(one["peer"] or "(storage)"),
            one["backend"] + (f" {one['lane']}" if one["lane"] else ""),
            one["operation"],
            duration(seconds),
            f"{amount(one['bytes_done'])} of {amount(one['bytes'])}",
        ]
        for seconds, name, one in slow
    ]
    shown: list[Table] = [
        ("agents", ["agent", "process", "age", "peers", "prepared", "registered", "failed"], ours),
        (
            "transfers",
            [
                "agent",
                "peer",
                "lane",
                "",
                "rate",
                "transfers",
                "p50",
                "p99",
                "now",
                "all",
                "errors",
            ],
            [row for _, row in rows],
        ),
    ]
    if pending:
        head = ["agent", "peer", "lane", "", "for", "done"]
        shown.append(("in progress longest", head, pending))
    return [(title, head, lines[:most]) for title, head, lines in shown]


def as_text(shown: list[Table]) -> str:
    out = []
    for title, head, lines in shown:
        widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
        out.append(title)
        for line in [head, *lines]:
            out.append(
                "  " + "  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip()
            )
        out.append("")
    return "\n".join(out)


def nothing(folder: object) -> str:
    return (
        f"no agents in {folder}. Agents show themselves when they are created with "
        "NIXL_TELEMETRY_ENABLE=yes or capture_telemetry=True, by the same user."
    )


def watch(options: argparse.Namespace, look: Any) -> int:
    """Looks again and again, on the whole terminal where rich is installed."""
    try:
        from rich.console import Group
        from rich.live import Live
        from rich.table import Table as Shown
        from rich.text import Text
    except ImportError:
        while True:
            sys.stdout.write("\x1b[H\x1b[2J" + look() + "\n")
            sys.stdout.flush()
            time.sleep(options.interval)

    def drawn() -> Group:
        shown = look(as_tables=True)
        if isinstance(shown, str):
            return Group(Text(shown))
        parts = []
        for title, head, lines in shown:
            table = Shown(title=title, title_justify="left", expand=True)
            for name in head:
                table.add_column(name, overflow="fold")
            for line in lines:
                table.add_row(*(Text(cell) for cell in line))
            parts.append(table)
        return Group(*parts)

    with Live(drawn(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(options.interval)
            live.update(drawn(), refresh=True)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    folder = published.directory(options.dir)
    before: dict[str, Agent] = {}

    def agents() -> list[Agent]:
        return [agent for agent in published.read(folder) if options.agent in agent["agent"]]

    def look(as_tables: bool = False) -> Any:
        now = agents()
        shown: Any = tables(now, before, options.rows) if now else nothing(folder)
        for agent in now:
            last = before.get(agent["id"])
            if last is None or agent["time"] > last["time"]:
                before[agent["id"]] = agent
        return shown if as_tables or isinstance(shown, str) else as_text(shown)

    if options.json:
        print(json.dumps(agents(), indent=2))
        return 0
    if options.once:
        for agent in agents():
            before[agent["id"]] = agent
        if before:
            time.sleep(options.interval)
        print(look())
        return 0
    return watch(options, look)


if __name__ == "__main__":
    sys.exit(main())
