"""Two hosts on one machine: two network namespaces with cables between them. Needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time

NEAR_ADDRESS, FAR_ADDRESS = "10.89.0.1", "10.89.0.2"


class NoHosts(Exception):
    """Why there are none here."""


class Cable:
    """A context manager: makes both namespaces, and takes them away whatever happens."""

    def __init__(self, cables: int = 1, rate: str = "") -> None:
        """`rate`: what each cable carries at most, as tc writes it."""
        self.near, self.far = f"versus{os.getpid()}a", f"versus{os.getpid()}b"
        self.cables, self.rate = cables, rate

    def __enter__(self) -> Cable:
        if shutil.which("ip") is None:
            raise NoHosts("needs the command ip (iproute2)")
        if os.geteuid() != 0:
            raise NoHosts("network namespaces need root")
        try:
            for name in (self.near, self.far):
                run("ip", "netns", "add", name)
                run("ip", "-n", name, "link", "set", "lo", "up")
            for number in range(self.cables):
                self.plug_in(number)
            for number in range(self.cables):  # UCX takes only devices that run
                self.wait_until_up(f"cable{number or ''}")
        except subprocess.CalledProcessError as error:
            self.__exit__()
            raise NoHosts(f"no network namespaces: {error.stderr.strip()}") from error
        return self

    def plug_in(self, number: int) -> None:
        cable = f"cable{number or ''}"
        ends = (cable, "netns", self.near, "type", "veth", "peer", "name", cable)
        run("ip", "link", "add", *ends, "netns", self.far)
        for name, first in ((self.near, NEAR_ADDRESS), (self.far, FAR_ADDRESS)):
            address = first.replace(".89.", f".{89 + number}.")
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", cable)
            run("ip", "-n", name, "link", "set", cable, "up")
            if self.rate:
                shape = ("tbf", "rate", self.rate, "burst", "256kb", "latency", "50ms")
                run("tc", "-n", name, "qdisc", "add", "dev", cable, "root", *shape)

    def wait_until_up(self, cable: str) -> None:
        end = time.monotonic() + 10
        for name in (self.near, self.far):
            read = [*inside(name), "cat", f"/sys/class/net/{cable}/operstate"]
            while subprocess.run(read, capture_output=True, text=True).stdout.strip() != "up":
                if time.monotonic() > end:
                    raise NoHosts(f"{cable} of {name} does not come up")
                time.sleep(0.02)

    def __exit__(self, *_error: object) -> None:
        for name in (self.near, self.far):
            with contextlib.suppress(subprocess.CalledProcessError):
                run("ip", "netns", "del", name)  # takes the cable along

    def environment(self) -> dict[str, str]:
        """Tells the rows where they are."""
        return {"NIXL_VERSUS_FAR": self.far}


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def inside(name: str) -> list[str]:
    """What a command begins with that runs in the namespace."""
    return ["ip", "netns", "exec", name]


def far_prefix() -> list[str]:
    name = os.environ.get("NIXL_VERSUS_FAR")
    return inside(name) if name else []


def addresses() -> tuple[str, str]:
    """Of this side and of the other."""
    if os.environ.get("NIXL_VERSUS_FAR"):
        return NEAR_ADDRESS, FAR_ADDRESS
    return "127.0.0.1", "127.0.0.1"
