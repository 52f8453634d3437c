"""Commands about the drift detector: what it was fitted on, what it says, what it can be expected to see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from trimtab.cli_context import loaded, store_of
from trimtab.cli_output import Json, ModelName, console, print_json, print_table, when

if TYPE_CHECKING:
    from trimtab.store.detector_view import DetectorView

detector_app = typer.Typer(
    help="What watches a model for change, inside a budget of false alarms.", no_args_is_help=True
)


@detector_app.command("show")
def detector_show(context: typer.Context, model: ModelName, as_json: Json = False) -> None:
    """Show a model's detector: its budget, its reference, and what has moved."""
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
        held = [("alarm", name, one["says"]) for name, one in view.open.items()]
        seen = [
            ("warning", m["source"], m["says"]) for m in view.moved if m["source"] not in view.open
        ]
        print_table(("", "source", "what"), [*held, *seen], "")


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
    if view.evidence is not None and view.window_start_ms is not None:
        lines.append(
            f"evidence     {view.evidence:.2%} of an alarm in the window from "
            f"{when(view.window_start_ms)} UTC"
        )
    return lines
