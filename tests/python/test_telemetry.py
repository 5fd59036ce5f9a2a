"""What agents count and show: stats(), the exporters, a real Prometheus, SIGUSR2, `nixl top`."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from nixl_support import Pair, finish

ROOT = pathlib.Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "tools" / "grafana" / "nixl.json"
PATIENCE_S = 60.0

# An agent that moves bytes to itself until its standard input ends, and tells what it knows.
WORKER = """
import sys, nixl
agent = nixl.nixl_agent(sys.argv[1])
memory = nixl.alloc(1 << 16)
address = memory.address
agent.register_memory([(address, memory.nbytes, 0, "")], "DRAM")
near = agent.get_xfer_descs([(address, 4096, 0)], "DRAM")
far = agent.get_xfer_descs([(address + 8192, 4096, 0)], "DRAM")
handle = agent.initialize_xfer("WRITE", near, far, sys.argv[1])
def move():
    state = agent.transfer(handle)
    while state == "PROC":
        state = agent.check_xfer_state(handle)
move()
print("ready", flush=True)
for line in sys.stdin:
    if line == "fork\\n":
        import os
        child = os.fork()
        if child == 0:
            mine = nixl.nixl_agent("child")
            os.write(1, b"forked\\n")
            sys.stdin.readline()
            os._exit(0)
        os.waitpid(child, 0)
    else:
        move()
        print(agent.stats()["endpoint"], flush=True)
agent.close()
"""


def eventually(what, why: str):
    """What `what` gives as soon as it is true."""
    end = time.monotonic() + PATIENCE_S
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, why
        time.sleep(0.05)  # sleeps: another process has nothing to wait on


class Worker:
    def __init__(self, name: str, folder: pathlib.Path, **environment: str) -> None:
        env = {**os.environ, "NIXL_TELEMETRY_ENABLE": "yes", "NIXL_TELEMETRY_DIR": str(folder)}
        env |= {"NIXL_TELEMETRY_RUN_INTERVAL": "50", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()

    def ask(self, word: str = "move") -> str:
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self) -> str:
        """Lets it end; what it wrote to standard error."""
        error = self.process.communicate(timeout=PATIENCE_S)[1]
        assert self.process.returncode == 0, error
        return error

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def worker(tmp_path):
    started: list[Worker] = []

    def start(name: str, **environment: str) -> Worker:
        started.append(Worker(name, tmp_path / "telemetry", **environment))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def prometheus_exporter() -> dict[str, str]:
    plugins = os.environ.get("NIXL_BUILD_DIR", "")
    if plugins and not list(pathlib.Path(plugins).rglob("libtelemetry_exporter_prometheus.so")):
        pytest.skip("the exporter is not built (Debian: prometheus-cpp-dev)")
    return {"NIXL_TELEMETRY_EXPORTER": "prometheus", "NIXL_TELEMETRY_PROMETHEUS_PORT": "0"}


def scrape(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as answer:
        return answer.read().decode()


def test_stats_tell_of_each_peer_and_operation(make_agent, memory):
    pair = Pair(make_agent, memory)
    for operation in ("WRITE", "WRITE", "READ"):
        handle = pair.write((0, 4096), operation=operation)
        pair.near.transfer(handle)
        finish(pair.near, handle)
        handle.release()
    told = pair.near.stats()
    rows = {row["operation"]: row for row in told["transfers"]}
    assert rows["WRITE"]["peer"] == pair.far.name and rows["WRITE"]["backend"] == "UCX"
    assert rows["WRITE"]["lane"] == "local"
    assert rows["WRITE"]["done"] == 2 and rows["WRITE"]["bytes"] == 8192
    assert rows["WRITE"]["sizes"] == [[4096, 2]]
    assert sum(count for _, count in rows["WRITE"]["microseconds"]) == 2
    assert rows["READ"]["posts"] == 1 and rows["READ"]["in_progress"] == 0
    assert told["registered"]["DRAM"]["regions"] == 1
    assert told["posts"] == 3 and told["bytes"] == 12288 and told["pending"] == []
    assert pair.far.stats()["transfers"] == []


def test_dump_state_names_handle_peer_lane_and_error(make_agent, memory):
    pair = Pair(make_agent, memory)
    handle = pair.write((0, 4096))
    assert ": not posted, 4096 bytes" in pair.near.dump_state()
    pair.near.transfer(handle)
    finish(pair.near, handle)
    line = re.search(r"transfer \d+ WRITE with (\S+) by UCX local: done in", pair.near.dump_state())
    assert line and line[1] == pair.far.name


def test_file_exporter_leaves_lines_and_the_last_one_at_the_end(worker, tmp_path):
    one = worker('odd "name"/x', NIXL_TELEMETRY_EXPORTER="file")
    one.ask()
    assert one.end() == ""
    folder = tmp_path / "telemetry"
    assert (folder.stat().st_mode & 0o777) == 0o700
    (path,) = folder.glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[-1]["agent"] == 'odd "name"/x'
    assert lines[-1]["transfers"][0]["done"] == 2
    assert not list(folder.glob("agent-*.json"))


def test_what_goes_wrong_with_an_exporter_is_a_warning(worker, tmp_path):
    one = worker("a", NIXL_TELEMETRY_EXPORTER="nosuch")
    one.ask()
    error = one.end()
    assert 'telemetry exporter plugin "nosuch" not found' in error
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    two = worker("b", NIXL_TELEMETRY_DIR=str(shared), NIXL_TELEMETRY_EXPORTER="file")
    two.ask()
    assert f"the directory {shared} is writable for others" in two.end()
    gone = worker("c", NIXL_TELEMETRY_EXPORTER="file")
    shutil.rmtree(tmp_path / "telemetry")
    gone.ask()
    gone.ask()
    error = gone.end()
    assert "No such file or directory" in error and error.count("told once") <= 2


def test_bad_settings_are_errors(make_agent, monkeypatch):
    monkeypatch.setenv("NIXL_TELEMETRY_RUN_INTERVAL", "soon")
    with pytest.raises(RuntimeError, match='NIXL_TELEMETRY_RUN_INTERVAL="soon" must be'):
        make_agent("a")
    monkeypatch.delenv("NIXL_TELEMETRY_RUN_INTERVAL")
    monkeypatch.setenv("NIXL_DUMP_ON_SIGUSR2", "perhaps")
    with pytest.raises(RuntimeError, match='NIXL_DUMP_ON_SIGUSR2="perhaps" must be'):
        make_agent("a")


def test_processes_share_one_endpoint_and_the_next_takes_over(worker, tmp_path):
    environment = prometheus_exporter()
    first = worker("first", **environment)
    url = first.ask()
    assert url.startswith("http://127.0.0.1:") and url.endswith("/metrics")
    second = worker('second "two"\\', **environment)
    assert second.ask() == url
    # Each publishes now and then: the first may do so only after its first transfer.
    named = ('agent="first"', r'agent="second \"two\"\\"', 'nixl_transfers_total{agent="first"')
    text = eventually(lambda: all(n in (t := scrape(url)) for n in named) and t, "no second")
    assert text.count("# TYPE nixl_transfers_total counter") == 1
    assert re.search(r'nixl_transfers_total\{agent="first",[^}]*state="done"\} [12]\n', text)
    assert 'nixl_transfer_seconds_bucket{agent="first"' in text and 'le="+Inf"' in text
    first.process.kill()  # no good-bye
    first.process.wait()
    other = eventually(lambda: (u := second.ask()) != url and u, "nobody took over")
    text = scrape(other)
    assert 'agent="first"' not in text and r'agent="second \"two\"\\"' in text
    assert second.end() == ""
    assert not list((tmp_path / "telemetry").glob("*metrics"))


def test_a_forked_child_has_an_endpoint_of_its_own_process(worker, tmp_path):
    one = worker("parent", **prometheus_exporter())
    url = one.ask()
    assert one.ask("fork") == "forked"
    eventually(lambda: 'agent="child"' in scrape(url), "the child is not seen")
    one.process.stdin.write("end\n")
    assert one.end() == ""


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus (Debian: prometheus)")
def test_a_real_prometheus_scrapes_it_and_the_dashboard_finds_its_metrics(worker, tmp_path):
    one = worker("scraped", **prometheus_exporter())
    target = one.ask().removeprefix("http://").removesuffix("/metrics")
    one.ask()
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: nixl, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    log = open(tmp_path / "prometheus.log", "w+")  # noqa: SIM115
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/tsdb",
            "--web.listen-address=127.0.0.1:0",
        ],
        stdout=log,
        stderr=log,
    )
    try:
        # With port 0 only the system knows where it listens.
        port = eventually(lambda: listening(server.pid), (tmp_path / "prometheus.log").read_text())
        base = f"http://127.0.0.1:{port}/api/v1"

        def value(query: str) -> float | None:
            quoted = urllib.request.quote(query)
            try:
                found = json.loads(scrape(f"{base}/query?query={quoted}"))["data"]["result"]
            except OSError:
                return None  # not ready
            return float(found[0]["value"][1]) if found else None

        done = 'sum(nixl_transfers_total{agent="scraped",state="done"})'
        eventually(lambda: (value(done) or 0) >= 2, "it was not scraped")
        assert value('nixl_transfer_seconds_count{agent="scraped"}') >= 2
        names = set(json.loads(scrape(f"{base}/label/__name__/values"))["data"])
        # Counted only when something fails.
        assert dashboard_metrics() - names <= {"nixl_transfer_errors_total"}
    finally:
        server.terminate()
        server.wait()
        log.close()


def listening(pid: int) -> int | None:
    """The port a process listens at."""
    inodes = set()
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(entry))
        except OSError:
            continue
    for line in pathlib.Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            return int(fields[1].split(":")[1], 16)
    return None


def dashboard_metrics() -> set[str]:
    board = json.loads(DASHBOARD.read_text())
    queries = [t["expr"] for panel in board["panels"] for t in panel.get("targets", [])]
    queries += [v["query"] for v in board["templating"]["list"] if isinstance(v.get("query"), str)]
    return {name for query in queries for name in re.findall(r"\bnixl_\w+", query)}


def test_the_dashboard_names_only_metrics_that_are_exported(worker):
    url = worker("a", **prometheus_exporter()).ask()
    text = eventually(lambda: "nixl_transfer_seconds" in (t := scrape(url)) and t, "no transfers")
    exported = set(re.findall(r"^(nixl_\w+)[{ ]", text, re.M)) | {"nixl_transfer_errors_total"}
    assert dashboard_metrics() and dashboard_metrics() <= exported
    documented = (ROOT / "docs" / "telemetry.md").read_text()
    families = set(re.findall(r"^# TYPE (nixl_\w+)", text, re.M))
    assert [name for name in families if f"`{name}`" not in documented] == []


def test_sigusr2_shows_what_agents_hold(worker):
    one = worker("dumped", NIXL_DUMP_ON_SIGUSR2="yes", NIXL_TELEMETRY_ENABLE="")
    one.ask()
    one.process.send_signal(signal.SIGUSR2)
    assert one.process.stderr.readline() == f"agent dumped (process {one.process.pid})\n"
    lines = iter(one.process.stderr.readline, "")
    assert any("WRITE with dumped by UCX local: done in" in line for line in lines)
    one.end()


def test_a_handler_of_the_program_stays(make_agent, monkeypatch, capfd):
    seen = []
    before = signal.signal(signal.SIGUSR2, lambda *_: seen.append(1))
    try:
        make_agent("kept", dump_on_sigusr2=True)
        os.kill(os.getpid(), signal.SIGUSR2)
        eventually(lambda: seen, "the program's own handler did not run")
    finally:
        signal.signal(signal.SIGUSR2, before)


def nixl(*words: str, status: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nixl.command", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=110,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_top_shows_agents_of_other_processes(worker, tmp_path):
    folder = str(tmp_path / "telemetry")
    worker("alpha \x1b[31m")
    worker("beta").ask()
    said = nixl("top", "--once", "--interval", "0.1", "--dir", folder)
    assert "alpha ?[31m" in said and "\x1b" not in said
    assert "beta" in said and "UCX local" in said and "WRITE" in said
    told = json.loads(nixl("top", "--json", "--agent", "bet", NIXL_TELEMETRY_DIR=folder))
    assert [agent["agent"] for agent in told] == ["beta"]
    assert told[0]["transfers"][0]["done"] == 2
    assert "no agents in" in nixl("top", "--once", "--dir", str(tmp_path / "none"))


def test_top_passes_over_what_dead_processes_and_strangers_left(worker, tmp_path):
    folder = tmp_path / "telemetry"
    one = worker("killed")
    one.kill()
    (folder / "agent-1-bad.json").write_text("{")
    (folder / "agent-1-odd.json").write_text('{"pid": "x"}')
    assert "no agents in" in nixl("top", "--once", "--dir", str(folder))


def test_bench_moves_and_compares_bytes():
    rows = nixl("bench", "--sizes", "64,1M", "--seconds", "0.05", "--json").splitlines()
    told = [json.loads(row) for row in rows]
    assert {(row["lane"], row["bytes"]) for row in told} == {
        (lane, size) for lane in ("host", "stream") for size in (64, 1 << 20)
    }
    assert all(row["gb_per_s"] > 0 and row["transfers"] > 0 for row in told)
    assert "is no size" in nixl("bench", "--sizes", "x", status=2)


def test_the_command_lists_what_it_has(tmp_path):
    assert "usage: nixl" in nixl(status=2)
    assert nixl("--version").startswith("nixl 1.")
    assert "no command 'tpo'" in nixl("tpo", status=2)
    assert "not a directory" in nixl("hicache", "stat", str(tmp_path / "none"), status=2)
    assert "cross-memory attach" in nixl("doctor", "--help") + nixl("doctor", status=0)
