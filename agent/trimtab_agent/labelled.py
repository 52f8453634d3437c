"""What the archive's labelled rows say about a change: rows of the champion before its onset and since.

Read aside (`jobs`), since it takes seconds; pure tests on arrays are in `trimtab.detect.label_signals`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from trimtab.archive.tables import FEATURE_PREFIX
from trimtab.contracts.model import Contract, Feature
from trimtab.detect.label_signals import (
    Coming,
    LabelledRows,
    LabelSignals,
    Source,
    label_pipeline,
    label_signals,
)
from trimtab.monitor.label_columns import label_value
from trimtab.stats.cuts import build_numeric_cuts
from trimtab.store.archive import ArchiveFile, files_of
from trimtab.store.engine import Store
from trimtab_agent.data import LABELS_LATER_MS, current_labels, feature_values, read_archived

MOST_ROWS_READ = 100_000
"""Archived rows per side that are looked at; of more, every so-manieth file."""
MOST_FEATURES = 40
"""Of more, derived columns come before inputs: descriptors say more of an image than its pixels."""
BINS = 32
MOST_CATEGORIES = 20
OTHER = "other"

Ints = npt.NDArray[np.int64]


class Side(Struct, frozen=True):
    """Archived rows of one side, labelled or not, n each."""

    ids: tuple[str, ...]
    time_ms: Ints
    columns: dict[str, Any]
    """float64 with NaN, or objects: category texts and None; shape (n,)."""
    score: npt.NDArray[np.float64]
    """Score of the positive class; NaN where none is given, shape (n,)."""
    answer: npt.NDArray[np.object_]
    """Predicted class as text, None where none is given, shape (n,)."""

    def take(self, rows: npt.NDArray[np.intp]) -> "Side":
        """Return some of the rows."""
        return Side(
            tuple(self.ids[row] for row in rows.tolist()),
            self.time_ms[rows],
            {name: column[rows] for name, column in self.columns.items()},
            self.score[rows],
            self.answer[rows],
        )


def read_label_signals(
    store: Store, contract: Contract, version: str, *, since_ms: int, onset_ms: int, now_ms: int
) -> LabelSignals | None:
    """Compare a version's labelled rows since the onset with those in [since, onset).

    None where the archive holds too few of them, or the task is a regression: S6 to S8 are about classes.

    Raises:
        DataError: a file of the archive is missing or altered.

    """
    if contract.task == "regression" or onset_ms <= since_ms:
        return None
    features = _watched(contract)
    with store.read() as connection:
        files = [
            files_of(connection, contract.name, "inference", start, end, contract.source.topics)
            for start, end in ((since_ms, onset_ms), (onset_ms, now_ms))
        ]
    old = _side(_spread(files[0], newest=True), contract, features, version, since_ms, onset_ms)
    new = _side(_spread(files[1]), contract, features, version, onset_ms, now_ms)
    if old is None or new is None:
        return None
    from_ms = int(min(old.time_ms.min(), new.time_ms.min()))
    with store.read() as connection:
        labels = files_of(connection, contract.name, "label", from_ms, now_ms + LABELS_LATER_MS)
    tables = [read_archived(file) for file in labels]
    truth = current_labels(tables, contract, now_ms, {*old.ids, *new.ids})
    return _compared(contract, features, old, new, truth, _received(tables), onset_ms, now_ms)


def _watched(contract: Contract) -> dict[str, Feature]:
    found = list(contract.features.items())
    if len(found) > MOST_FEATURES:
        found = sorted(found, key=lambda named: named[1].input)[:MOST_FEATURES]
    return dict(found)


def _spread(files: Sequence[ArchiveFile], *, newest: bool = False) -> list[ArchiveFile]:
    """Files of about `MOST_ROWS_READ` rows: the newest ones, or spread evenly over all."""
    if newest:
        kept: list[ArchiveFile] = []
        rows = 0
        for file in sorted(files, key=lambda file: -file.max_time_ms):
            if rows >= MOST_ROWS_READ:
                break
            kept.append(file)
            rows += file.rows
        return kept
    step = max(1, -(-sum(file.rows for file in files) // MOST_ROWS_READ))
    return list(files[::step])


def _side(
    files: Sequence[ArchiveFile],
    contract: Contract,
    features: dict[str, Feature],
    version: str,
    from_ms: int,
    to_ms: int,
) -> Side | None:
    """A version's rows in [from, to), each id once, oldest first; None without any."""
    tables = []
    for file in files:
        table = read_archived(file)
        times, versions = table["time_ms"].to_numpy(), table["version"].to_pylist()
        inside = (times >= from_ms) & (times < to_ms) & np.array([v == version for v in versions])
        if inside.any():
            tables.append(table.filter(pa.array(inside)))
    if not tables:
        return None
    sides = [_of_table(table, contract, features) for table in tables]
    whole = Side(
        tuple(row_id for side in sides for row_id in side.ids),
        np.concatenate([side.time_ms for side in sides]),
        {name: np.concatenate([side.columns[name] for side in sides]) for name in features},
        np.concatenate([side.score for side in sides]),
        np.concatenate([side.answer for side in sides]),
    )
    first = {row_id: row for row, row_id in reversed(list(enumerate(whole.ids)))}
    rows = np.array(sorted(first.values(), key=lambda row: whole.time_ms[row]), dtype=np.intp)
    return whole.take(rows)


def _of_table(table: pa.Table, contract: Contract, features: dict[str, Feature]) -> Side:
    columns = {}
    for name, feature in features.items():
        column = FEATURE_PREFIX + name
        given = table[column] if column in table.column_names else pa.nulls(table.num_rows)
        columns[name] = feature_values(given, feature)
    answers = np.empty(table.num_rows, dtype=np.object_)
    answers[:] = [
        None if text is None else label_value(msgspec.json.decode(text), regression=False)
        for text in table["prediction"].to_pylist()
    ]
    return Side(
        tuple(table["id"].to_pylist()),
        table["time_ms"].to_numpy().astype(np.int64),
        columns,
        np.array([_score(text, contract) for text in table["scores"].to_pylist()]),
        answers,
    )


def _score(text: str | None, contract: Contract) -> float:
    """The score of the positive class; NaN where there is none, and for several classes."""
    if text is None or contract.task != "binary":
        return np.nan
    scores = msgspec.json.decode(text)
    if not isinstance(scores, dict) or not scores:
        return np.nan
    for name in (contract.prediction.score, contract.prediction.positive):
        if name in scores:
            return _number(scores[name])
    return _number(next(iter(scores.values()))) if len(scores) == 1 else np.nan


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _received(tables: Sequence[pa.Table]) -> dict[str, int]:
    """Inference id → when its first label came, Kafka's timestamp."""
    first: dict[str, int] = {}
    for table in tables:
        ids, times = table["inference_id"].to_pylist(), table["received_ms"].to_pylist()
        for row_id, received_ms in zip(ids, times, strict=True):
            first[row_id] = min(received_ms, first.get(row_id, received_ms))
    return first


def _compared(
    contract: Contract,
    features: dict[str, Feature],
    old: Side,
    new: Side,
    truth: dict[str, str | float],
    received: dict[str, int],
    onset_ms: int,
    now_ms: int,
) -> LabelSignals | None:
    sides = [_labelled(side, truth) for side in (old, new)]
    labels = [[str(truth[row_id]) for row_id in side.ids] for side in sides]
    classes = contract.prediction.classes or tuple(sorted({*labels[0], *labels[1]}))
    position = {text: code for code, text in enumerate(classes)}
    known = [np.array([text in position for text in texts], dtype=np.bool_) for texts in labels]
    sides = [side.take(np.flatnonzero(keep)) for side, keep in zip(sides, known, strict=True)]
    codes = [
        np.array([position[text] for text in texts if text in position], dtype=np.int64)
        for texts in labels
    ]
    if min(code.size for code in codes) == 0:
        return None
    sources, bins = [], []
    for name, feature in features.items():
        source, places = _binned(
            name, feature.kind == "category", [side.columns[name] for side in sides]
        )
        sources.append(source)
        bins.append(places)
    scored = all(np.isfinite(side.score).mean() > 0.5 for side in sides)
    answers = [side.score if scored else side.answer for side in sides]
    score, places = _binned("score" if scored else "prediction", not scored, answers)
    rows = [
        LabelledRows(
            bins=np.column_stack([columns[at] for columns in bins])
            if bins
            else np.empty((code.size, 0), np.int64),
            score=places[at],
            label=code,
            right=_right(sides[at], classes, code),
        )
        for at, code in enumerate(codes)
    ]
    said = label_signals(rows[0], rows[1], sources, score, classes, onset_ms)
    if said is None:
        return None
    came = [_coming(side, received, now_ms) for side in (old, new)]
    return replace(said, label_pipeline=label_pipeline(came[0], came[1], onset_ms))


def _labelled(side: Side, truth: dict[str, str | float]) -> Side:
    return side.take(np.array([i for i, row_id in enumerate(side.ids) if row_id in truth], np.intp))


def _right(side: Side, classes: Sequence[str], codes: Ints) -> npt.NDArray[np.bool_] | None:
    if any(answer is None for answer in side.answer):
        return None
    right = [answer == classes[code] for answer, code in zip(side.answer, codes, strict=True)]
    return np.array(right, dtype=np.bool_)


def _coming(side: Side, received: dict[str, int], now_ms: int) -> Coming:
    came = np.array([received.get(row_id, np.nan) for row_id in side.ids], dtype=np.float64)
    came[came > now_ms] = np.nan
    return Coming(np.maximum(came - side.time_ms, 0), (now_ms - side.time_ms).astype(np.float64))


def _binned(name: str, category: bool, sides: Sequence[Any]) -> tuple[Source, list[Ints]]:
    """Bins of a column on both sides, by the first side's values; beyond the last bin: no value."""
    if category:
        common = Counter(value for value in sides[0] if value is not None)
        kept = tuple(str(value) for value, _ in common.most_common(MOST_CATEGORIES))
        place = {value: code for code, value in enumerate(kept)}
        size = len(kept) + 1
        return Source(name, size, True, (*kept, OTHER)), [
            np.array(
                [size if value is None else place.get(value, size - 1) for value in column],
                dtype=np.int64,
            )
            for column in sides
        ]
    edges = build_numeric_cuts(sides[0], BINS).edge_array
    size = edges.size + 1
    return Source(name, size), [
        np.where(np.isfinite(column), np.searchsorted(edges, column, side="left"), size)
        for column in sides
    ]
