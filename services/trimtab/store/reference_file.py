"""A reference from a CSV or Parquet file: validated columns, and the counts of its windows.

Times are RFC 3339 with an offset, or integer milliseconds since the epoch. A cell that is empty is a
missing value. Every complaint names the file, the line (of a CSV) or row, and the column.
"""

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from trimtab.contracts.model import Contract
from trimtab.errors import TrimtabError
from trimtab.events.types import time_ms
from trimtab.stats.aggregate import Column, PaneState, observe_pane
from trimtab.stats.coded import Coded
from trimtab.stats.cuts import CategoryCuts, ModelCuts, category_key, numeric_column
from trimtab.stats.joint import JointState, joint_columns
from trimtab.stats.outliers import outlying
from trimtab.stats.performance import (
    PerformanceState,
    classification_figures,
    regression_figures,
)
from trimtab.stats.score_figures import score_figures
from trimtab.stats.scorebins import score_bins
from trimtab.store.samples import SAMPLE_ROWS
from trimtab.windows import abnormal
from trimtab.windows.panes import start_of

MOST_ROWS = 5_000_000
MOST_SEGMENTS = 20
"""Values of a column that are segments of their own, as in traffic."""


class ReferenceFileError(TrimtabError):
    """A reference file cannot be used; the text names the line, the column and what was expected."""


class Reference(Struct, frozen=True):
    """Columns of equal length as decoded values; None where a cell is empty or a column not given."""

    path: str
    rows: int
    features: dict[str, list[Any]]
    prediction: list[Any] | None
    score: list[Any] | None
    label: list[Any] | None
    times_ms: list[int] | None

    def windows(self, length_ms: int) -> Iterator[tuple[int, list[int]]]:
        """Yield (window start in ms, its row numbers), oldest first; one window without times."""
        if self.times_ms is None:
            yield 0, list(range(self.rows))
            return
        groups: dict[int, list[int]] = {}
        for row, at_ms in enumerate(self.times_ms):
            groups.setdefault(start_of(at_ms, length_ms), []).append(row)
        yield from sorted(groups.items())


def read_reference(
    path: str,
    contract: Contract,
    time_column: str | None,
    prediction_column: str | None,
    score_column: str | None,
    label_column: str | None,
) -> Reference:
    """Read and validate a file against a contract. Raises ReferenceFileError."""
    columns, first_line = _read(path)
    rows = len(next(iter(columns.values()), []))
    if rows == 0:
        raise ReferenceFileError(f"{path}: no rows. A reference needs some hundred rows at least.")
    wanted = dict.fromkeys(contract.features, "feature")
    for column, role in (
        (time_column, "time column"),
        (prediction_column, "prediction column"),
        (score_column, "score column"),
        (label_column, "label column"),
    ):
        if column is not None:
            wanted.setdefault(column, role)
    for name, role in wanted.items():
        if name not in columns:
            raise ReferenceFileError(
                f"{path}: the {role} {name!r} is missing. "
                f"The file has the columns {', '.join(sorted(columns))}."
            )
    where = _Where(path, first_line)
    number = contract.task == "regression"
    features = {
        name: _numbers(columns[name], name, where) if feature.kind == "number" else columns[name]
        for name, feature in contract.watched.items()
        if name in columns  # attributions may be left out
    }

    def answers(column: str | None, *, numeric: bool) -> list[Any] | None:
        if column is None:
            return None
        return _numbers(columns[column], column, where) if numeric else columns[column]

    return Reference(
        path,
        rows,
        features,
        answers(prediction_column, numeric=number),
        answers(score_column, numeric=True),
        answers(label_column, numeric=number),
        None if time_column is None else _times(columns[time_column], time_column, where),
    )


class _Where(Struct, frozen=True):
    path: str
    first_line: int

    def at(self, row: int, column: str) -> str:
        unit = "line" if self.first_line else "row"
        return f"{self.path}: {unit} {row + (self.first_line or 1)}, column {column!r}"


def _read(path: str) -> tuple[dict[str, list[Any]], int]:
    """Columns of a file, and the line of the first row (0: the format has no lines)."""
    if not Path(path).is_file():
        raise ReferenceFileError(f"{path}: there is no such file.")
    if path.lower().endswith((".parquet", ".pq")):
        return _read_parquet(path), 0
    if not path.lower().endswith(".csv"):
        raise ReferenceFileError(f"{path}: expected a file named *.csv or *.parquet.")
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            return _read_csv(path, csv.reader(file, strict=True)), 2
    except (csv.Error, UnicodeDecodeError) as error:
        raise ReferenceFileError(f"{path}: this is no CSV in UTF-8 ({error}).") from error


def _read_csv(path: str, reader: Any) -> dict[str, list[Any]]:
    names: list[str] = next(reader, [])
    if len(set(names)) != len(names) or not names:
        raise ReferenceFileError(f"{path}: line 1 must name each column once.")
    table: list[list[Any]] = [[] for _ in names]
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(names):
            raise ReferenceFileError(
                f"{path}: line {reader.line_num} has {len(cells)} cells, line 1 names {len(names)}."
            )
        if len(table[0]) >= MOST_ROWS:
            raise ReferenceFileError(f"{path}: more than {MOST_ROWS} rows; give a sample of them.")
        for column, cell in zip(table, cells, strict=True):
            column.append(cell or None)
    return dict(zip(names, table, strict=True))


def _read_parquet(path: str) -> dict[str, list[Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise ReferenceFileError(
            f"{path}: reading Parquet needs pyarrow. Install trimtab[archive], or give a CSV."
        ) from error
    try:
        file = parquet.ParquetFile(path)
        if file.metadata.num_rows > MOST_ROWS:
            raise ReferenceFileError(f"{path}: more than {MOST_ROWS} rows; give a sample of them.")
        columns: dict[str, list[Any]] = file.read().to_pydict()
    except ArrowInvalid as error:
        raise ReferenceFileError(f"{path}: this is no Parquet file ({error}).") from error
    return columns


def _numbers(values: Sequence[Any], column: str, where: _Where) -> list[float | None]:
    numbers: list[float | None] = []
    for row, value in enumerate(values):
        if value is None:
            numbers.append(None)
            continue
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ReferenceFileError(
                f"{where.at(row, column)}: {value!r} is not a number. "
                "Correct it, leave the cell empty, or declare the feature a category."
            ) from error
        numbers.append(None if math.isnan(number) else number)
    return numbers


def _times(values: Sequence[Any], column: str, where: _Where) -> list[int]:
    return [_time_ms(value, row, column, where) for row, value in enumerate(values)]


def _time_ms(value: Any, row: int, column: str, where: _Where) -> int:
    try:
        if isinstance(value, int):
            return value
        if isinstance(value, str) and value.strip().lstrip("-").isdigit():
            return int(value)
        time = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        if time.tzinfo is not None:
            return time_ms(time)
    except (ValueError, OverflowError) as error:
        raise ReferenceFileError(
            f"{where.at(row, column)}: {value!r} is no time. "
            "Write 2026-01-31T12:00:00Z, or milliseconds since 1970."
        ) from error
    raise ReferenceFileError(
        f"{where.at(row, column)}: {value!s} has no time zone. "
        "Add Z or an offset such as +01:00, or give milliseconds since 1970."
    )


# --- counts -----------------------------------------------------------------------------------------


def observe_reference(
    cuts: ModelCuts, contract: Contract, table: Reference, rows: Sequence[int]
) -> PaneState:
    """Return the counts of some rows of a reference under the given cuts."""
    numeric: dict[str, Column] = {}
    categories: dict[str, Coded] = {}
    columns: dict[str, list[Any]] = dict(table.features)
    given = {"prediction": table.prediction, "score": table.score}
    columns |= {n: given[n] or [] for n in cuts.output if given.get(n) is not None}
    both = {**cuts.feature, **cuts.output}
    for name, column in columns.items():
        values = [column[row] for row in rows]
        if isinstance(both[name], CategoryCuts):
            categories[name] = Coded.of_keys(values)
            continue
        numbers, errors = numeric_column(values)
        feature = contract.features.get(name)
        bounds = (feature.min, feature.max) if feature else (None, None)
        numeric[name] = Column(numbers, errors, bounds)
    values_of = {name: column.values for name, column in numeric.items()}
    above = int(np.count_nonzero(outlying(cuts, values_of, categories, len(rows))))
    return observe_pane(
        cuts,
        len(rows),
        numeric=numeric,
        categories=categories,
        statuses={"ok": len(rows)},
        rules={abnormal.OUTLIER: above},  # zero of them is left out
    )


def reference_joint(
    cuts: ModelCuts, contract: Contract, table: Reference, rows: Sequence[int]
) -> JointState:
    """Return how columns go together in some rows of a reference: of as many as are sampled of an hour, evenly."""
    step = -(-len(rows) // SAMPLE_ROWS)
    taken = rows[::step] if step else rows
    columns = joint_columns(contract.features, cuts)
    return JointState.observe(
        columns,
        {
            name: [table.features[name][row] for row in taken]
            for name in {column.feature for column in columns}
            if name in table.features
        },
    )


def reference_labels(contract: Contract, table: Reference) -> PerformanceState:
    """Return the labels of a reference that has predictions and labels, joined to its predictions."""
    return _labels(contract, table, range(table.rows))


def segment_labels(contract: Contract, table: Reference) -> dict[str, PerformanceState]:
    """Return the same by segment: of each declared column that the file has as a feature, the commonest values."""
    found: dict[str, PerformanceState] = {}
    for column in contract.windows.segments:
        rows_by_value: dict[str, list[int]] = {}
        for row, value in enumerate(table.features.get(column, ())):
            if value is not None:
                rows_by_value.setdefault(str(category_key(value)), []).append(row)
        common = sorted(rows_by_value, key=lambda value: (-len(rows_by_value[value]), value))
        for value in common[:MOST_SEGMENTS]:
            found[f"{column}={value}"] = _labels(contract, table, rows_by_value[value])
    return found


def _labels(contract: Contract, table: Reference, numbers: Iterable[int]) -> PerformanceState:
    assert table.label is not None  # the caller has looked
    assert table.prediction is not None
    scores = table.score or [None] * table.rows
    rows = [
        (table.label[row], table.prediction[row], scores[row])
        for row in numbers
        if table.label[row] is not None and table.prediction[row] is not None
    ]
    labels, answers, scored = ([row[place] for row in rows] for place in range(3))
    if contract.task == "regression":
        return PerformanceState.of_numbers(labels, answers)
    return PerformanceState.of_classes(
        [str(category_key(label)) for label in labels],
        [str(category_key(answer)) for answer in answers],
        score_bins(numeric_column(scored)[0]).tolist(),
    )


def reference_performance(contract: Contract, state: PerformanceState) -> dict[str, Any]:
    """Return the quality figures of a reference from its joined labels."""
    if contract.task == "regression":
        found = regression_figures(state)
    else:
        positive = contract.prediction.positive
        found = classification_figures(state, positive)
        found |= score_figures(state.scored, contract.task, positive)
    return {name: msgspec.to_builtins(figure) for name, figure in found.items()}
