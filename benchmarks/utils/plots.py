"""Line plots as inline SVG, small enough to be read on a phone: no script, no file beside the page.

A plot is 400 units wide and scales with its column. Colours come from the page's style (class s0,
s1, ... for series), so that they follow its light and dark dress; marks have a shape of their own
for each series too. Every mark tells its value when pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 400, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 12, 40
COLOURS = 8  # how many the style has


@dataclass(frozen=True)
class Series:
    name: str
    points: list[tuple[float, float]]
    colour: int = 0
    band: list[tuple[float, float, float]] = field(default_factory=list)  # x, low, high


@dataclass(frozen=True)
class Axis:
    title: str
    text: Callable[[float], str]  # of a value, at a tick and in a mark's note
    log: bool = False
    ticks: Sequence[float] | None = None  # None: round numbers
    scale: Callable[[float], float] | None = None  # in place of log


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def _linear_ticks(high: float) -> list[float]:
    step = _round_up(high / 5)
    return [step * index for index in range(math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    steps = (1, 2, 5) if decades <= 2 else (1,)
    every = max(1, math.ceil(decades / 6))
    found = [s * 10.0**p for p in range(first, last + 1, every) for s in steps]
    inside = [tick for tick in found if low * 0.999 <= tick <= high * 1.001]
    # The ends of the axis: the ticks around the values.
    below = [tick for tick in found if tick < low * 0.999][-1:]
    above = [tick for tick in found if tick > high * 1.001][:1]
    return [*below, *inside, *above]


class _Scale:
    """Values of one axis to a place between two ends."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self._how = axis.scale or (math.log10 if axis.log else float)
        low, high = min(values), max(values)
        if axis.ticks is not None:
            self.ticks = list(axis.ticks)
        elif axis.log:
            self.ticks = _log_ticks(low, high)
        else:
            self.ticks = _linear_ticks(high or 1)
        ends = [*values, *self.ticks]
        self._low, self._high = self._how(min(ends)), self._how(max(ends))
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        width = self._high - self._low
        share = (self._how(value) - self._low) / width if width else 0.5
        return self._start + share * (self._end - self._start)


def _thinned(ticks: Sequence[float], place: _Scale, room: float) -> list[float]:
    """Ticks that leave each other room for their text; the first and the last one rather stay."""
    kept = [ticks[0]]
    for tick in ticks[1:]:
        if abs(place(tick) - place(kept[-1])) >= room:
            kept.append(tick)
    if kept[-1] != ticks[-1] and len(kept) > 1:
        kept[-1] = ticks[-1]
    return kept


def _mark(series: int, x: float, y: float, inside: str = "") -> str:
    r, style = 3.4, f'class="mark s{series % COLOURS}"'
    if series % 4 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {style}>{inside}</circle>'
    corners = {
        1: ((-r, -r), (r, -r), (r, r), (-r, r)),
        2: ((0, -r * 1.25), (r * 1.2, r), (-r * 1.2, r)),
        3: ((0, -r * 1.35), (r * 1.35, 0), (0, r * 1.35), (-r * 1.35, 0)),
    }[series % 4]
    places = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return f'<polygon points="{places}" {style}>{inside}</polygon>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _axes(x: Axis, y: Axis, place_x: _Scale, place_y: _Scale) -> list[str]:
    base = HEIGHT - BOTTOM
    out = []
    for tick in place_y.ticks:
        at = place_y(tick)
        out.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
    for tick in _thinned(place_y.ticks, place_y, 16):
        at = place_y(tick)
        out.append(
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" class="end">{escape(y.text(tick))}</text>'
        )
    for tick in _thinned(place_x.ticks, place_x, 46):
        at = place_x(tick)
        out.append(f'<path class="axis" d="M{at:.1f} {base}v4"/>')
        out.append(
            f'<text x="{at:.1f}" y="{base + 17}" class="middle">{escape(x.text(tick))}</text>'
        )
    out.append(f'<path class="axis" d="M{LEFT} {base}H{WIDTH - RIGHT}"/>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" class="middle title">'
               f"{escape(x.title)}</text>")  # fmt: skip
    return out


def line_plot(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """One figure; empty text where there is nothing to draw."""
    drawn = [one for one in series if one.points]
    if not drawn:
        return ""
    xs = [a for one in drawn for a, _ in one.points]
    ys = [b for one in drawn for _, b in one.points]
    ys += [value for one in drawn for _, low, high in one.band for value in (low, high)]
    place_x = _Scale(x, xs, LEFT + 10, WIDTH - RIGHT - 10)
    place_y = _Scale(y, ys, HEIGHT - BOTTOM, TOP)
    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    out += _axes(x, y, place_x, place_y)
    for one in drawn:
        if len(one.band) > 1:
            high = [(place_x(a), place_y(c)) for a, _, c in one.band]
            low = [(place_x(a), place_y(b)) for a, b, _ in reversed(one.band)]
            out.append(f'<path class="band s{one.colour % COLOURS}" d="{_path(high + low)}Z"/>')
    for one in drawn:
        colour = f"s{one.colour % COLOURS}"
        dashed = " dashed" if one.colour >= COLOURS else ""
        places = [(place_x(a), place_y(b)) for a, b in one.points]
        out.append(f'<path class="line {colour}{dashed}" d="{_path(places)}"/>')
        for (a, b), place in zip(one.points, places, strict=True):
            note = escape(f"{one.name}: {x.text(a)}, {y.text(b)}")
            out.append(_mark(one.colour, *place, f"<title>{note}</title>"))
    out.append("</svg>")
    return (f"<figure><figcaption>{escape(title)} <span>{escape(y.title)}</span></figcaption>"
            f"{''.join(out)}</figure>")  # fmt: skip


def swatch(colour: int) -> str:
    """The mark of a series, for a legend."""
    return f'<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true">{_mark(colour, 6, 6)}</svg>'
