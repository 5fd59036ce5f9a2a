"""A progress bar on standard error for runs that take longer than a second.

Only where that is a terminal and the package rich is there. It is drawn between transfers by the
thread that measures, a few times a second, so that no thread of its own disturbs the figures.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from .config import size_text

_PATIENCE = 1.0  # seconds before the bar appears
_EVERY = 0.25  # seconds between drawings


class Progress:
    def __init__(self, options: argparse.Namespace | None) -> None:
        self._bar: Any = None
        self._wanted = not getattr(options, "no_progress", True) and sys.stderr.isatty()
        self._shown_from = 0.0

    def __enter__(self) -> Progress:
        if not self._wanted:
            return self
        try:
            from rich import progress
            from rich.console import Console
        except ImportError:
            return self
        self._bar = progress.Progress(
            progress.TextColumn("{task.description:>9}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._shown_from = time.perf_counter() + _PATIENCE
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def visible(self) -> bool:
        return self._bar is not None

    def begin(self, size: int, rounds: int) -> Callable[[int], None]:
        """What the measuring loop calls with the index of each round that is over."""
        if self._bar is None:
            return lambda _: None
        bar, task = self._bar, self._bar.add_task(size_text(size), total=rounds)
        next_time = self._shown_from

        def tell(index: int) -> None:
            nonlocal next_time
            now = time.perf_counter()
            if now < next_time and index + 1 < rounds:
                return
            next_time = max(now, self._shown_from) + _EVERY
            bar.update(task, completed=index + 1)
            if now >= self._shown_from:
                bar.start()
                bar.refresh()

        return tell
