"""What rules against the reference are compared with, as it is now; read only for contracts with such rules.

Counts of a baseline never change and are kept in memory; its labels are read anew at every tick while they may
still come, but only those of windows whose signature says that they are others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from trimtab.contracts.model import Contract
from trimtab.contracts.rules import Rule
from trimtab.detect.baseline import Baseline
from trimtab.detect.figures import GAUGE_FIGURES, Figures, Labelled
from trimtab.detect.reference import (
    ReferenceFigure,
    ReferenceLabels,
    baseline_tree,
    counted_figure,
    is_performance,
    labelled_figure,
    shortage,
)
from trimtab.detect.rules import flag_of, rules_of
from trimtab.detect.verdict import reference_of
from trimtab.records import Outcome
from trimtab.stats.aggregate import ResourceState
from trimtab.stats.cuts import ModelCuts
from trimtab.store.baselines import gauges_of
from trimtab.store.performance import VersionPerformance
from trimtab.store.reference_labels import (
    Place,
    Signature,
    kept_labels,
    place_of,
    pooled,
    window_labels,
    window_signatures,
)
from trimtab.store.verdicts import Head, heads_between

TREES_KEPT = 32
"""Of one baseline: by hour of the day, or by cuts."""
HEADS_AT_ONCE = 100
"""Verdicts read at a time: one of 200 features is 100 kB."""
LOOKED_BACK_WINDOWS = 1_000
"""So many windows before the newest are looked at again when their reference has come to stand."""

_Labels = dict[str, Labelled]


class ReferenceReader:
    """Of one model."""

    def __init__(self) -> None:
        self._places: dict[int, Place] = {}
        self._gauges: dict[int, ResourceState] = {}
        self._trees: OrderedDict[tuple[int, str | None, str | None], Figures] = OrderedDict()
        self._kept: dict[int, _Labels] = {}
        self._live: dict[int, dict[int, tuple[Signature, dict[str, VersionPerformance]]]] = {}
        """Of each window of a baseline whose labels may still come, by its start."""
        self._pooled: dict[int, _Labels] = {}
        """Of all these together."""
        self._labels: dict[int, _Labels] = {}
        """Of this tick."""
        self._looked: set[tuple[int, str]] = set()
        """(baseline, rule) whose reference stands, and whose waiting windows were found."""

    def begin(self) -> None:
        """Begin a tick: labels may have come."""
        self._labels.clear()

    def forget(self) -> None:
        """Look for waiting windows again: what was found was not written."""
        self._looked.clear()

    def known(
        self,
        connection: Connection,
        contract: Contract,
        baseline: Baseline | None,
        cuts: ModelCuts | None,
        judged: str | None,
        watermark_ms: int | None,
        head: Head | None = None,
    ) -> dict[str, ReferenceFigure]:
        """Return the reference of each rule that has one, by its text.

        Of a rule that a window was judged by before (`head`), it keeps the performance it was compared with.
        """
        rules = [rule for rule in rules_of(contract) if rule.relative]
        if not rules or baseline is None or baseline.id is None:
            return {}
        before = {} if head is None else _compared_with(head)
        found = {}
        for rule in rules:
            if not is_performance(rule):
                found[rule.text] = self._counted(connection, contract, baseline, cuts, rule)
                continue
            used = before.get(rule.text)
            if used is None:
                labels = self._labels_of(connection, contract, baseline.id, watermark_ms)
                used = labelled_figure(rule, labels, judged, contract)
            found[rule.text] = used
        return found

    def waiting(
        self,
        connection: Connection,
        contract: Contract,
        baseline: Baseline | None,
        judged: str | None,
        watermark_ms: int | None,
        to_ms: int,
    ) -> set[int]:
        """Return the judged windows before `to_ms` that waited for labels of the baseline which are there now.

        Of each rule they are found once: windows that are judged later have the labels.
        """
        rules = [r for r in rules_of(contract) if r.relative and is_performance(r)]
        if not rules or baseline is None or baseline.id is None:
            return set()
        stand = [
            rule
            for rule in rules
            if (baseline.id, rule.text) not in self._looked
            and self._stands(connection, contract, baseline.id, rule, judged, watermark_ms)
        ]
        if not stand:
            return set()
        self._looked |= {(baseline.id, rule.text) for rule in stand}
        # Where the newest window had the labels, those that waited were found when it was judged.
        newest = heads_between(connection, contract.name, to_ms - contract.windows.length_ms, to_ms)
        stand = [r for r in stand if not any(_has(h, r, baseline.id, contract) for h in newest)]
        if not stand:
            return set()
        length_ms, found = contract.windows.length_ms, set[int]()
        for back in range(0, LOOKED_BACK_WINDOWS, HEADS_AT_ONCE):
            end_ms = to_ms - back * length_ms
            first_ms = end_ms - HEADS_AT_ONCE * length_ms
            found.update(
                head.window_start_ms
                for head in heads_between(connection, contract.name, first_ms, end_ms)
                if head.evidence.baseline_id == baseline.id and _waits(head, stand, contract)
            )
        return found

    def _stands(
        self,
        connection: Connection,
        contract: Contract,
        baseline_id: int,
        rule: Rule,
        judged: str | None,
        watermark_ms: int | None,
    ) -> bool:
        labels = self._labels_of(connection, contract, baseline_id, watermark_ms)
        return shortage(rule, labelled_figure(rule, labels, judged, contract), contract) is None

    def _place(self, connection: Connection, baseline_id: int) -> Place:
        if baseline_id not in self._places:
            self._places = {baseline_id: place_of(connection, baseline_id)}
        return self._places[baseline_id]

    # --- what is counted --------------------------------------------------------------------------

    def _counted(
        self,
        connection: Connection,
        contract: Contract,
        baseline: Baseline,
        cuts: ModelCuts | None,
        rule: Rule,
    ) -> ReferenceFigure:
        assert baseline.id is not None  # the caller has looked
        place = self._place(connection, baseline.id)
        key = (baseline.id, baseline.season, None if cuts is None else cuts.cuts_id)
        if rule.figure in GAUGE_FIGURES and baseline.id not in self._gauges:
            self._gauges = {baseline.id: gauges_of(connection, baseline.id)}
            self._trees.clear()
        if key not in self._trees:
            gauges = self._gauges.get(baseline.id, ResourceState())
            self._trees[key] = baseline_tree(baseline, cuts, contract, gauges)
            if len(self._trees) > TREES_KEPT:
                self._trees.popitem(last=False)
        return counted_figure(
            rule,
            self._trees[key],
            baseline.season_windows or baseline.windows,
            is_file=place.is_file,
            dated=bool(place.starts_ms),
            same_length=place.length_ms == contract.windows.length_ms,
        )

    # --- performance ------------------------------------------------------------------------------

    def _labels_of(
        self, connection: Connection, contract: Contract, baseline_id: int, watermark_ms: int | None
    ) -> ReferenceLabels:
        place = self._place(connection, baseline_id)
        if baseline_id not in self._labels:
            self._labels[baseline_id] = self._read(connection, contract.name, baseline_id, place)
        after_ms, to_ms = contract.labels.judge_after_ms, place.to_ms
        due = (
            baseline_id in self._kept
            or to_ms is None
            or after_ms is None
            or (watermark_ms is not None and watermark_ms >= to_ms + after_ms)
        )
        return ReferenceLabels(self._labels[baseline_id], due, place.is_file)

    def _read(self, connection: Connection, model: str, baseline_id: int, place: Place) -> _Labels:
        if baseline_id in self._kept:
            return self._kept[baseline_id]
        kept = kept_labels(connection, baseline_id)
        if kept is not None:
            self._kept = {baseline_id: _labels(kept)}
            return self._kept[baseline_id]
        if not place.starts_ms:
            return {}
        before = self._live.get(baseline_id, {})
        signatures = window_signatures(connection, model, place)
        if baseline_id not in self._pooled or signatures != {
            at: s for at, (s, _) in before.items()
        }:
            now = {}
            for start_ms, signature in signatures.items():
                known = before.get(start_ms)
                if known is None or known[0] != signature:
                    known = signature, window_labels(connection, model, place, start_ms)
                now[start_ms] = known
            self._live = {baseline_id: now}
            self._pooled = {baseline_id: _labels(pooled(found for _, found in now.values()))}
        return self._pooled[baseline_id]


def _labels(by_version: Mapping[str, VersionPerformance]) -> _Labels:
    return {
        version: Labelled(one.state, one.labelled_rows, one.predicted_rows)
        for version, one in by_version.items()
    }


def _compared_with(head: Head) -> dict[str, ReferenceFigure]:
    """Return the reference of each rule that a window was judged by."""
    judged = {finding.rule for finding in head.findings if flag_of(finding) is not None}
    recorded = reference_of(head.evidence.prior)
    return {text: found for text, found in recorded.items() if text in judged}


def _has(head: Head, rule: Rule, baseline_id: int, contract: Contract) -> bool:
    """Whether a window's verdict had a reference that stands for a rule."""
    found = reference_of(head.evidence.prior).get(rule.text)
    same = head.evidence.baseline_id == baseline_id
    return same and found is not None and shortage(rule, found, contract) is None


def _waits(head: Head, rules: Sequence[Rule], contract: Contract) -> bool:
    """Whether one of the rules could not be judged in a window for want of a reference."""
    before = reference_of(head.evidence.prior)
    unjudged = {f.rule for f in head.findings if f.outcome is Outcome.CANNOT_TELL}
    return any(
        rule.text in unjudged
        and rule.text in before
        and shortage(rule, before[rule.text], contract) is not None
        for rule in rules
    )
