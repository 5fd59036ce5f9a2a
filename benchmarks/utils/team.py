"""Benchmarks of several agents: ranks, each a process, and a coordinator that starts, measures and
compares them.

The coordinator is the target's side of rendezvous.py: without --mode it starts all ranks on this
host, with --mode target (or as the first of an etcd group) it starts --local_ranks of them and
waits for the hosts of --mode initiator to bring the others. A rank talks to it over a channel;
between ranks there is only NIXL. A program gives a class derived from Rank.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .benchmark_base import add_backend, make_agent, verdict
from .config import at_least, settings_of
from .errors import Refused
from .exchange import Channel, dial, pack, unpack
from .machine import boot_id
from .metrics import Meter, Result
from .output import check_paths, show
from .progress import Progress
from .rendezvous import (
    Target,
    direct_place,
    direct_target,
    meet_many,
    program_name,
    silent_target,
    uses_etcd,
)

STEP_SECONDS = 60.0  # what a rank waits for the others within one step


class Rank:
    """One agent of a benchmark; the team calls these in this order, for each size again."""

    def __init__(self, agent: Any, rank: int, setting: Mapping[str, Any]) -> None:
        self.agent, self.rank, self.setting = agent, rank, setting
        self.ranks = len(setting["hosts"])

    def offer(self, size: int) -> dict[str, Any]:
        """Makes and registers memory; what the others need to know of it, as JSON."""
        raise NotImplementedError

    def connect(self, offers: Sequence[Mapping[str, Any]]) -> None:
        """Prepares transfers; the others' metadata is loaded, offers[i]["agent"] is their name."""
        raise NotImplementedError

    def active(self) -> bool:
        """Whether this rank's times count."""
        return True

    def step(self) -> None:
        raise NotImplementedError

    def renew(self) -> None:
        """Data that was not there before, for one more step of all ranks."""
        raise NotImplementedError

    def compare(self) -> bool:
        """Whether that step has brought what it should."""
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError


def add_team(parser: argparse.ArgumentParser, ranks: int, most: int) -> None:
    def count(text: str) -> int:
        number = int(at_least(2)(text))
        if number > most:
            raise argparse.ArgumentTypeError(f"{number} is above {most}")
        return number

    parser.add_argument("--backend", default="UCX", help="the network backend, default UCX")
    parser.add_argument("--ranks", "--num_agents", type=count, default=ranks,
                        help=f"agents, 2 to {most}; default {ranks}")  # fmt: skip
    parser.add_argument("--local_ranks", type=at_least(1), default=1,
                        help="of them on this host, where there are several hosts")  # fmt: skip


def run_team(options: argparse.Namespace, kind: type[Rank], **setting: Any) -> Team | int:
    """The coordinator's team, or the exit status of a host that only brought ranks."""
    check_paths(options)
    with make_agent("check", options) as agent:
        add_backend(agent, options.backend, options)
    local = options.local_ranks
    if uses_etcd(options):
        found = meet_many(options)
    elif options.mode == "initiator":
        found = direct_place(options)
    elif options.mode == "target":
        found = direct_target(options)
    else:
        found, local = silent_target(options), options.ranks
    processes = Processes(options, kind)
    if isinstance(found, Target):
        return Team(options, found, processes, local, setting)
    with contextlib.closing(processes):
        for _ in range(local):
            processes.start(*found)
        status = processes.wait()
    if status:
        print(f"{program_name()}: a rank of this host failed; the target says why", file=sys.stderr)
    return status


class Processes:
    """The ranks that this process has started; all are gone when it ends."""

    def __init__(self, options: argparse.Namespace, kind: type[Rank]) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._options, self._kind = options, kind
        self._running: list[Any] = []

    def start(self, ip: str, port: int, token: str) -> None:
        words = (self._kind, self._options, ip, port, token, program_name())
        process = self._context.Process(target=_rank_main, args=words, daemon=True)
        process.start()
        self._running.append(process)

    def wait(self) -> int:
        for process in self._running:
            process.join()
        return max((abs(process.exitcode or 0) for process in self._running), default=0)

    def check(self) -> None:
        """RuntimeError where one has died."""
        for process in self._running:
            if process.exitcode:
                raise RuntimeError(f"a rank's process ended with status {process.exitcode}")

    def close(self) -> None:
        for process in self._running:
            process.join(2)
            if process.is_alive():
                process.kill()
                process.join()


def _rank_main(
    kind: type[Rank], options: argparse.Namespace, ip: str, port: int, token: str, program: str
) -> None:
    """A rank's process. What goes wrong is told to the coordinator, which says it once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator's matter
    try:
        channel = dial(ip, port, options.timeout, program, token)
    except Refused as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    try:
        _serve(channel, kind, options)
    except Exception as error:
        with contextlib.suppress(RuntimeError):
            channel.send(error=f"{error or type(error).__name__}")
        raise SystemExit(1) from None
    finally:
        channel.close()


def _serve(channel: Channel, kind: type[Rank], options: argparse.Namespace) -> None:
    channel.send(host=f"{socket.gethostname()} {boot_id()}")
    told = channel.receive()
    with make_agent(f"rank{told['rank']}-{told['run']}", options, passive=True) as agent:
        add_backend(agent, told["setting"]["backend"], options)
        rank = kind(agent, told["rank"], told["setting"])
        while (ask := channel.receive())["do"] == "size":
            offer = rank.offer(ask["size"])
            channel.send(**offer, metadata=pack(agent.get_agent_metadata()))
            offers = channel.receive()["offers"]
            for index, other in enumerate(offers):
                other["agent"] = f"rank{index}-{told['run']}"
                if index != told["rank"]:
                    agent.add_remote_agent(unpack(other["metadata"]))
            rank.connect(offers)
            channel.send(ready=True)
            while (ask := channel.receive())["do"] != "release":
                channel.send(**_obey(rank, ask))
            rank.release()
            channel.send(released=True)


def _obey(rank: Rank, ask: Mapping[str, Any]) -> dict[str, Any]:
    if ask["do"] == "renew":
        rank.renew()
        return {}
    if ask["do"] == "compare":
        return {"same": rank.compare()}
    with Meter() as meter:
        clock = time.perf_counter
        for _ in range(ask["rounds"]):
            before = clock()
            rank.step()
            meter.seconds.append(clock() - before)
    return {
        "seconds": meter.seconds if rank.active() and ask["do"] == "measure" else [],
        "cpu_seconds": meter.cpu_seconds,
        "wall": meter.wall,
    }


class Team:
    """The coordinator's side."""

    def __init__(self, options: argparse.Namespace, target: Target, processes: Processes,
                 local: int, setting: Mapping[str, Any]) -> None:  # fmt: skip
        self.options, self.settings = options, settings_of(options)
        self._processes = processes
        self._channels: list[Channel] = []
        try:
            self._gather_ranks(target, local, dict(setting))
        except BaseException:
            self.close()
            raise
        finally:
            target.close()

    def _gather_ranks(self, target: Target, local: int, setting: dict[str, Any]) -> None:
        wanted = self.options.ranks
        if local > wanted:
            raise Refused(f"--local_ranks {local} is more than --ranks {wanted}")
        for _ in range(local):
            self._processes.start(*target.address, target.token)
        while len(self._channels) < wanted:
            self._channels.append(target.accept(self._processes.check))
        hosts = [str(one["host"]) for one in self.hear()]
        # Ranks of a host are neighbours, in the order in which hosts came.
        order = sorted(range(wanted), key=lambda index: (hosts.index(hosts[index]), index))
        self._channels = [self._channels[index] for index in order]
        self.hosts = [hosts[index] for index in order]
        setting |= {"hosts": self.hosts, "backend": self.options.backend,
                    "operation": self.settings.operation}  # fmt: skip
        run = f"{time.time_ns():x}"
        for rank, channel in enumerate(self._channels):
            channel.send(rank=rank, run=run, setting=setting)

    def tell(self, **message: Any) -> None:
        for channel in self._channels:
            channel.send(**message)

    def hear(self) -> list[dict[str, Any]]:
        """One message of each; whoever fails first is who is told of."""
        answers: list[dict[str, Any]] = [{} for _ in self._channels]
        with selectors.DefaultSelector() as selector:
            for rank, channel in enumerate(self._channels):
                selector.register(channel.connection, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        answers[key.data] = self._channels[key.data].receive()
                    except RuntimeError as error:
                        raise RuntimeError(f"rank {key.data}: {error}") from error
                    selector.unregister(key.fileobj)
        return answers

    def _answers(self, do: str, **words: Any) -> list[dict[str, Any]]:
        self.tell(do=do, **words)
        return self.hear()

    @contextlib.contextmanager
    def _prepared(self, size: int) -> Iterator[None]:
        offers = self._answers("size", size=size)
        self.tell(offers=offers)
        self.hear()
        yield
        self._answers("release")

    def measure(self, size: int, combine: Callable[..., Result], progress: Progress) -> Result:
        """combine(answers, same) makes the result of what the ranks measured."""
        rounds, warm = self.settings.rounds(size), self.settings.warm_rounds(size)
        tell = progress.begin(size, warm + rounds)
        with self._prepared(size):
            self._answers("warm", rounds=warm)
            tell(warm - 1)
            parts = max(1, min(20, rounds // 10)) if progress.visible else 1
            answers: list[dict[str, Any]] = []
            for part in range(parts):
                count = rounds * (part + 1) // parts - rounds * part // parts
                _add(answers, self._answers("measure", rounds=count))
                tell(warm + rounds * (part + 1) // parts - 1)
            self._answers("renew")
            self._answers("warm", rounds=1)
            same = all(one["same"] for one in self._answers("compare"))
            return combine(answers, same)

    def run(self, head: Mapping[str, str], combine: Callable[[int], Callable[..., Result]]) -> int:
        """Every size, then what the options ask to be shown."""
        try:
            with Progress(self.options) as progress:
                results = [
                    self.measure(size, combine(size), progress) for size in self.settings.sizes
                ]
            self.tell(do="end")
        finally:
            self.close()
        hosts = len(set(self.hosts))
        where = f"{len(self.hosts)} on {hosts} host{'s' if hosts > 1 else ''}"
        show(self.options, {"Backend": self.options.backend, "Ranks": where} | dict(head), results)
        return verdict(results)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._processes.close()


def _add(sums: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    if not sums:
        sums.extend(parts)
        return
    for one, part in zip(sums, parts, strict=True):
        for name, value in part.items():
            one[name] += value


def slowest(size: int, answers: Sequence[Mapping[str, Any]], same: bool, **extra: float) -> Result:
    """Of steps that all ranks make together: each takes as long as at the slowest rank."""
    seconds = [max(step) for step in zip(*(one["seconds"] for one in answers), strict=True)]
    return _result(size, seconds, answers, same, **extra)


def each(size: int, answers: Sequence[Mapping[str, Any]], same: bool, **extra: float) -> Result:
    """Of ranks that go their own pace: the steps of all."""
    seconds = [one for answer in answers for one in answer["seconds"]]
    return _result(size, seconds, answers, same, **extra)


def _result(size: int, seconds: list[float], answers: Sequence[Mapping[str, Any]], same: bool,
            **extra: float) -> Result:  # fmt: skip
    cpu = sum(one["cpu_seconds"] for one in answers)
    shares = [one["cpu_seconds"] / one["wall"] for one in answers if one["seconds"]]
    percent = 100 * sum(shares) / len(shares)  # of those that post
    return Result(size, seconds, percent, same, 1, cpu, None, extra)
