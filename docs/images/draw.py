"""Draws the pictures of docs/alarms.md from the detector itself.

    python docs/images/draw.py

`evidence.svg`: made-up hourly traffic with a rhythm of the day, and what the detector says of it before and after
one of 20 features shifts. `delay.svg`: the windows until a shift is found, by its size and by the budget.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trimtab.contracts.model import Alarms, Contract, Feature
from trimtab.detect.certificate import expected_delay
from trimtab.detect.drift import Fitted, Watching, fit_detector, state_digest, watch
from trimtab.detect.observed import Observed
from trimtab.stats.aggregate import Column, observe_pane
from trimtab.stats.cuts import build_numeric_cuts, model_cuts

HERE = Path(__file__).parent
HOUR_MS, START_MS = 3_600_000, 1_700_006_400_000
FEATURES = tuple(f"x{k}" for k in range(20))
ROWS, REFERENCE, CALM, CHANGED, SHIFT = 1_000, 336, 72, 48, 0.12
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 64, 16, 34, 46
INK, QUIET, LINES = "#222222", "#777777", ("#1764ab", "#c2571a", "#2e7d32")

Line = tuple[str, Sequence[tuple[float, float]]]


class Picture:
    """Lines over two axes, as SVG."""

    def __init__(
        self, title: str, x: tuple[float, float], y: tuple[float, float], *, log_y: bool = False
    ) -> None:
        self.x, self.y, self.log_y = x, y, log_y
        self.parts = [
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            text(LEFT, 20, title, size=14, weight="600"),
        ]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a point."""
        if self.log_y:
            low, high, y = np.log10(self.y[0]), np.log10(self.y[1]), np.log10(max(y, self.y[0]))
        else:
            low, high = self.y
        across = (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
        up = (min(y, high) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    def axes(
        self, x_label: str, x_ticks: Sequence[float], y_ticks: Sequence[tuple[float, str]]
    ) -> None:
        """Draw both axes with their ticks."""
        for value, said in y_ticks:
            left, height = self.at(self.x[0], value)
            self.parts.append(
                f'<path d="M{left:.1f} {height:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>'
            )
            self.parts.append(text(left - 8, height + 4, said, anchor="end", colour=QUIET))
        for value in x_ticks:
            place, bottom = self.at(value, self.y[0])
            self.parts.append(text(place, bottom + 18, f"{value:g}", anchor="middle", colour=QUIET))
        middle = (LEFT + WIDTH - RIGHT) / 2
        self.parts.append(text(middle, HEIGHT - 8, x_label, anchor="middle", colour=QUIET))

    def lines(self, lines: Sequence[Line]) -> None:
        """Draw lines, each with its name, if it has one, in its own colour."""
        for place, (name, points) in enumerate(lines):
            colour = LINES[place % len(LINES)]
            path = " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in points)
            self.parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            )
            self.parts.append(
                text(WIDTH - RIGHT - 6, TOP + 14 + 18 * place, name, anchor="end", colour=colour)
            )

    def rule(self, y: float, said: str) -> None:
        """Draw a dashed line across."""
        left, height = self.at(self.x[0], y)
        self.parts.append(
            f'<path d="M{left:.1f} {height:.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-dasharray="6 4"/>'
        )
        self.parts.append(text(left + 6, height - 6, said))

    def mark(self, x: float, said: str) -> None:
        """Draw a dashed line from top to bottom."""
        place, bottom = self.at(x, self.y[0])
        self.parts.append(
            f'<path d="M{place:.1f} {TOP}V{bottom:.1f}" stroke="{QUIET}" stroke-dasharray="3 3"/>'
        )
        self.parts.append(text(place - 6, bottom - 8, said, anchor="end", colour=QUIET))

    def save(self, name: str) -> None:
        """Write the picture."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        (HERE / name).write_text("\n".join([head, *self.parts, "</svg>", ""]), "utf-8")


def text(
    x: float,
    y: float,
    said: str,
    *,
    size: int = 12,
    anchor: str = "start",
    colour: str = INK,
    weight: str = "400",
) -> str:
    """Return a piece of text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-family="system-ui, sans-serif" font-size="{size}" '
        f'font-weight="{weight}" text-anchor="{anchor}" fill="{colour}">{said}</text>'
    )


def main() -> None:
    """Fit a detector on two weeks, and draw."""
    rng = np.random.default_rng(3)
    cuts = model_cuts([(name, build_numeric_cuts(rng.normal(size=4_000))) for name in FEATURES])

    def window(number: int, shift: float = 0.0) -> Observed:
        rhythm = 0.2 * np.sin(2 * np.pi * (number % 24) / 24)
        columns = {
            name: Column(rng.normal(rhythm + shift * (name == "x7"), 1, ROWS)) for name in FEATURES
        }
        state = observe_pane(
            cuts, ROWS, numeric=columns, categories={}, statuses={"ok": ROWS}, rules={}
        )
        return Observed(state=state)

    contract = Contract(
        name="m",
        task="binary",
        features={name: Feature("number") for name in FEATURES},
        alarms=Alarms(false_alarms="1 per 30 days"),
    )
    reference = [(START_MS + k * HOUR_MS, window(k)) for k in range(REFERENCE)]
    fitted = fit_detector(cuts, reference, contract, 720.0, bounded={})
    assert isinstance(fitted, Fitted)
    detector = fitted.detector(720.0, HOUR_MS)
    state, points, alarm_at = detector.start(), [], None
    for k in range(CALM + CHANGED):
        number = REFERENCE + k
        watching = Watching(
            id=1, detector=detector, cuts=cuts, state=state, before=state_digest(state)
        )
        shift = SHIFT if k >= CALM else 0.0
        found = watch(watching, window(number, shift), START_MS + number * HOUR_MS)
        state = found.after
        points.append((float(k), found.said.evidence))
        if found.said.alarm:
            alarm_at = k
            break
    assert alarm_at is not None, "the shift is found within two days"
    picture = Picture(
        "Evidence of a change, as a share of an alarm's", (0, alarm_at + 6), (1e-6, 100), log_y=True
    )
    ticks = [(1e-6, "1e-6"), (1e-4, "1e-4"), (1e-2, "1 %"), (1.0, "1"), (100.0, "100")]
    picture.axes("hours", range(0, alarm_at + 1, 12), ticks)
    picture.rule(1.0, "alarm")
    picture.rule(0.1, "warning")
    picture.mark(CALM, f"one of 20 features shifts by {SHIFT} sd")
    picture.lines([("", points)])
    picture.save("evidence.svg")

    place = detector.contrasts.contrast_names.index(("x7", "location"))
    sizes = np.linspace(0.06, 0.3, 97)
    curves: list[Line] = []
    for said, windows_per_alarm in (
        ("1 false alarm in 3 days", 72.0),
        ("1 in 30 days", 720.0),
        ("1 in 300 days", 7_200.0),
    ):
        asked = fitted.detector(windows_per_alarm, HOUR_MS)
        delays = [float(expected_delay(asked, float(size), ROWS)[place]) for size in sizes]
        shown = [(float(s), d) for s, d in zip(sizes, delays, strict=True) if d <= 48]
        curves.append((said, shown))
    picture = Picture("Hours until a shift in one of 20 features is found", (0.05, 0.3), (0, 48))
    picture.axes(
        "size of the shift, standard deviations",
        [0.05, 0.1, 0.15, 0.2, 0.25, 0.3],
        [(float(y), f"{y}") for y in (0, 12, 24, 36, 48)],
    )
    picture.lines(curves)
    picture.save("delay.svg")


if __name__ == "__main__":
    main()
