"""Who is the target, and where it listens: told by --mode and addresses, or agreed on in etcd.

In etcd a group is the key /nixl/benchmarks/PROGRAM/GROUP. The first to arrive listens, creates the
key with its address, and is the target; whoever finds the key dials. The key hangs on a lease, so
it is gone a few seconds after a target that died.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import secrets
import socket
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from .config import at_least
from .errors import Refused
from .etcd import Etcd, Lease
from .exchange import Channel, accept, dial, listen

_PREFIX = "/nixl/benchmarks"
_PORT = 5555
Place = tuple[str, int, str]  # address, port, token
_T = TypeVar("_T")


def add_network(parser: argparse.ArgumentParser, waits: float = 300) -> None:
    add = parser.add_argument_group("two hosts").add_argument
    add("--mode", choices=("target", "initiator"), help="without it both run on this host")
    add("--ip", help="where the target listens; default 127.0.0.1, with etcd the address that "
        "reaches it")  # fmt: skip
    add("--target_ip", help="where the initiator finds it; default --ip")
    add("--port", type=at_least(0), help=f"default {_PORT}, with etcd a free one")
    add("--timeout", type=float, default=waits, help="seconds to wait for each other")
    add("--etcd_endpoints", metavar="URLS",
        help="agree on roles there: http://host:2379, several separated by commas")  # fmt: skip
    add("--benchmark_group", help="the name that those who belong together share; the first is "
        "the target")  # fmt: skip


def uses_etcd(options: argparse.Namespace) -> bool:
    """Whether etcd decides; a group without endpoints takes those of the environment."""
    if options.benchmark_group and not options.etcd_endpoints:
        options.etcd_endpoints = os.environ.get("NIXL_ETCD_ENDPOINTS")
        if not options.etcd_endpoints:
            raise Refused("--benchmark_group needs --etcd_endpoints, or NIXL_ETCD_ENDPOINTS")
    return bool(options.etcd_endpoints)


def program_name() -> str:
    return pathlib.Path(sys.argv[0]).stem


class Target:
    """The listening side."""

    def __init__(self, server: socket.socket, token: str, timeout: float,
                 close: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        self.server, self.token, self.timeout = server, token, timeout
        self._close = close

    @property
    def address(self) -> tuple[str, int]:
        ip, port = self.server.getsockname()[:2]
        return str(ip), int(port)

    def accept(self, check: Callable[[], None] = lambda: None) -> Channel:
        """check is called now and then; what it raises ends the waiting."""
        return accept(self.server, program_name(), self.token, self.timeout, check)

    def close(self) -> None:
        """Nobody else may come, and the group's name is free again."""
        self.server.close()
        self._close()


def direct_target(options: argparse.Namespace) -> Target:
    port = _PORT if options.port is None else options.port
    target = Target(listen(options.ip or "127.0.0.1", port), "", options.timeout)
    print("target: waiting at {} port {}".format(*target.address), flush=True)
    return target


def silent_target(options: argparse.Namespace) -> Target:
    """On this host alone: a free port, and only who has the token is let in."""
    return Target(listen("127.0.0.1", 0), secrets.token_hex(8), options.timeout)


def direct_place(options: argparse.Namespace) -> Place:
    ip = options.target_ip or options.ip or "127.0.0.1"
    return ip, _PORT if options.port is None else options.port, ""


def direct_dial(options: argparse.Namespace) -> Channel:
    ip, port, token = direct_place(options)
    return dial(ip, port, options.timeout, program_name(), token)


def meet(options: argparse.Namespace) -> Target | Channel:
    """By etcd: the target's side, or a channel to the target."""
    return _agree(options, _reach)


def meet_many(options: argparse.Namespace) -> Target | Place:
    """The same for more than two: where the target is, for each process to dial."""
    return _agree(options, _answers)


def _agree(options: argparse.Namespace, take: Callable[[Place], _T | None]) -> Target | _T:
    etcd = Etcd(options.etcd_endpoints)
    group = options.benchmark_group or "default"
    key = f"{_PREFIX}/{program_name()}/{group}"
    etcd.get(key)  # says at once what is wrong with the endpoints
    end = time.monotonic() + options.timeout
    while True:
        if options.mode != "initiator":
            target = _claim(etcd, key, options)
            if target is not None:
                print(f"group {group}: this is the target, waiting at {target.address[0]} port "
                      f"{target.address[1]}", file=sys.stderr, flush=True)  # fmt: skip
                return target
        if options.mode != "target" and (place := _find(etcd, key)) is not None:
            taken = take(place)
            if taken is not None:
                print(f"group {group}: this is an initiator", file=sys.stderr, flush=True)
                return taken
        if time.monotonic() >= end:
            there = "there is a target already" if options.mode == "target" else "nobody answers"
            raise Refused(f"--benchmark_group {group}: {there}, for {options.timeout:g} s")
        time.sleep(0.1)


def _claim(etcd: Etcd, key: str, options: argparse.Namespace) -> Target | None:
    if etcd.get(key) is not None:
        return None
    ip = options.ip or _address_towards(*etcd.server)
    server, token = listen(ip, options.port or 0), secrets.token_hex(8)
    if ip in ("0.0.0.0", "::"):  # listens everywhere; the others need one address
        ip = _address_towards(*etcd.server)
    lease = Lease(etcd)
    target = Target(server, token, options.timeout, lease.close)
    place = {"ip": ip, "port": target.address[1], "token": token}
    if etcd.put_new(key, json.dumps(place), lease.id):
        return target
    target.close()
    return None


def _find(etcd: Etcd, key: str) -> Place | None:
    """Where the group's target says that it is."""
    text = etcd.get(key)
    if text is None:
        return None
    try:
        place = json.loads(text)
        return str(place["ip"]), int(place["port"]), str(place["token"])
    except (ValueError, KeyError, TypeError):
        raise Refused(f"etcd key {key} holds {text[:80]!r}, which is no benchmark's") from None


def _reach(place: Place) -> Channel | None:
    """None where nobody is there any more, or somebody else was quicker."""
    ip, port, token = place
    try:
        return dial(ip, port, 0, program_name(), token)
    except Refused:
        return None


def _answers(place: Place) -> Place | None:
    """The place, if somebody listens there still."""
    try:
        socket.create_connection(place[:2], timeout=3).close()
    except OSError:
        return None
    return place


def _address_towards(host: str, port: int) -> str:
    """Of this host, as it reaches that one. No packet is sent."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise Refused(
            f"no address of this host towards etcd at {host}: {error}; say --ip"
        ) from error
