"""`python -m trimtab.api.report_worker MODEL START_MS OUT`: one Evidently report, then the end.

Evidently takes seconds to import and a core while it works, so it runs here and never in the API.
Settings come from the environment. Personal features never enter a row sample, hence no report.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from trimtab.contracts.model import Contract
from trimtab.errors import NotFoundError, TrimtabError
from trimtab.settings import load
from trimtab.store import models
from trimtab.store.baselines import active_baseline
from trimtab.store.engine import Store, open_store
from trimtab.store.samples import SampleRow, sample_between
from trimtab.store.verdicts import verdict_history

ROWS_MIN = 30
"""Fewer sampled rows on either side say nothing."""
ROWS_WANTED = 300
"""A short window holds few sampled rows; those of the windows after it join up to this many."""
REFERENCE_SPAN_MS = 7 * 86_400_000


def samples(store: Store, model: str, start_ms: int) -> tuple[list[SampleRow], list[SampleRow]]:
    """Return (reference, current) rows of a window; raises TrimtabError when there are too few.

    A window too short for a sample of its own borrows from its neighbours. The reference is the sample of the baseline's time where one is kept, else the oldest rows before
    the window.
    """
    history = verdict_history(store, model, start_ms)
    if not history:
        raise NotFoundError(f"{model} has no closed window that starts at {start_ms} ms.")
    baseline = active_baseline(store, model)
    with store.read() as connection:
        end_ms = history[-1].verdict.window_end_ms
        current = sample_between(connection, model, start_ms, end_ms)
        if len(current) < ROWS_MIN:
            later = sample_between(connection, model, end_ms, end_ms + REFERENCE_SPAN_MS)
            current += later[: ROWS_WANTED - len(current)]
        if len(current) < ROWS_MIN:  # the newest window has none after it
            earlier = sample_between(connection, model, start_ms - REFERENCE_SPAN_MS, start_ms)
            current = earlier[-(ROWS_WANTED - len(current)) :] + current
        reference: list[SampleRow] = []
        if baseline and baseline.from_ms is not None and baseline.to_ms is not None:
            reference = sample_between(connection, model, baseline.from_ms, baseline.to_ms)
        if len(reference) < ROWS_MIN:
            before = sample_between(connection, model, start_ms - REFERENCE_SPAN_MS, start_ms)
            reference = before[: max(len(before) // 2, ROWS_MIN)]
    for side, rows in (("the window", current), ("the reference", reference)):
        if len(rows) < ROWS_MIN:
            raise TrimtabError(
                f"Only {len(rows)} sampled rows of {side} are kept; a report needs {ROWS_MIN}. "
                "Choose a newer window, or one with more rows."
            )
    return reference, current


def frame(rows: list[SampleRow], contract: Contract) -> Any:
    """Rows as a pandas frame: declared features, prediction, score, latency."""
    import pandas as pd

    columns: dict[str, list[Any]] = {
        name: [row.features.get(name) for row in rows]
        for name, feature in contract.features.items()
        if not feature.personal
    }
    columns["prediction"] = [row.prediction for row in rows]
    columns["latency_ms"] = [row.latency_ms for row in rows]
    made = pd.DataFrame(columns)
    for name, feature in contract.features.items():
        if name in made and feature.kind == "number":
            made[name] = pd.to_numeric(made[name], errors="coerce")
    made["latency_ms"] = pd.to_numeric(made["latency_ms"], errors="coerce")
    made["prediction"] = made["prediction"].astype("string")
    return made.dropna(axis="columns", how="all")


def render(reference: Any, current: Any, contract: Contract, out: Path) -> None:
    """Write Evidently's data drift report."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    shared = [name for name in reference.columns if name in current.columns]
    kinds = {name: feature.kind for name, feature in contract.features.items()}
    categories = [name for name in shared if kinds.get(name) == "category" or name == "prediction"]
    numbers = [name for name in shared if name not in categories]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories)
    snapshot = Report([DataDriftPreset()]).run(
        Dataset.from_pandas(current[shared], data_definition=definition),
        Dataset.from_pandas(reference[shared], data_definition=definition),
    )
    with tempfile.NamedTemporaryFile(dir=out.parent, suffix=".part", delete=False) as part:
        temporary = Path(part.name)
    snapshot.save_html(str(temporary))
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
        reference, current = samples(store, model, int(start_ms))
        render(frame(reference, contract), frame(current, contract), contract, Path(out))
    except TrimtabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        store.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
