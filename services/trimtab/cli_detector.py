"""Commands about the drift detector: what it was fitted on, what it says, what it can be expected to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from trimtab.cli_context import loaded, store_of
from trimtab.cli_output import Json, ModelName, console, print_json, print_table, when

if TYPE_CHECKING:
    from trimtab.detect.plan import Planned
    from trimtab.store.detector_view import DetectorView

detector_app = typer.Typer(
    help="What watches a model for change, inside a budget of false alarms.", no_args_is_help=True
)


@detector_app.command("show")
def detector_show(context: typer.Context, model: ModelName, as_json: Json = False) -> None:
    """Show a model's detector: its budget, its reference, what has moved, and what brings the evidence."""
    from trimtab.store.detector_view import detector_view

    fleet = loaded(context).settings.alarms.false_alarms
    with store_of(context) as store:
        view = detector_view(store, model, fleet)
    if as_json:
        print_json(view)
        return
    for line in lines_of(view):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if view.open or view.moved:
        held = [("alarm", escape(name), escape(one["says"])) for name, one in view.open.items()]
        seen = [
            ("warning", escape(m["source"]), escape(m["says"]))
            for m in view.moved
            if m["source"] not in view.open
        ]
        print_table(("", "source", "what"), [*held, *seen], "")
    if view.ranking:
        print_table(
            ("source", "mostly", "share of the evidence"),
            [(escape(one.source), escape(one.words), f"{one.share:.1%}") for one in view.ranking],
            "",
        )
    if view.segments:
        print_table(
            ("segment", "share of the evidence"),
            [(escape(one.segment), f"{one.share:.1%}") for one in view.segments],
            "",
        )


def plan(
    context: typer.Context,
    model: ModelName,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help='Ask for another budget, such as "1 per 90 days".'),
    ] = None,
    rows: Annotated[
        float | None, typer.Option("--rows", min=1, help="Rows per window, if not as usual.")
    ] = None,
    all_figures: Annotated[
        bool, typer.Option("--all", help="Every figure, not each source's main ones.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how many windows a change of some size takes to be found, and what the reference supports."""
    from trimtab.store.detector_view import plan_view

    fleet = loaded(context).settings.alarms.false_alarms
    with store_of(context) as store:
        view = plan_view(store, model, fleet, budget=budget, rows=rows)
    if as_json:
        print_json(view)
        return
    console.print(
        f"One false alarm in {view.windows_per_alarm:,.0f} windows of {view.window_length} ({view.budget}).",
        markup=False,
        soft_wrap=True,
    )
    console.print(view.reference, markup=False, soft_wrap=True)
    for unit, heading in HEADINGS.items():
        found = [p for p in view.planned if p.unit == unit and (all_figures or _is_main(p))]
        if not found:
            continue
        sizes = [SIZE[unit](size) for size in found[0].sizes]
        print_table(("source", heading, "floor", *sizes), _together(found, SIZE[unit]), "")
    console.print(
        "Windows until a lasting change of each size is found, on average. Below its floor nothing is said.",
        style="dim",
    )


HEADINGS = {"sd": "shift", "points": "more of the rows", "fall": "fewer rows"}
SIZE: dict[str, Callable[[float], str]] = {
    "sd": lambda size: f"{size:.2g} sd",
    "points": lambda size: f"+{100 * size:.2g} %",
    "fall": lambda size: f"-{size:.0%}",
}
LONGEST_WINDOWS = 1_000
SKIPPED_SHOWN = 10


def _is_main(planned: Planned) -> bool:
    """A number's location, and what one expects to be asked for; the tails come with `--all`."""
    return not planned.what.startswith(("octile", "above"))


def _together(found: Sequence[Planned], size: Callable[[float], str]) -> Iterator[tuple[str, ...]]:
    """A line for all figures of a source of which the same is expected."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for one in found:
        told = (one.source, size(one.floor), *(_windows(w) for w in one.windows))
        lines.setdefault(told, []).append(one.what)
    for (source, *rest), what in lines.items():
        yield source, ", ".join(what), *rest


def _windows(windows: float) -> str:
    if windows == float("inf"):
        return "never"
    return f"{windows:.0f}" if windows <= LONGEST_WINDOWS else f"> {LONGEST_WINDOWS:,}"


def lines_of(view: DetectorView) -> list[str]:
    """Return what a detector is, a line each."""
    lines = [
        f"budget       {view.budget}: one in {view.windows_per_alarm:,.0f} windows",
    ]
    if not view.fitted:
        return [*lines, f"detector     none: {view.reason}"]
    season = "no season" if view.season == "none" else f"a season by {view.season}"
    lines.append(
        f"reference    baseline {view.baseline}, {view.reference_windows} windows, {season}"
    )
    if view.certificate is not None:
        found = view.certificate["alarms_per_budget"]
        lines.append(
            f"check        {found:.2f} alarms per budget on its own reference, shuffled by the day"
        )
    lines += [f"doubt        {doubt}" for doubt in view.doubts]
    lines += [f"not watched  {skipped}" for skipped in view.skipped[:SKIPPED_SHOWN]]
    if len(view.skipped) > SKIPPED_SHOWN:
        lines.append(f"not watched  and {len(view.skipped) - SKIPPED_SHOWN} more (--json has all)")
    if view.evidence is not None and view.window_start_ms is not None:
        lines.append(
            f"evidence     {view.evidence:.2%} of an alarm in the window from "
            f"{when(view.window_start_ms)} UTC"
        )
    return lines
