"""What estimates without labels rest on: the reference's labels, and how later labels fit them.

Read anew at every tick, but only where labels have changed: a signature tells without reading states.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import replace
from sqlalchemy import Connection

from trimtab.contracts.model import Contract
from trimtab.detect.baseline import Baseline
from trimtab.detect.label_free import LabelFree
from trimtab.detect.label_gaps import NONE_EXPECTED, Expected, Gaps, expected_of, gaps_of
from trimtab.detect.label_residuals import NOT_CHECKED, LabelledWindow, residual_check
from trimtab.detect.score_calibration import LabelledScores, calibrator
from trimtab.store.entries import BEGINNING_MS
from trimtab.store.labelled_scores import (
    MOST_WINDOWS,
    Reference,
    Segments,
    Signature,
    labelled_window,
    labelled_windows,
    range_counts,
    range_segments,
    range_signature,
    reference_of,
    window_segments,
)
from trimtab.store.window_state import WindowState

MORE_LABELS = 10
"""Segments are read again when a reference's labels have changed by one in so many."""

_Key = tuple[int, str]
"""Baseline and version."""

_Totals = tuple[int, int]
"""Hits and misses."""


class LabelFreeReader:
    """Of one model, under one revision of its contract."""

    def __init__(self) -> None:
        self._references: dict[_Key, Reference] = {}
        self._labelled: dict[tuple[str, tuple[str, ...]], list[LabelledWindow]] = {}
        self._window_parts: dict[tuple[str, int, tuple[str, ...]], tuple[_Totals, Segments]] = {}
        """Of windows by segment, with the window's labels when they were read."""
        self._counts: dict[_Key, tuple[Signature, LabelledScores]] = {}
        self._segments: dict[_Key, tuple[_Totals, Segments]] = {}
        """With the reference's labels when they were read."""
        self._gaps: dict[
            _Key, tuple[LabelledScores, Segments | None, Gaps, Mapping[str, Expected]]
        ] = {}
        self._windows: dict[tuple[str, int], tuple[Signature, LabelledWindow]] = {}

    def begin(self) -> None:
        """Begin a tick: what was read may have changed."""
        self._references.clear()
        self._labelled.clear()

    def known(
        self,
        connection: Connection,
        contract: Contract,
        baseline: Baseline | None,
        version: str | None,
        read: WindowState,
        end_ms: int,
    ) -> LabelFree:
        """Return what the estimate of a window that ends at `end_ms` rests on, or why there is none."""
        if contract.task == "regression":
            return LabelFree(
                reason="a regression has no score to tell its errors from: how far off it is, only labels say"
            )
        if contract.task == "binary" and contract.prediction.positive is None:
            return LabelFree(reason="the contract names no `positive` class for the score")
        judged = read.by_version.get(version or "")
        if version is None or judged is None or not judged.scored:
            return LabelFree(reason="no row of the window came with a score between 0 and 1")
        if baseline is None or baseline.id is None:
            return LabelFree(reason="no baseline yet" if baseline is None else baseline.progress)
        reference = self._reference(connection, contract, (baseline.id, version))
        counts = reference.counts
        if counts is None or counts.shortage is not None:
            short = "it has no labels with a score" if counts is None else counts.shortage
            return LabelFree(reason=f"baseline {baseline.id}, version {version}: {short}")
        key = (baseline.id, version)
        gaps, expected = self._gaps_of(contract, key, counts, reference.segments)
        windows = self._labelled_windows(connection, contract, version, expected)
        # What the reference is made of says nothing about what came since.
        from_ms = BEGINNING_MS if reference.range_ms is None else reference.range_ms[1]
        earlier = [window for window in windows if from_ms <= window.start_ms < end_ms]
        check = residual_check(calibrator(counts), earlier, expected) if earlier else NOT_CHECKED
        return LabelFree(counts, reference.since_ms, check, gaps=gaps)

    def _gaps_of(
        self, contract: Contract, key: _Key, counts: LabelledScores, segments: Segments | None
    ) -> tuple[Gaps, Mapping[str, Expected]]:
        known = self._gaps.get(key)
        if known is None or known[:2] != (counts, segments):
            expected = NONE_EXPECTED
            if not contract.windows.segments:
                gaps = Gaps(reason="the contract declares no `segments` to see unevenness in")
            elif segments is None:
                gaps = Gaps(reason="the baseline was kept without labels of segments")
            else:
                gaps = gaps_of(calibrator(counts), segments)
                expected = expected_of(calibrator(counts), segments)
            self._gaps[key] = known = counts, segments, gaps, expected
        return known[2:]

    def _reference(self, connection: Connection, contract: Contract, key: _Key) -> Reference:
        if key not in self._references:
            found = reference_of(connection, contract, *key)
            if found.counts is None and found.range_ms is not None:
                model, version = contract.name, key[1]
                signature = range_signature(connection, model, version, *found.range_ms)
                known = self._counts.get(key)
                if known is None or known[0] != signature:
                    counts = range_counts(connection, contract, version, *found.range_ms)
                    self._counts[key] = known = signature, counts
                segments = self._range_segments(connection, contract, key, known[1], found.range_ms)
                found = Reference(found.since_ms, known[1], found.range_ms, segments)
            self._references[key] = found
        return self._references[key]

    def _range_segments(
        self,
        connection: Connection,
        contract: Contract,
        key: _Key,
        counts: LabelledScores,
        range_ms: tuple[int, int],
    ) -> Segments:
        """Return the segments' labels; read anew when a tenth has come or was corrected, for they are many panes."""
        if counts.shortage is not None:
            return {}
        totals, known = _totals(counts), self._segments.get(key)
        if known is None or _moved(known[0], totals):
            found = range_segments(connection, contract, key[1], *range_ms)
            self._segments[key] = known = totals, found
        return known[1]

    def _labelled_windows(
        self,
        connection: Connection,
        contract: Contract,
        version: str,
        segments: Collection[str],
    ) -> list[LabelledWindow]:
        names = tuple(segments)
        if (version, names) not in self._labelled:
            windows = []
            for start_ms, signature in labelled_windows(connection, contract, version).items():
                known = self._windows.get((version, start_ms))
                if known is None or known[0] != signature:
                    window = labelled_window(connection, contract, version, start_ms)
                    self._windows[version, start_ms] = known = signature, window
                totals = _totals(known[1])
                if any(totals):
                    of_segments = self._window_segments(
                        connection, contract, version, start_ms, totals, names
                    )
                    windows.append(replace(known[1], segments=of_segments))
            self._labelled[version, names] = windows
            if len(self._windows) > 4 * MOST_WINDOWS:
                newest = sorted(self._windows, key=lambda key: key[1])[-2 * MOST_WINDOWS :]
                self._windows = {key: self._windows[key] for key in newest}
                self._window_parts = {
                    key: part
                    for key, part in self._window_parts.items()
                    if key[:2] in self._windows
                }
        return self._labelled[version, names]

    def _window_segments(
        self,
        connection: Connection,
        contract: Contract,
        version: str,
        start_ms: int,
        totals: _Totals,
        names: tuple[str, ...],
    ) -> Segments:
        """Return a window's labels by segment, read anew when a tenth has come or was corrected."""
        if not names:
            return {}
        key = (version, start_ms, names)
        known = self._window_parts.get(key)
        if known is None or _moved(known[0], totals):
            found = window_segments(connection, contract, version, start_ms, names)
            self._window_parts[key] = known = totals, found
        return known[1]


def _totals(counts: LabelledScores | LabelledWindow) -> _Totals:
    return sum(counts.hits), sum(counts.misses)


def _moved(before: _Totals, now: _Totals) -> bool:
    """Whether a tenth of the labels has come, gone or was corrected."""
    return sum(abs(b - a) for a, b in zip(before, now, strict=True)) * MORE_LABELS > sum(before)
