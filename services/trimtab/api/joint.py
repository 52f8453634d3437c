"""The joint distribution of a window's sampled rows against the baseline's: one figure, on demand."""

import hashlib

from msgspec import Struct

from trimtab.api.report_worker import ROWS_MIN, samples
from trimtab.errors import TrimtabError
from trimtab.stats.energy import energy_test, scores_of
from trimtab.stats.joint import joint_columns
from trimtab.store.engine import Store
from trimtab.store.models import contract_at, cuts_at
from trimtab.store.samples import SampleRow
from trimtab.store.verdicts import verdict_history

ROWS_MOST = 500
"""Rows of each side that are compared, those of lowest hash: the cost grows with their square."""


class JointFigure(Struct, frozen=True, kw_only=True):
    """Whether a window's rows and the baseline's could be of one joint distribution. It describes, and alarms nothing."""

    model: str
    window_start_ms: int
    rows: int
    reference_rows: int
    columns: list[str]
    """Features, and `feature=value` of categories, that are compared together."""
    energy: float
    """Energy coefficient: 0 equal, 1 apart."""
    p_value: float
    """Of relabelling the pooled rows; one of 20 unchanged windows has less than 0.05, more where hours differ."""
    permutations: int
    window: str
    baseline: str
    needs: str


NEEDS = (
    f"Up to {ROWS_MOST} sampled rows of each side, {ROWS_MIN} at least; samples are kept for retention.samples_days. "
    "The detector, not this figure, alarms on relations of columns."
)


def joint_figure(store: Store, model: str, start_ms: int) -> JointFigure:
    """Compare a window's sampled rows with the baseline's. Raises NotFoundError, or TrimtabError for too few rows."""
    compared = samples(store, model, start_ms)
    evidence = verdict_history(store, model, start_ms)[-1].verdict.evidence
    contract = contract_at(store, model, evidence.contract_revision).contract
    with store.read() as connection:
        cuts = None if evidence.cuts_id is None else cuts_at(connection, model, evidence.cuts_id)
    columns = [] if cuts is None else list(joint_columns(contract.features, cuts))
    if len(columns) < 2:
        raise TrimtabError(
            f"{model} has {len(columns)} columns that are sampled and counted; a joint distribution takes two."
        )
    current, reference = _lowest(compared.current), _lowest(compared.reference)
    pooled: dict[str, list[object]] = {
        column.feature: [row.features.get(column.feature) for row in (*current, *reference)]
        for column in columns
    }
    scores = scores_of(columns, pooled)
    seed = int.from_bytes(hashlib.sha256(f"{model}:{start_ms}".encode()).digest()[:8], "big")
    found = energy_test(scores[: len(current)], scores[len(current) :], seed)
    return JointFigure(
        model=model,
        window_start_ms=start_ms,
        rows=len(current),
        reference_rows=len(reference),
        columns=[column.name for column in columns],
        energy=found.coefficient,
        p_value=found.p_value,
        permutations=found.permutations,
        window=compared.window,
        baseline=compared.baseline,
        needs=NEEDS,
    )


def _lowest(rows: list[SampleRow]) -> list[SampleRow]:
    return sorted(rows, key=lambda row: row.hash)[:ROWS_MOST]
