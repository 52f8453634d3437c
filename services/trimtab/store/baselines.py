"""Baselines: numbered, immutable reference counts under given cuts; one of a model is active.

From a file (`fit_from_file`, atomic: cuts and baseline or nothing), from traffic (the evaluator gathers
the first windows in a draft, which becomes a baseline when it holds as many as the contract wants), and
by re-basing on stored windows (`rebase`). Going back is `restore`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, delete, func, insert, select, update

from trimtab.contracts.model import Contract
from trimtab.detect.baseline import merge_states, usable
from trimtab.detect.observed import Observed
from trimtab.errors import NotFoundError, TrimtabError
from trimtab.stats.aggregate import PaneState, ResourceState
from trimtab.stats.coded import Coded
from trimtab.stats.cuts import (
    Cuts,
    ModelCuts,
    build_category_cuts,
    build_numeric_cuts,
    model_cuts,
    numeric_column,
)
from trimtab.stats.outliers import MOST_HELD_ROWS
from trimtab.stats.outliers import fit as fit_outliers
from trimtab.store.engine import Store
from trimtab.store.labelled_scores import FILE, counts_of, labelled_scores_note
from trimtab.store.models import active_cuts, current_contract, save_cuts
from trimtab.store.performance import VersionPerformance
from trimtab.store.reference_file import (
    observe_reference,
    read_reference,
    reference_joint,
    reference_labels,
    reference_performance,
    segment_labels,
)
from trimtab.store.reference_labels import keep_labels
from trimtab.store.tables import baseline_windows, baselines, contracts, models
from trimtab.windows.panes import start_of

DRAFT = "traffic, calibrating"
"""Source of the one mutable row a model may have: the baseline that traffic is still filling."""
MOST_WINDOWS = 1_000
"""A longer range gives its newest windows: more would tell nothing new about their spread."""
LEAST_WINDOWS = 12
ACCEPTED = "accepted"
"""Source of a baseline that a person has made of changed traffic."""
"""Fewer windows than this tell too little about the spread of windows to re-base on."""


class BaselineRow(Struct, frozen=True, kw_only=True):
    """One baseline. `number` counts from 1 within the model; 0 is the draft."""

    id: int
    model: str
    number: int
    cuts_id: str
    state: PaneState
    windows: int
    rows: int
    from_ms: int | None
    to_ms: int | None
    source: str
    notes: dict[str, Any]
    active: bool
    created_ms: int


def active_baseline(source: Store | Connection, model: str) -> BaselineRow | None:
    """Return the baseline that new windows are compared with; None while there is none."""
    found = _select(source, (baselines.c.model == model) & baselines.c.active)
    return found[0] if found else None


def first_baseline(connection: Connection, model: str) -> BaselineRow | None:
    """Return a model's oldest baseline under its active one's cuts; None while there is none."""
    c = baselines.c
    cuts_id = select(c.cuts_id).where(c.model == model, c.active).scalar_subquery()
    oldest = connection.scalar(
        select(func.min(c.id)).where(c.model == model, c.cuts_id == cuts_id, c.source != DRAFT)
    )
    return None if oldest is None else baseline(connection, int(oldest))


def active_baseline_id(connection: Connection, model: str) -> int | None:
    """Return the active baseline's id without its state."""
    found: int | None = connection.scalar(
        select(baselines.c.id).where(baselines.c.model == model, baselines.c.active)
    )
    return found


def is_undated(connection: Connection, baseline_id: int) -> bool:
    """Whether a baseline is a file without times: good for figures, not for what windows usually do."""
    known = connection.scalar(select(baselines.c.from_ms).where(baselines.c.id == baseline_id))
    return known is None


def detector_baseline_id(connection: Connection, model: str) -> int | None:
    """Return the baseline that the detector is fitted on; None while it is still to be gathered.

    The active one; where that is a file without times, the first windows of traffic since it was fitted.
    """
    active = active_baseline_id(connection, model)
    if active is None or not is_undated(connection, active):
        return active
    cuts_id = select(baselines.c.cuts_id).where(baselines.c.id == active).scalar_subquery()
    found: int | None = connection.scalar(
        select(func.max(baselines.c.id)).where(
            baselines.c.model == model,
            baselines.c.source == "traffic",
            baselines.c.id > active,
            baselines.c.cuts_id == cuts_id,
        )
    )
    return found


def baseline(source: Store | Connection, baseline_id: int) -> BaselineRow:
    """Return one baseline. Raises NotFoundError."""
    found = _select(source, baselines.c.id == baseline_id)
    if not found:
        raise NotFoundError(
            f"There is no baseline {baseline_id}. `trimtab baseline list MODEL` names them."
        )
    return found[0]


def has_baseline(connection: Connection, baseline_id: int) -> bool:
    """Whether a baseline is there, without reading its counts."""
    found = connection.scalar(select(baselines.c.id).where(baselines.c.id == baseline_id))
    return found is not None


def baselines_of(source: Store | Connection, model: str) -> list[BaselineRow]:
    """Return a model's baselines, oldest first; the draft (number 0), if any, among them."""
    return _select(source, baselines.c.model == model)


def observed_windows(connection: Connection, baseline_id: int) -> list[tuple[int, Observed]]:
    """Return (window start in ms, all that was counted) of a baseline's windows, oldest first."""
    rows = connection.execute(
        select(baseline_windows)
        .where(baseline_windows.c.baseline_id == baseline_id)
        .order_by(baseline_windows.c.window_start_ms)
    ).all()
    return [
        (
            row.window_start_ms,
            Observed(state=PaneState.from_bytes(bytes(row.state)))
            if row.beside is None
            else Observed.from_bytes(bytes(row.state), bytes(row.beside)),
        )
        for row in rows
    ]


def window_starts(connection: Connection, baseline_id: int) -> list[int]:
    """Return the starts of the windows that a baseline was made of, oldest first."""
    return list(
        connection.scalars(
            select(baseline_windows.c.window_start_ms)
            .where(baseline_windows.c.baseline_id == baseline_id)
            .order_by(baseline_windows.c.window_start_ms)
        )
    )


def state_of_windows(
    connection: Connection, baseline_id: int, starts_ms: Sequence[int]
) -> PaneState | None:
    """Return the merged counts of some of a baseline's windows; None of none."""
    found = connection.scalars(
        select(baseline_windows.c.state).where(
            baseline_windows.c.baseline_id == baseline_id,
            baseline_windows.c.window_start_ms.in_(starts_ms),
        )
    )
    return merge_states(PaneState.from_bytes(bytes(state)) for state in found)


def gauges_of(connection: Connection, baseline_id: int) -> ResourceState:
    """Return the samples of resources in all of a baseline's windows."""
    found = ResourceState()
    query = select(baseline_windows.c.beside).where(
        baseline_windows.c.baseline_id == baseline_id, baseline_windows.c.beside.is_not(None)
    )
    for beside in connection.scalars(query):
        found = found.merge(Observed.resources_from(bytes(beside)))
    return found


def windows_of(
    connection: Connection, baseline_id: int, limit: int | None = None
) -> list[tuple[int, PaneState]]:
    """Return (window start in ms, counts) of the windows that a baseline was made of, oldest first."""
    rows = connection.execute(
        select(baseline_windows.c.window_start_ms, baseline_windows.c.state)
        .where(baseline_windows.c.baseline_id == baseline_id)
        .order_by(baseline_windows.c.window_start_ms)
        .limit(limit)
    ).all()
    return [(row.window_start_ms, PaneState.from_bytes(bytes(row.state))) for row in rows]


def first_traffic_windows(
    connection: Connection, model: str, count: int
) -> list[tuple[int, PaneState]]:
    """Return the first windows of the newest baseline from traffic, finished or still a draft."""
    baseline_id = connection.scalar(
        select(baselines.c.id)
        .where(baselines.c.model == model, baselines.c.source.in_((DRAFT, "traffic")))
        .order_by(baselines.c.id.desc())
        .limit(1)
    )
    return [] if baseline_id is None else windows_of(connection, int(baseline_id), count)


def _select(source: Store | Connection, condition: Any) -> list[BaselineRow]:
    query = select(baselines).where(condition).order_by(baselines.c.id)
    if isinstance(source, Connection):
        return [_row(row) for row in source.execute(query).mappings()]
    with source.read() as connection:
        return [_row(row) for row in connection.execute(query).mappings()]


def _row(row: Any) -> BaselineRow:
    rest = {key: row[key] for key in row if key not in ("state", "body")}
    return BaselineRow(
        **rest, state=_state(bytes(row["state"])), notes=msgspec.json.decode(row["body"])
    )


@lru_cache(maxsize=64)  # immutable, asked for at every evaluation, and about 70 features long
def _state(body: bytes) -> PaneState:
    return PaneState.from_bytes(body)


# --- cuts -------------------------------------------------------------------------------------------


def build_cuts(
    contract: Contract,
    features: Mapping[str, Sequence[object]],
    prediction: Sequence[object] | None = None,
    score: Sequence[object] | None = None,
) -> ModelCuts:
    """Choose the cuts of a model from reference columns of decoded JSON values, each of n rows.

    A feature without a column gets cuts of one bin. Predictions of a classifier are categories (the
    declared classes, else those seen), of a regression numbers; scores are numbers. With them comes what makes a
    row an outlier.
    """
    rows = max(map(len, features.values()), default=0)
    step = -(-rows // MOST_HELD_ROWS) or 1
    named: list[tuple[str, Cuts]] = []
    numbers: dict[str, npt.NDArray[np.float64]] = {}
    categories: dict[str, Coded] = {}
    for name, feature in contract.watched.items():
        values = features.get(name, ())
        if feature.kind == "category":
            named.append((name, build_category_cuts(values, feature.values or None)))
            if len(values):
                categories[name] = Coded.of_keys(values[::step])
        else:
            column = numeric_column(values)[0]
            named.append((name, build_numeric_cuts(column)))
            if len(values):
                numbers[name] = column[::step]
    # Attributions are left out: they say again what their features say, and differ with every version.
    scored = {name: cut for name, cut in named if name in contract.features}
    outliers = fit_outliers(scored, numbers, categories, -(-rows // step))
    outputs: list[tuple[str, Cuts]] = []
    if prediction is not None and any(value is not None for value in prediction):
        if contract.task == "regression":
            outputs.append(("prediction", build_numeric_cuts(numeric_column(prediction)[0])))
        else:
            classes = contract.prediction.classes or None
            outputs.append(("prediction", build_category_cuts(prediction, classes)))
    if score is not None and any(value is not None for value in score):
        outputs.append(("score", build_numeric_cuts(numeric_column(score)[0])))
    return model_cuts(named, outputs, outliers)


def cuts_from_rows(
    connection: Connection,
    model: str,
    columns: Mapping[str, Sequence[object]],
    now_ms: int,
    *,
    prediction: Sequence[object] | None = None,
    score: Sequence[object] | None = None,
) -> ModelCuts:
    """Make the model's cuts from the first rows of its traffic, inside the caller's transaction.

    `columns` are the features' values by name, `prediction` and `score` what the model answered.
    """
    built = build_cuts(_contract(connection, model), columns, prediction, score)
    save_cuts(connection, model, built, "traffic", now_ms)
    return built


def _contract(connection: Connection, model: str) -> Contract:
    body = connection.scalar(
        select(contracts.c.body)
        .join(
            models,
            (models.c.name == contracts.c.model)
            & (models.c.contract_revision == contracts.c.revision),
        )
        .where(models.c.name == model)
    )
    if body is None:
        raise NotFoundError(f"There is no model {model!r}. `trimtab model apply FILE` adds it.")
    return msgspec.json.decode(body, type=Contract)


# --- making baselines -------------------------------------------------------------------------------


def add_baseline(
    connection: Connection,
    model: str,
    windows: Sequence[tuple[int, Observed]],
    length_ms: int,
    source: str,
    notes: Mapping[str, Any],
    now_ms: int,
    *,
    dated: bool = True,
) -> int:
    """Insert a baseline of these windows and make it the active one; return its id.

    `dated` is false when the windows' starts mean nothing (a file without a time column).
    """
    merged = merge_states(one.state for _, one in windows)
    if merged is None:
        raise TrimtabError("A baseline needs at least one window with rows; give a longer range.")
    number = connection.scalar(
        select(func.coalesce(func.max(baselines.c.number), 0) + 1).where(baselines.c.model == model)
    )
    baseline_id = connection.execute(
        insert(baselines)
        .values(
            model=model,
            number=number,
            cuts_id=merged.cuts_id,
            state=merged.to_bytes(),
            windows=len(windows),
            rows=merged.rows,
            from_ms=min(start for start, _ in windows) if dated else None,
            to_ms=max(start for start, _ in windows) + length_ms if dated else None,
            source=source,
            body=msgspec.json.encode(dict(notes)).decode(),
            active=False,
            created_ms=now_ms,
        )
        .returning(baselines.c.id)
    ).scalar_one()
    connection.execute(
        insert(baseline_windows),
        [
            {
                "baseline_id": baseline_id,
                "window_start_ms": start,
                "state": one.state.to_bytes(),
                "beside": one.beside_bytes(),
                "rows": one.state.rows,
            }
            for start, one in windows
        ],
    )
    restore(connection, model, int(baseline_id))
    return int(baseline_id)


def restore(connection: Connection, model: str, baseline_id: int) -> None:
    """Make an earlier baseline the active one again. Raises NotFoundError when it is not the model's."""
    connection.execute(
        update(baselines)
        .where(baselines.c.model == model, baselines.c.active, baselines.c.id != baseline_id)
        .values(active=False)
    )
    done = connection.execute(
        update(baselines)
        .where(
            baselines.c.model == model, baselines.c.id == baseline_id, baselines.c.source != DRAFT
        )
        .values(active=True)
    )
    if not done.rowcount:
        raise NotFoundError(
            f"{model!r} has no baseline {baseline_id}. `trimtab baseline list {model}` names them."
        )


def rebase(
    store: Store,
    model: str,
    from_ms: int,
    to_ms: int,
    source: str,
    now_ms: int,
    *,
    version: str | None = None,
    least_windows: int = LEAST_WINDOWS,
    fence: Callable[[Connection], object] = lambda _connection: None,
) -> int:
    """Make a baseline of the stored windows in [from_ms, to_ms) under the active cuts; return its id.

    A source that names its cause, such as "promotion:ROLLOUT", gives one baseline however often it is
    asked for. With `version` the answers are those of that version alone: features are the same whoever is asked,
    but what an old champion answered is no measure of the new one. `fence` is called first in the transaction
    that writes, and raises where the cause no longer holds. Raises TrimtabError when fewer than `least_windows` windows hold rows.
    """
    with store.read() as connection:  # states are read without holding the writers up
        contract = _contract(connection, model)
        windows = _stored_windows(connection, model, contract, from_ms, to_ms, version)
    with store.write() as connection:
        fence(connection)
        if ":" in source:
            known = connection.scalar(
                select(baselines.c.id).where(
                    baselines.c.model == model, baselines.c.source == source
                )
            )
            if known is not None:
                restore(connection, model, int(known))
                return int(known)
        if len(windows) < least_windows:
            raise TrimtabError(
                f"{len(windows)} stored windows of {model!r} hold enough rows in this range, and a "
                f"new baseline needs {least_windows}. Wait, or choose a longer range."
            )
        notes = {"provisional": len(windows) < contract.reference.windows}
        return add_baseline(
            connection, model, windows, contract.windows.length_ms, source, notes, now_ms
        )


def accept(store: Store, model: str, from_ms: int | None, now_ms: int) -> int:
    """Take the judged windows since `from_ms` as what is usual from now on; return the new baseline's id.

    None: since the first window of the detector's oldest open alert. Features keep their cuts, so that there is no
    blind period. Raises NotFoundError for a model that is not watched, TrimtabError for too few windows, or when no
    alert says since when.
    """
    from trimtab.store.alerts import open_alerts
    from trimtab.store.verdicts import progress_of

    with store.read() as connection:
        _contract(connection, model)  # one that is not watched is told as such
        progress = progress_of(connection, model)
        opened = [
            alert
            for alert in open_alerts(connection, model)
            if alert.condition.startswith("detector:")
        ]
    if from_ms is None:
        if not opened:
            raise TrimtabError(
                f"No alert of the detector is open for {model!r} to say since when traffic has changed. "
                "Name the time: --since 2026-01-31T12:00:00Z."
            )
        from_ms = min(alert.window_start_ms for alert in opened)
    if progress is None or progress.evaluated_to_ms <= from_ms:
        raise TrimtabError(f"No window of {model!r} since then has closed yet. Wait for it.")
    return rebase(store, model, from_ms, progress.evaluated_to_ms, ACCEPTED, now_ms)


def _stored_windows(
    connection: Connection,
    model: str,
    contract: Contract,
    from_ms: int,
    to_ms: int,
    version: str | None,
) -> list[tuple[int, Observed]]:
    from trimtab.store.resources import window_gauges
    from trimtab.store.samples import window_joint
    from trimtab.store.window_state import segment_states, window_state

    cuts = active_cuts(connection, model)
    length_ms = contract.windows.length_ms
    windows = []
    first_ms = start_of(from_ms + length_ms - 1, length_ms)
    last_ms = start_of(to_ms, length_ms)
    for start_ms in range(max(first_ms, last_ms - MOST_WINDOWS * length_ms), last_ms, length_ms):
        found = window_state(connection, model, start_ms, start_ms + length_ms)
        state = found.state
        if state is None or cuts is None or state.cuts_id != cuts.cuts_id:
            continue
        if found.coarser is not None or found.other_cuts_rows:  # what is left is not the window
            continue
        if usable(state, contract.windows.min_rows):
            if version is not None:
                answered = found.by_version.get(version)
                state = replace(state, outputs={} if answered is None else answered.outputs)
            end_ms = start_ms + length_ms
            one = Observed(
                state=state,
                resources=window_gauges(connection, model, start_ms, end_ms),
                segments=segment_states(connection, contract, start_ms, end_ms, cuts.cuts_id),
                joint=window_joint(connection, contract, cuts, start_ms, end_ms),
            )
            windows.append((start_ms, one))
    return windows


# --- from traffic -----------------------------------------------------------------------------------


def draft(connection: Connection, model: str, cuts_id: str) -> BaselineRow | None:
    """Return the baseline that traffic is still filling under these cuts."""
    found = _select(
        connection,
        (baselines.c.model == model)
        & (baselines.c.source == DRAFT)
        & (baselines.c.cuts_id == cuts_id),
    )
    return found[0] if found else None


def extend_draft(
    connection: Connection,
    model: str,
    windows: Sequence[tuple[int, Observed]],
    wanted: int,
    length_ms: int,
    now_ms: int,
) -> int | None:
    """Add closed windows to the draft; the id of the finished baseline when it has `wanted` of them.

    Windows of other cuts than the draft's start a new one; further windows than wanted are left out.
    """
    for start_ms, one in windows:
        state = one.state
        row = draft(connection, model, state.cuts_id) or _new_draft(
            connection, model, state.cuts_id, now_ms
        )
        if row.windows >= wanted or (row.to_ms is not None and start_ms < row.to_ms):
            continue
        connection.execute(
            insert(baseline_windows).values(
                baseline_id=row.id,
                window_start_ms=start_ms,
                state=state.to_bytes(),
                beside=one.beside_bytes(),
                rows=state.rows,
            )
        )
        merged = row.state.merge(state)
        connection.execute(
            update(baselines)
            .where(baselines.c.id == row.id)
            .values(
                state=merged.to_bytes(),
                windows=row.windows + 1,
                rows=merged.rows,
                from_ms=start_ms if row.from_ms is None else row.from_ms,
                to_ms=start_ms + length_ms,
            )
        )
        if row.windows + 1 >= wanted:
            _finish_draft(connection, model, row.id)
            return row.id
    return None


def _new_draft(connection: Connection, model: str, cuts_id: str, now_ms: int) -> BaselineRow:
    """Insert an empty draft; drafts under other cuts are of no use any more and go."""
    old = connection.scalars(
        select(baselines.c.id).where(baselines.c.model == model, baselines.c.source == DRAFT)
    ).all()
    if old:
        connection.execute(delete(baseline_windows).where(baseline_windows.c.baseline_id.in_(old)))
        connection.execute(delete(baselines).where(baselines.c.id.in_(old)))
    connection.execute(
        insert(baselines).values(
            model=model,
            number=0,
            cuts_id=cuts_id,
            state=PaneState(cuts_id).to_bytes(),
            windows=0,
            rows=0,
            source=DRAFT,
            body="{}",
            active=False,
            created_ms=now_ms,
        )
    )
    row = draft(connection, model, cuts_id)
    assert row is not None  # inserted just above, in this transaction
    return row


def _finish_draft(connection: Connection, model: str, baseline_id: int) -> None:
    """Number the draft: from now on it is immutable, and new windows are compared with it.

    Beside a file it is for the detector alone: figures stay those against the file.
    """
    number = connection.scalar(
        select(func.max(baselines.c.number) + 1).where(baselines.c.model == model)
    )
    connection.execute(
        update(baselines)
        .where(baselines.c.id == baseline_id)
        .values(number=number, source="traffic")
    )
    if active_baseline_id(connection, model) is None:
        restore(connection, model, baseline_id)


# --- from a file ------------------------------------------------------------------------------------


def fit_from_file(
    store: Store,
    model: str,
    path: str,
    *,
    time_column: str | None = None,
    prediction_column: str | None = None,
    score_column: str | None = None,
    label_column: str | None = None,
    now_ms: int,
) -> int:
    """Make cuts and a baseline from a CSV or Parquet file, in one transaction; return the baseline's id.

    With `time_column` every window of the contract's length becomes a reference window; without, the
    file is one window, good for figures only. With `label_column` the reference's quality is noted
    beside it. Raises ReferenceFileError that names file, line and column, and nothing is stored.
    """
    row = current_contract(store, model)
    if row is None:
        raise NotFoundError(f"There is no model {model!r}. `trimtab model apply FILE` adds it.")
    contract = row.contract
    table = read_reference(
        path, contract, time_column, prediction_column, score_column, label_column
    )
    built = build_cuts(contract, table.features, table.prediction, table.score)
    length_ms = contract.windows.length_ms
    windows = [
        (
            start_ms,
            Observed(
                state=observe_reference(built, contract, table, rows),
                joint=reference_joint(built, contract, table, rows),
            ),
        )
        for start_ms, rows in table.windows(length_ms)
    ]
    notes: dict[str, Any] = {"file": path, "rows": table.rows}
    joined: dict[str, VersionPerformance] = {}
    if table.label is not None and table.prediction is not None:
        labelled = reference_labels(contract, table)
        answered = sum(answer is not None for answer in table.prediction)
        joined = {FILE: VersionPerformance(labelled, labelled.rows + labelled.unusable, answered)}
        notes["performance"] = reference_performance(contract, labelled)
        if labelled.scored:
            segments = {
                name: counts_of(state, contract)
                for name, state in segment_labels(contract, table).items()
            }
            notes |= labelled_scores_note(contract, {FILE: labelled}, {FILE: segments})
    source = f"file {path.rsplit('/', 1)[-1]}"
    with store.write() as connection:
        save_cuts(connection, model, built, source, now_ms)
        made = add_baseline(
            connection,
            model,
            windows,
            length_ms,
            source,
            notes,
            now_ms,
            dated=time_column is not None,
        )
        if joined:
            keep_labels(connection, made, joined)
    return made
