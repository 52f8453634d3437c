"""`python -m trimtab.api.report_worker MODEL START_MS OUT`: one Evidently report, then the end.

Evidently takes seconds to import and a core while it works, so it runs here and never in the API.
Settings come from the environment. Personal features never enter a row sample, hence no report.
"""

import datetime as dt
import html
import sys
import tempfile
from pathlib import Path
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection

from trimtab.contracts.model import Contract
from trimtab.errors import NotFoundError, TrimtabError
from trimtab.settings import load
from trimtab.store import models
from trimtab.store.baselines import baseline, has_baseline
from trimtab.store.engine import Store, open_store
from trimtab.store.samples import SampleRow, sample_between
from trimtab.store.verdicts import verdict_history

ROWS_MIN = 30
"""Fewer sampled rows on either side say nothing."""
ROWS_WANTED = 300
"""A short window holds few sampled rows; those of the windows after it join up to this many."""
REFERENCE_SPAN_MS = 7 * 86_400_000


class Compared(Struct, frozen=True, kw_only=True):
    """The two samples of a report, and what to call them."""

    reference: list[SampleRow]
    current: list[SampleRow]
    window: str
    """Which window, and where its rows come from."""
    baseline: str
    """Which baseline the window's verdict rests on, and where the reference's rows come from."""


def samples(store: Store, model: str, start_ms: int) -> Compared:
    """Return the rows of a window and of its reference; raises TrimtabError when there are too few.

    A window too short for a sample of its own borrows from its neighbours. The reference is the sample
    of the time of the baseline that the window's verdict rests on, where one is kept, else the oldest
    rows before the window.
    """
    history = verdict_history(store, model, start_ms)
    if not history:
        raise NotFoundError(f"{model} has no closed window that starts at {start_ms} ms.")
    verdict = history[-1].verdict
    end_ms = verdict.window_end_ms
    with store.read() as connection:
        current = sample_between(connection, model, start_ms, end_ms)
        window = f"{_span(start_ms, end_ms)}, verdict {history[-1].id}"
        if len(current) < ROWS_MIN:
            window += "; too few rows of its own are sampled, so those of windows beside it join"
            later = sample_between(connection, model, end_ms, end_ms + REFERENCE_SPAN_MS)
            current += later[: ROWS_WANTED - len(current)]
        if len(current) < ROWS_MIN:  # the newest window has none after it
            earlier = sample_between(connection, model, start_ms - REFERENCE_SPAN_MS, start_ms)
            current = earlier[-(ROWS_WANTED - len(current)) :] + current
        reference, said = _of_baseline(connection, model, verdict.evidence.baseline_id)
        if len(reference) < ROWS_MIN:
            said += "; too few rows of its time are sampled, so the oldest before the window stand for it"
            before = sample_between(connection, model, start_ms - REFERENCE_SPAN_MS, start_ms)
            reference = before[: max(len(before) // 2, ROWS_MIN)]
    for side, rows in (("the window", current), ("the reference", reference)):
        if len(rows) < ROWS_MIN:
            raise TrimtabError(
                f"Only {len(rows)} sampled rows of {side} are kept; a report needs {ROWS_MIN}. "
                "Choose a newer window, or one with more rows."
            )
    return Compared(reference=reference, current=current, window=window, baseline=said)


def _of_baseline(
    connection: Connection, model: str, baseline_id: int | None
) -> tuple[list[SampleRow], str]:
    """Return the sampled rows of a baseline's time, and the baseline's name."""
    if baseline_id is None:
        return [], "none: the verdict was made before the model had one"
    if not has_baseline(connection, baseline_id):
        return [], f"id {baseline_id}, no longer kept"
    row = baseline(connection, baseline_id)
    said = f"№ {row.number} (id {row.id}, from {row.source})"
    if row.from_ms is None or row.to_ms is None:
        return [], said
    rows = sample_between(connection, model, row.from_ms, row.to_ms)
    return rows, f"{said}, {_span(row.from_ms, row.to_ms)}"


def _span(from_ms: int, to_ms: int) -> str:
    begin, end = (dt.datetime.fromtimestamp(ms / 1000, dt.UTC) for ms in (from_ms, to_ms))
    return f"{begin:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC"


def heading(model: str, compared: Compared) -> str:
    """HTML that says at the top of the report what is compared with what."""
    lines = (
        ("Model", model),
        ("Window", f"{compared.window} ({len(compared.current):,} rows)"),
        ("Baseline", f"{compared.baseline} ({len(compared.reference):,} rows)"),
    )
    rows = "".join(f"<div><b>{name}</b> {html.escape(said)}</div>" for name, said in lines)
    return f'<div style="font: 14px/1.6 sans-serif; padding: 16px 24px">{rows}</div>'


def frame(rows: list[SampleRow], contract: Contract) -> Any:
    """Rows as a pandas frame: declared features, prediction, score, latency."""
    import pandas as pd

    columns: dict[str, list[Any]] = {
        name: [row.features.get(name) for row in rows]
        for name, feature in contract.watched.items()
        if not feature.personal
    }
    columns["prediction"] = [row.prediction for row in rows]
    columns["latency_ms"] = [row.latency_ms for row in rows]
    made = pd.DataFrame(columns)
    for name, feature in contract.watched.items():
        if name in made and feature.kind == "number":
            made[name] = pd.to_numeric(made[name], errors="coerce")
    made["latency_ms"] = pd.to_numeric(made["latency_ms"], errors="coerce")
    made["prediction"] = made["prediction"].astype("string")
    return made.dropna(axis="columns", how="all")


def render(reference: Any, current: Any, contract: Contract, top: str, out: Path) -> None:
    """Write Evidently's data drift report, under the heading `top` (HTML)."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    shared = [name for name in reference.columns if name in current.columns]
    kinds = {name: feature.kind for name, feature in contract.watched.items()}
    categories = [name for name in shared if kinds.get(name) == "category" or name == "prediction"]
    numbers = [name for name in shared if name not in categories]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    snapshot = Report([DataDriftPreset()]).run(
        Dataset.from_pandas(current[shared], data_definition=definition),
        Dataset.from_pandas(reference[shared], data_definition=definition),
    )
    before, body, after = snapshot.get_html_str(as_iframe=False).partition("<body>")
    if not body:
        raise TrimtabError("Evidently's page has no <body>: this version of it is not supported.")
    with tempfile.NamedTemporaryFile(
        "w", dir=out.parent, suffix=".part", delete=False, encoding="utf-8"
    ) as part:
        temporary = Path(part.name)
        part.write(before + body + top + after)
    temporary.chmod(0o640)
    temporary.replace(out)  # appears whole or not at all


def main(arguments: list[str]) -> int:
    """Make the report; errors of ours are one line on standard error."""
    model, start_ms, out = arguments
    settings = load().settings
    store = open_store(settings.store.url)
    try:
        rows = models.load_contracts(store)
        if model not in rows:
            raise NotFoundError(f"There is no model {model!r}. `trimtab model list` names them.")
        contract = rows[model].contract
        compared = samples(store, model, int(start_ms))
        render(
            frame(compared.reference, contract),
            frame(compared.current, contract),
            contract,
            heading(model, compared),
            Path(out),
        )
    except TrimtabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
