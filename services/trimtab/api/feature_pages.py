"""The page of one feature or output: charts, its counts beside the baseline's, how it is watched."""

from typing import Annotated, Any

from litestar import Router, get
from litestar.datastructures import State
from litestar.params import FromPath, QueryParameter
from litestar.response import Template
from msgspec import Struct

from trimtab.api.auth import Asked
from trimtab.detect.words import label_words
from trimtab.stats.bars import Bar
from trimtab.store import overview
from trimtab.store.feature_view import NAME_MAX, FeatureView, feature_view, summary_tree

FLOORS_SHOWN = 10
PLOT_WIDTH, PLOT_HEIGHT = 640, 150
"""Of the bars, in units of the drawing; it is as wide as its place."""
LABELLED_BARS = 8
CHAR_WIDTH = 11
"""Of a label's letters, about."""
_UNITS = {"sd": "sd", "points": "% of rows", "fall": "% fewer rows"}
_LIMITS = {
    "contract": "the contract",
    "reference": "the length of the baseline",
    "variation": "its usual variation",
}


class DrawnBar(Struct, frozen=True, kw_only=True):
    """One bar of the window and one of the baseline, placed in the drawing."""

    label: str
    x: float
    width: float
    window_height: float
    baseline_height: float
    window_share: float | None
    baseline_share: float | None


def drawn(found: list[Bar]) -> list[DrawnBar]:
    """Place bars in a drawing of PLOT_WIDTH x PLOT_HEIGHT; the tallest reaches the top."""
    now, was = sum(one.window for one in found), sum(one.baseline for one in found)
    shares = [
        (one.window / now if now else None, one.baseline / was if was else None) for one in found
    ]
    top = max((share or 0.0 for pair in shares for share in pair), default=0.0) or 1.0
    step = PLOT_WIDTH / max(len(found), 1)
    return [
        DrawnBar(
            label=one.label,
            x=round(place * step + step * 0.08, 2),
            width=round(step * 0.84, 2),
            window_height=round((new or 0.0) / top * PLOT_HEIGHT, 2),
            baseline_height=round((old or 0.0) / top * PLOT_HEIGHT, 2),
            window_share=new,
            baseline_share=old,
        )
        for place, (one, (new, old)) in enumerate(zip(found, shares, strict=True))
    ]


def bar_labels(found: list[DrawnBar]) -> list[tuple[str, float, str]]:
    """(text, x, anchor) of what stands under the bars: each, where they are few, else the first and the last."""
    if not found:
        return []
    if len(found) <= LABELLED_BARS:
        room = max(3, PLOT_WIDTH // len(found) // CHAR_WIDTH)
        return [
            (_short(bar.label, room), round(bar.x + bar.width / 2, 2), "middle") for bar in found
        ]
    room = PLOT_WIDTH // 2 // CHAR_WIDTH
    return [
        (_short(found[0].label, room), 0.0, "start"),
        (_short(found[-1].label, room), float(PLOT_WIDTH), "end"),
    ]


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _floors(view: FeatureView) -> list[tuple[str, str, str]]:
    """(figure, smallest change, what sets it) in words."""
    return [
        (
            label_words(one.what),
            f"{one.floor:.2g} sd"
            if one.unit == "sd"
            else f"{100 * one.floor:.2g} {_UNITS[one.unit]}",
            _LIMITS[one.limit],
        )
        for one in view.floors
    ]


def _context(state: State, request: Asked, model: str, name: str) -> dict[str, Any]:
    status = overview.model_status(state.store, model)
    view = feature_view(state.store, model, name, state.settings.alarms.false_alarms)
    floors = _floors(view)
    bars = drawn(view.bars)
    return {
        "key": request.user,
        "status": status,
        "view": view,
        "now": view.figures,
        "was": summary_tree(view.baseline),
        "drawn": bars,
        "bar_labels": bar_labels(bars),
        "plot": (PLOT_WIDTH, PLOT_HEIGHT),
        "floors": floors[:FLOORS_SHOWN],
        "more_floors": max(0, len(floors) - FLOORS_SHOWN),
        "mostly": label_words(view.ranked.what) if view.ranked else "",
    }


@get("/models/{model:str}/features/{name:str}", sync_to_thread=True)
def feature_page(
    state: State, request: Asked, model: FromPath[str], name: FromPath[str]
) -> Template:
    """Show one feature or output of a model."""
    return Template("feature.html", context=_context(state, request, model, name))


@get("/models/{model:str}/features", sync_to_thread=True)
def feature_page_by_query(
    state: State,
    request: Asked,
    model: FromPath[str],
    name: Annotated[str, QueryParameter(max_length=NAME_MAX)] = "",
) -> Template:
    """Show one whose name no path can hold, such as one with a slash."""
    return Template("feature.html", context=_context(state, request, model, name))


feature_pages = Router(
    "/", include_in_schema=False, route_handlers=[feature_page, feature_page_by_query]
)
