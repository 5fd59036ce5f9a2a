"""The base of the benchmarks: agents, warm-up, timing, verification, what is shown at the end.

A program is a class of Benchmark and a main() that goes through run(): an error is one line on
standard error and exit status 1, something that this machine or build lacks exit status 77.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import MISSING, Missing, Refused

try:
    import nixl
    from nixl._api import nixl_agent, nixl_agent_config
except ImportError as error:
    print(f"{sys.argv[0]}: the package nixl cannot be imported: {error}", file=sys.stderr)
    raise SystemExit(MISSING) from None
try:
    import numpy  # noqa: F401
except ImportError as error:
    print(f"{sys.argv[0]}: needs NumPy: {error}", file=sys.stderr)
    raise SystemExit(MISSING) from None

from .config import Settings, agent_options, settings_of
from .metrics import Meter, Result
from .output import check_paths, show
from .progress import Progress


class Benchmark:
    """A subclass prepares one size at a time and moves it once per call of run_once()."""

    def __init__(self, settings: Settings, options: argparse.Namespace | None = None) -> None:
        self.settings = settings
        self.options = options
        self.progress: Progress | None = None

    def head(self) -> dict[str, str]:
        """What stands above the table."""
        raise NotImplementedError

    def prepare(self, size: int) -> None:
        raise NotImplementedError

    def run_once(self) -> None:
        raise NotImplementedError

    def verify(self) -> bool:
        """Whether source and destination hold the same bytes after the last run."""
        raise NotImplementedError

    def finish(self) -> None:
        """Releases what prepare() made, also where that ended half-way."""

    def close(self) -> None:
        """Releases what lives as long as the program."""

    def gpu(self) -> Any:
        """What tells how busy the GPU is, or None."""
        return None

    def operations(self) -> int:
        """Operations of one run_once(), for IOPS."""
        return self.settings.batch

    def extra(self) -> Mapping[str, float]:
        """Figures of this program alone; utils/metrics.py has their headings."""
        return {}

    def measure(self, size: int) -> Result:
        try:
            result = self._measure(size)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self.finish()
            raise
        self.finish()
        return result

    def _measure(self, size: int) -> Result:
        settings = self.settings
        rounds, warm = settings.rounds(size), settings.warm_rounds(size)
        tell = self.progress.begin(size, warm + rounds) if self.progress else _silent
        self.prepare(size)
        for index in range(warm):
            self.run_once()
            tell(index)
        with Meter(self.gpu()) as meter:
            clock, seconds = time.perf_counter, meter.seconds
            for index in range(rounds):
                before = clock()
                self.run_once()
                seconds.append(clock() - before)
                tell(warm + index)
        same = self.verify() if settings.verify else None
        return meter.result(size, same, self.operations(), **self.extra())

    def main(self) -> int:
        """Every size, then what the options ask to be shown. 1 where bytes differed."""
        check_paths(self.options)
        with Progress(self.options) as self.progress:
            results = [self.measure(size) for size in self.settings.sizes]
        head = self.head()
        if self.settings.operation:
            head |= {"Operation": self.settings.operation}
        show(self.options, head, results)
        return verdict(results)


def verdict(results: Sequence[Result]) -> int:
    return 1 if any(result.verified is False for result in results) else 0


def _silent(_: int) -> None:
    pass


def move(agent: Any, handle: Any) -> None:
    """Posts and polls until the transfer has ended."""
    state = agent.transfer(handle)
    while state == "PROC":
        state = agent.check_xfer_state(handle)
    if state != "DONE":
        raise RuntimeError(f"the transfer ended as {state}")


def make_agent(name: str, options: argparse.Namespace, *, passive: bool = False) -> Any:
    """An agent without backends, with the progress threads that the options ask for."""
    return nixl_agent(
        name, nixl_agent_config(backends=[], **agent_options(options, passive=passive))
    )


def add_backend(
    agent: Any,
    name: str,
    options: argparse.Namespace | None = None,
    parameters: Mapping[str, str] | None = None,
) -> None:
    """Creates a backend with these parameters and those of --backend_param; Missing where this
    build has none of that name or this machine lacks what it needs."""
    own = getattr(options, "backend_param", [])
    if name not in agent.get_plugin_list():
        there = ", ".join(sorted(agent.get_plugin_list())) or "none"
        raise Missing(f"backend {name}: this build has no plugin of that name; it has: {there}")
    try:
        agent.create_backend(name, {**(parameters or {}), **dict(own)})
    except nixl.nixlInvalidParamError:
        raise
    except nixl.nixlError as error:
        raise Missing(f"backend {name} cannot be created here: {error}") from error


def pieces(address: int, size: int, count: int, device: int) -> list[tuple[int, int, int]]:
    """Descriptors that cut a range into so many parts; where needed some are a byte longer."""
    if count > size:
        raise Refused(
            f"--batch_size {count}: a buffer of {size} bytes cannot be cut into so many parts"
        )
    small, longer = divmod(size, count)
    out, at = [], address
    for index in range(count):
        length = small + (index < longer)
        out.append((at, length, device))
        at += length
    return out


def run(main: Callable[[], int]) -> int:
    """The exit status of a program; errors that a user can cause are told in one line."""
    program = pathlib.Path(sys.argv[0]).name
    try:
        return main()
    except Missing as error:
        print(f"{program}: {error}", file=sys.stderr)
        return MISSING
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except (Refused, RuntimeError, OSError, MemoryError) as error:
        print(f"{program}: {error or type(error).__name__}", file=sys.stderr)
        return 1


def main_of(make: Callable[[argparse.Namespace, Settings], Benchmark],
            parser: argparse.ArgumentParser) -> Callable[[], int]:  # fmt: skip
    """The usual main(): parse, make, measure, close."""

    def main() -> int:
        options = parser.parse_args()
        benchmark = make(options, settings_of(options))
        try:
            return benchmark.main()
        finally:
            benchmark.close()

    return main
