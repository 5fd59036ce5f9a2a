"""What benchmarks leave behind: records, the report in a real browser, the progress bar."""

from __future__ import annotations

import argparse
import html.parser
import importlib
import json
import os
import pathlib
import pty
import re
import select
import shutil
import struct
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome", "chrome")
SIZES = "4KB,64KB,1MB"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / words[0]), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two runs in runs.jsonl; the second made pair.html of both."""
    place = tmp_path_factory.mktemp("report")
    words = ["--buffer_sizes", SIZES, "--iterations", "50", "--verify_data"]
    lines = ["--json_lines", str(place / "runs.jsonl")]
    ended = run("single_node/ucx_loopback.py", *words, *lines, "--label", "<loop> & back")
    assert ended.returncode == 0, ended.stderr
    compare = ["--compare", str(place / "runs.jsonl"), "--report", str(place / "pair.html")]
    ended = run("single_node/memory_copy.py", *words, *compare, "--label", "memcpy")
    assert ended.returncode == 0, ended.stderr
    return place


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of benchmarks/utils."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"utils.{name}")


def test_records_tell_what_they_are_worth(folder: pathlib.Path) -> None:
    records = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert [one["result"]["size"] for one in records] == [4096, 65536, 1 << 20]
    assert len({one["run"] for one in records}) == 1
    first = records[0]
    assert first["benchmark"] == "single_node/ucx_loopback"
    assert first["machine"]["cores"] >= 1 and first["machine"]["kernel"]
    assert set(first["versions"]) >= {"python", "nixl", "numpy"}
    assert first["parameters"]["iterations"] == 50 and first["parameters"]["verify_data"] is True
    result = first["result"]
    assert result["verified"] is True and result["iterations"] == 50
    times = [result[key] for key in ("min_us", "p50_us", "p95_us", "p99_us", "p999_us", "max_us")]
    assert times == sorted(times) and times[0] > 0
    assert result["cpu_s_per_gb"] > 0 and result["gpu_percent"] is None


def test_secrets_are_not_recorded(utils, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIXL_AUTH_KEY", "open sesame")
    output, metrics = utils("output"), utils("metrics")
    options = argparse.Namespace(label="", secret_key="open sesame", session_token="open sesame")
    lines = output.records(options, {}, [metrics.Result(1, [1.0], 1.0, None)])
    assert "open sesame" not in json.dumps(lines)
    assert lines[0]["parameters"]["secret_key"] == "(hidden)"


def test_percentiles_are_nearest_ranks(utils) -> None:
    result = utils("metrics").Result(1, [index / 1e6 for index in range(1000, 0, -1)], 0.0, None)
    found = [result.percentile(p) for p in (0, 50, 95, 99, 99.9, 100)]
    assert found == pytest.approx([1, 500, 950, 990, 999, 1000])


class Page(html.parser.HTMLParser):
    """Tags that stand open, and everything a browser would fetch."""

    EMPTY = {"meta", "link", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        named = dict(attributes)
        self.fetched += [named[key] for key in ("src", "href") if named.get(key)]
        if tag not in self.EMPTY and tag != "path":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_holds_everything(folder: pathlib.Path) -> None:
    text = (folder / "pair.html").read_text()
    page = Page(text)
    assert page.open == [] and "script" not in page.tags
    assert all(one.startswith("data:") for one in page.fetched) and "url(" not in text
    assert "&lt;loop&gt; &amp; back" in text and "<loop>" not in text
    assert page.tags.count("figure") == 4 + 3  # by size, and the percentiles of each size
    assert "Compared with" in text and "Every byte that was compared is right" in text


MEASURE = """<!doctype html><iframe id=page width=360 height=4000 src="{page}"></iframe><script>
onload = () => {{
  const inside = page.contentDocument, view = page.contentWindow;
  const box = one => one.getBoundingClientRect();
  document.body.textContent = JSON.stringify({{
    wide: inside.documentElement.scrollWidth,
    lines: [...inside.querySelectorAll("svg .line")].map(one => box(one).width),
    texts: [...inside.querySelectorAll("figure svg text")].map(one => box(one).height),
    outside: [...inside.querySelectorAll("figure svg text, figure svg .mark")].filter(one =>
      box(one).right > box(one.closest("svg")).right + 1 ||
      box(one).left < box(one.closest("svg")).left - 1).length,
    fetched: view.performance.getEntriesByType("resource").map(one => one.name),
    light: view.getComputedStyle(inside.body).backgroundColor,
  }});
}};
</script>"""


@pytest.fixture
def browser(tmp_path: pathlib.Path):
    """Runs a headless browser without a network; what it prints."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")

    def look(*words: str) -> str:
        command = [found, "--headless", "--disable-gpu", "--hide-scrollbars"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path}/profile"]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        command += ["--allow-file-access-from-files", "--virtual-time-budget=2000", *words]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return look


def test_a_phone_shows_it_without_a_network(
    browser, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(page=(folder / "pair.html").as_uri()))
    shown = re.search(r"\{.*\}", browser("--dump-dom", frame.as_uri()))
    assert shown is not None
    seen = json.loads(html.unescape(shown[0]))
    assert seen["wide"] <= 360  # nothing to be pushed sideways, tables have bars of their own
    assert len(seen["lines"]) == 2 * (4 + 3) and min(seen["lines"]) > 150
    assert min(seen["texts"]) >= 9  # pixels
    assert seen["outside"] == 0 and seen["fetched"] == []


@pytest.mark.parametrize("width", [390, 1200])
def test_a_screenshot(browser, folder: pathlib.Path, tmp_path: pathlib.Path, width: int) -> None:
    picture = tmp_path / "report.png"
    browser(f"--window-size={width},1500", f"--screenshot={picture}",
            (folder / "pair.html").as_uri())  # fmt: skip
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (width, 1500)
    assert len(data) > 30_000  # an empty page has a few thousand bytes


def test_lines_of_others_are_refused(tmp_path: pathlib.Path) -> None:
    report = tmp_path / "out.html"
    for text, cause in [
        ("", "there is no record"),
        ("{", "line 1 is no JSON"),
        ("[1]", "line 1 is no record"),
        ('\n{"schema": 1, "result": {}}', "line 2 holds no result"),
    ]:
        (tmp_path / "x").write_text(text)
        ended = run("utils/report.py", str(tmp_path / "x"), "--report", str(report))
        assert ended.returncode == 1 and cause in ended.stderr, ended.stderr
        assert "Traceback" not in ended.stderr and not report.exists()


def test_paths_are_looked_at_before_the_measuring(tmp_path: pathlib.Path) -> None:
    for words in (["--report", "/no/such/folder/x"], ["--compare", str(tmp_path / "missing")]):
        ended = run("single_node/memory_copy.py", "--iterations", "1000000000", *words)
        assert ended.returncode == 1 and ended.stdout == ""
        assert words[1] in ended.stderr and "Traceback" not in ended.stderr


def test_a_long_run_shows_how_far_it_is(utils, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    progress = utils("progress")
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    with open(leader, "rb", buffering=0) as screen, open(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.Progress(argparse.Namespace(no_progress=False)) as bar:
            tell = bar.begin(65536, 4)
            for index in range(4):
                tell(index)
        terminal.flush()
        # A terminal hands over what it has got so far: read until all is there, or nothing comes.
        wanted, shown = ("64 KB", "25%", "4/4"), b""
        while not all(word.encode() in shown for word in wanted):
            assert select.select([screen], [], [], 60)[0], shown.decode(errors="replace")
            shown += screen.read(1 << 16)


def test_no_bar_where_there_is_no_terminal(utils, capsys: pytest.CaptureFixture[str]) -> None:
    with utils("progress").Progress(argparse.Namespace(no_progress=False)) as bar:
        assert not bar.visible
        bar.begin(1, 1)(0)
    assert capsys.readouterr().err == ""
