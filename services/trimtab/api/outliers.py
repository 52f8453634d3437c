"""Outliers among a window's sampled rows, each with what makes it one: examples for whoever looks into an alarm."""

from msgspec import Struct

from trimtab.errors import NotFoundError
from trimtab.stats.coded import Coded
from trimtab.stats.cuts import CategoryCuts, Floats, ModelCuts, numeric_column
from trimtab.stats.outliers import MOST_EXPLAINED, Categories, Numbers, Why, explain
from trimtab.stats.surprise import UNIT_NATS
from trimtab.store.engine import Store
from trimtab.store.models import cuts_at
from trimtab.store.samples import SampleRow, sample_between
from trimtab.store.verdicts import verdict_history


class OutlierRow(Struct, frozen=True, kw_only=True):
    """A sampled row that is an outlier."""

    id: str
    time_ms: int
    version: str
    score: float
    """Nats; an outlier's is above the threshold."""
    why: list[Why]
    """Its most surprising features, at most three."""


class OutlierRows(Struct, frozen=True, kw_only=True):
    """Outliers among the sampled rows of a window, the highest scores first."""

    model: str
    window_start_ms: int
    outlier_rate: float | None
    """Of all rows of the window, sampled or not; None where none can be told."""
    sampled_rows: int
    threshold: float | None
    """Nats; None where no row can be told for an outlier."""
    outliers: list[OutlierRow]
    needs: str


NEEDS = (
    f"Sampled rows, up to 500 an hour, kept for retention.samples_days; {MOST_EXPLAINED} outliers at most. Samples hold no "
    "personal features, so a row that is an outlier for these alone is not among them."
)
NO_OUTLIERS = (
    "No row of this window can be told for an outlier: its cuts come from too few rows or features."
)


def outlier_rows(store: Store, model: str, start_ms: int) -> OutlierRows:
    """Return the outliers among a window's sampled rows. Raises NotFoundError."""
    history = verdict_history(store, model, start_ms)
    if not history:
        raise NotFoundError(f"{model} has no closed window that starts at {start_ms} ms.")
    verdict = history[-1].verdict
    cuts_id = verdict.evidence.cuts_id
    with store.read() as connection:
        cuts = None if cuts_id is None else cuts_at(connection, model, cuts_id)
        rows = sample_between(connection, model, start_ms, verdict.window_end_ms)
    found: list[OutlierRow] = []
    threshold = None
    if cuts is not None and cuts.outliers is not None and cuts.outliers.threshold is not None:
        threshold = cuts.outliers.threshold * UNIT_NATS
        for one in explain(cuts, *_columns(cuts, rows), len(rows)):
            row = rows[one.row]
            found.append(
                OutlierRow(
                    id=row.id,
                    time_ms=row.time_ms,
                    version=row.version,
                    score=one.score,
                    why=list(one.why),
                )
            )
    return OutlierRows(
        model=model,
        window_start_ms=start_ms,
        outlier_rate=verdict.figures.get("abnormal", {}).get("outlier_rate"),
        sampled_rows=len(rows),
        threshold=threshold,
        outliers=found,
        needs=NO_OUTLIERS if threshold is None else NEEDS,
    )


def _columns(cuts: ModelCuts, rows: list[SampleRow]) -> tuple[Numbers, Categories]:
    """Return the columns that samples hold. A feature of no row is personal: it has none."""
    numbers: dict[str, Floats] = {}
    categories: dict[str, Coded] = {}
    for name, cut in cuts.feature.items():
        if not any(name in row.features for row in rows):
            continue
        values = [row.features.get(name) for row in rows]
        if isinstance(cut, CategoryCuts):
            categories[name] = Coded.of_keys(values)
        else:
            numbers[name] = numeric_column(values)[0]
    return numbers, categories
