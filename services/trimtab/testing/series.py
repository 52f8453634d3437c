"""Windows of a model written straight into the store, without Kafka: for tests of what reads them.

Rows are given as columns; labels as pairs of (label, prediction). Everything is written the way the
ingest and the joiner write it, with one flush per call.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from sqlalchemy import Connection, func, insert, select, update

from trimtab.contracts.model import Contract
from trimtab.stats.aggregate import Column, LatencyState, PaneState, ResourceState, observe_pane
from trimtab.stats.coded import Coded
from trimtab.stats.cuts import CategoryCuts, ModelCuts, numeric_column
from trimtab.stats.outliers import outlying
from trimtab.stats.performance import PerformanceState
from trimtab.stats.scorebins import score_bins
from trimtab.store.baselines import build_cuts
from trimtab.store.engine import Store
from trimtab.store.joiners import claim_joiner
from trimtab.store.ledger import (
    ClassKey,
    add_classes,
    add_loss,
    add_loss_ranges,
    close_loss_ranges,
    close_losses,
)
from trimtab.store.models import apply_contract, save_cuts
from trimtab.store.panes import PaneKey, PaneRow, generations, write_panes
from trimtab.store.resources import write_resources
from trimtab.store.samples import HOUR_MS, SampleRow, partition_samples, write_sample
from trimtab.store.tables import joiners, losses, partitions, performance, watermarks
from trimtab.store.watermarks import WatermarkRow, write_watermarks
from trimtab.windows import abnormal
from trimtab.windows.ids import id_hashes
from trimtab.windows.panes import start_of

Columns = Mapping[str, Sequence[Any]]


class SeriesWriter:
    """One model with one partition per number used. `now_ms` is the wall clock of the writes."""

    def __init__(self, store: Store, contract: Contract, now_ms: int = 0) -> None:
        self.store = store
        self.contract = contract
        self.now_ms = now_ms
        self.cuts: ModelCuts | None = None
        self._position = 0
        self._written: dict[tuple[int, PaneKey], PaneRow] = {}
        self._generations: dict[tuple[int, int], int] = {}
        """By partition number and pane start, of panes that are open."""
        self._sealed: set[tuple[int, int]] = set()
        apply_contract(store, contract, "", "test", now_ms)

    def fit_cuts(
        self,
        reference: Columns,
        prediction: Sequence[Any] | None = None,
        score: Sequence[Any] | None = None,
    ) -> ModelCuts:
        """Make the model's cuts from reference rows."""
        self.cuts = build_cuts(self.contract, reference, prediction, score)
        with self.store.write() as connection:
            save_cuts(connection, self.contract.name, self.cuts, "test", self.now_ms)
        return self.cuts

    def rows(
        self,
        pane_start_ms: int,
        columns: Columns,
        *,
        prediction: Sequence[Any] | None = None,
        score: Sequence[Any] | None = None,
        latency_ms: Sequence[float] = (),
        errors: int = 0,
        version: str = "1",
        arm: str = "",
        traffic_revision: int = 0,
        segment: str = "",
        partition: int = 0,
        newest_ms: int | None = None,
    ) -> None:
        """Flush rows of one pane of one partition; more rows of the same pane add to it."""
        assert self.cuts is not None, "fit_cuts first"
        count = len(next(iter(columns.values())))
        answered = {"prediction": prediction, "score": score}
        given = {**columns} | {n: column for n, column in answered.items() if column is not None}
        state = _observe(self.cuts, self.contract, given, count, latency_ms, errors)
        pane_ms = self.contract.windows.pane_ms
        newest = pane_start_ms + pane_ms - 1 if newest_ms is None else newest_ms
        with self.store.write() as connection:
            partition_id, seq = self._flush(connection, partition, count)
            generation = self._generation(connection, partition, partition_id, pane_start_ms)
            key = PaneKey(
                self.contract.name,
                pane_start_ms,
                version,
                arm,
                traffic_revision,
                segment,
                generation,
                self.cuts.cuts_id,
            )
            held = self._written.get((partition, key))
            state = state if held is None else held.state.merge(state)
            row = PaneRow(key, pane_ms, state, sealed=False, first_offset=0, next_offset=count)
            self._written[partition, key] = row
            write_panes(connection, partition_id, seq, [row])
            counted = ClassKey("row", self.contract.name, "counted")
            add_classes(connection, partition_id, {counted: count})
            self._watermark(connection, partition_id, seq, newest)

    def sample(self, pane_start_ms: int, columns: Columns, partition: int = 0) -> None:
        """Flush rows into the row sample of their hour, beside what is sampled of it already."""
        count = len(next(iter(columns.values())))
        hour = start_of(pane_start_ms, HOUR_MS)
        model = self.contract.name
        with self.store.write() as connection:
            partition_id, _ = self._flush(connection, partition, 0)
            held = partition_samples(connection, partition_id, model, [hour]).get(hour, [])
            ids = [f"{pane_start_ms}-{i}" for i in range(count)]
            rows = [
                SampleRow(
                    hash=hash_,
                    id=ids[i],
                    time_ms=pane_start_ms,
                    version="1",
                    prediction=None,
                    score=None,
                    latency_ms=None,
                    features={name: values[i] for name, values in columns.items()},
                )
                for i, hash_ in enumerate(id_hashes(ids).tolist())
            ]
            write_sample(connection, partition_id, model, hour, [*held, *rows])

    def gauges(
        self,
        pane_start_ms: int,
        samples: Mapping[str, Sequence[float]],
        *,
        version: str = "1",
        instance: str = "one",
    ) -> None:
        """Flush samples of resources, by gauge, into one pane of one instance; on a topic of their own."""
        place = (self.contract.name, pane_start_ms, version, instance)
        with self.store.write() as connection:
            partition_id, seq = self._flush(connection, 0, 0, topic="resources")
            write_resources(connection, partition_id, seq, {place: ResourceState.observe(samples)})

    def passed(self, time_ms: int, partition: int = 0) -> None:
        """Move the watermark to `time_ms`, as a row that is just late enough would."""
        with self.store.write() as connection:
            partition_id, seq = self._flush(connection, partition, 0)
            newest_ms = time_ms + self.contract.windows.out_of_order_ms
            self._watermark(connection, partition_id, seq, newest_ms)

    def loses(self, messages: int, partition: int = 0) -> None:
        """Lose messages whose rows may be of any time since what was sealed, as the log drops them unread."""
        with self.store.write() as connection:
            partition_id, seq = self._flush(connection, partition, 0)
            last = select(func.coalesce(func.max(losses.c.to_offset), 0))
            first = int(connection.scalar(last.where(losses.c.partition_id == partition_id)) or 0)
            now_ms, after = self.now_ms, first + messages
            add_loss(connection, partition_id, first, after, now_ms, now_ms, seq)
            sealed_ms = connection.scalar(
                select(watermarks.c.sealed_ms).where(
                    watermarks.c.partition_id == partition_id,
                    watermarks.c.model == self.contract.name,
                )
            )
            if sealed_ms is not None:
                sealed = {self.contract.name: int(sealed_ms)}
                add_loss_ranges(connection, partition_id, first, sealed, seq)

    def reads_on(self, newest_ms: int, partition: int = 0) -> None:
        """Bound what was lost: the next row of the model is of `newest_ms`, and is written elsewhere."""
        with self.store.write() as connection:
            partition_id, seq = self._flush(connection, partition, 0)
            close_losses(connection, partition_id, self.now_ms, seq)
            close_loss_ranges(connection, partition_id, {self.contract.name: newest_ms}, seq)

    def seal(self, time_ms: int) -> None:
        """Seal the panes that end at or before `time_ms`, as their owners do; later rows begin anew."""
        pane_ms = self.contract.windows.pane_ms
        due = [place for place in self._written if place[1].pane_start_ms + pane_ms <= time_ms]
        with self.store.write() as connection:
            for partition, key in due:
                partition_id, seq = self._flush(connection, partition, 0)
                row = self._written.pop((partition, key))
                sealed = msgspec.structs.replace(row, sealed=True)
                write_panes(connection, partition_id, seq, [sealed])
                self._sealed.add((partition, key.pane_start_ms))
                self._generations.pop((partition, key.pane_start_ms), None)
                connection.execute(
                    update(watermarks)
                    .where(
                        watermarks.c.partition_id == partition_id,
                        watermarks.c.model == self.contract.name,
                    )
                    .values(flush_seq=seq)
                )

    def _generation(
        self, connection: Connection, partition: int, partition_id: int, pane_start_ms: int
    ) -> int:
        place = (partition, pane_start_ms)
        if place not in self._generations:
            fresh = 0
            if place in self._sealed:
                fresh = generations(connection, partition_id, self.contract.name, pane_start_ms)
            self._generations[place] = fresh
        return self._generations[place]

    def labels(
        self,
        pane_start_ms: int,
        pairs: Sequence[tuple[Any, Any]],
        *,
        predicted_rows: int,
        version: str = "1",
        arm: str = "",
        segment: str = "",
        scores: Sequence[float | None] | None = None,
    ) -> None:
        """Set what is joined in a pane: pairs of (label, prediction), and how many could be.

        `scores` are those of the pairs' predictions, of classifiers.
        """
        labels, answers = [p[0] for p in pairs], [p[1] for p in pairs]
        if self.contract.task == "regression":
            state = PerformanceState.of_numbers(labels, answers)
        elif scores is None:
            state = PerformanceState.of_classes(labels, answers)
        else:
            bins = score_bins(np.array(scores, np.float64)).tolist()
            state = PerformanceState.of_classes(labels, answers, bins)
        self._position += 1
        key = {
            "model": self.contract.name,
            "pane_start_ms": pane_start_ms,
            "version": version,
            "arm": arm,
            "traffic_revision": 0,
            "segment": segment,
            "shard": 0,
        }
        values = {
            "labelled_rows": len(pairs),
            "predicted_rows": predicted_rows,
            "state": state.to_bytes(),
            "position": self._position,
        }
        place = [performance.c[name] == value for name, value in key.items()]
        claim_joiner(self.store, self.contract.name, 0, "test", self.now_ms, 0)
        with self.store.write() as connection:
            done = connection.execute(update(performance).where(*place).values(**values))
            if not done.rowcount:
                connection.execute(insert(performance).values(**key, **values))
            connection.execute(
                update(joiners)
                .where(joiners.c.model == self.contract.name, joiners.c.shard == 0)
                .values(position=self._position)
            )

    def _flush(
        self, connection: Any, partition: int, rows: int, topic: str = "t"
    ) -> tuple[int, int]:
        found = connection.execute(
            select(partitions.c.id, partitions.c.flush_seq).where(
                partitions.c.topic == topic, partitions.c.partition == partition
            )
        ).one_or_none()
        changing: dict[str, Any] = {
            "flush_seq": 1 + (found.flush_seq if found else 0),
            "owner_seen_ms": self.now_ms,
            "updated_ms": self.now_ms,
            "rows": partitions.c.rows + rows if found else rows,
        }
        if found:
            connection.execute(
                update(partitions).where(partitions.c.id == found.id).values(**changing)
            )
            return found.id, changing["flush_seq"]
        connection.execute(
            insert(partitions).values(
                consumer="monitor",
                cluster_id="test",
                topic=topic,
                topic_id=topic,
                partition=partition,
                epoch=1,
                owner="test",
                first_offset=0,
                next_offset=0,
                end_offset=1,
                **changing,
            )
        )
        return int(connection.scalar(select(func.max(partitions.c.id)))), 1

    def _watermark(self, connection: Any, partition_id: int, seq: int, newest_ms: int) -> None:
        row = WatermarkRow(self.contract.name, newest_ms, newest_ms, self.now_ms, 0)
        write_watermarks(connection, partition_id, seq, [row])


def _observe(
    cuts: ModelCuts,
    contract: Contract,
    columns: Columns,
    count: int,
    latency_ms: Sequence[float],
    errors: int,
) -> PaneState:
    numeric: dict[str, Column] = {}
    categories: dict[str, Coded] = {}
    both = {**cuts.feature, **cuts.output}
    for name, values in columns.items():
        if isinstance(both[name], CategoryCuts):
            categories[name] = Coded.of_keys(values)
            continue
        numbers, wrong = numeric_column(values)
        feature = contract.features.get(name)
        bounds = (feature.min, feature.max) if feature else (None, None)
        numeric[name] = Column(numbers, wrong, bounds)
    statuses = {"ok": count - errors, "error": errors}
    values_of = {name: column.values for name, column in numeric.items()}
    rules = {abnormal.OUTLIER: int(outlying(cuts, values_of, categories, count).sum())}
    pane = observe_pane(
        cuts, count, numeric=numeric, categories=categories, statuses=statuses, rules=rules
    )
    return replace(pane, latency_ms=LatencyState.observe(latency_ms))
