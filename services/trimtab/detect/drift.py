"""The detector of a model in use: fitted on its baseline, asked of each window, and what it says in words.

`contrasts`, `calibration` and `evidence` are the mathematics. Here they meet the product: which windows a
baseline must hold, what a verdict's findings are, and one plain sentence about each thing that has moved.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from trimtab.contracts.model import Contract
from trimtab.detect import arrays
from trimtab.detect.calibration import (
    DOUBTFUL_WINDOWS,
    FULL_WINDOWS,
    LEAST_REBASE_WINDOWS,
    REFUSED_WINDOWS,
    Calibration,
    Season,
    calibrate,
    rebased,
)
from trimtab.detect.certificate import Certificate, certify
from trimtab.detect.contrasts import Contrasts, Measured
from trimtab.detect.evidence import Detector, Moved, Said, State
from trimtab.detect.observed import Observed
from trimtab.detect.sources import SourceContrasts
from trimtab.detect.words import effect_words
from trimtab.records import Finding, Kind, Outcome, Reason
from trimtab.stats.cuts import ModelCuts

FIGURE = "detector"
"""Name of the figure of what a detector says; `condition_of` makes an alert's key of it and the kind."""
LEAST_ROWS = 30
"""Fewer rows of a source than this, or than the contract's `min_rows`, are not read: their contrasts are too skew."""
MOST_SENTENCES = 8
"""Of one kind: a column that is another than before has changed its relation to all others."""
SHARE_DIGITS = 4
"""Of the shares in a verdict's ranking."""
QUALITY_RATES = frozenset({"missing", "type_error", "unseen", "infinite", "below_min", "above_max"})
Tree = dict[str, Any]


class Fitted(Struct, frozen=True, kw_only=True):
    """A detector without its budget: what it looks at and what is usual, fitted on one baseline."""

    cuts_id: str
    length_ms: int
    """Of the windows that it was fitted on."""
    contrasts: Contrasts
    calibration: Calibration
    certificate: Certificate | None
    """None where variances are inherited: the few new windows say nothing of them."""
    inherited: bool = False
    doubts: tuple[str, ...] = ()
    """Plain sentences about what weakens the promise."""

    def detector(self, windows_per_alarm: float, length_ms: int) -> Detector:
        """Return it with a budget."""
        return Detector(self.contrasts, self.calibration, windows_per_alarm, length_ms)

    def feature_season(self) -> Season:
        """Return the season of the features, whatever latencies and volume have."""
        origins = [s.origin for s in self.contrasts.sources for _ in s.labels]
        return self.calibration.season_of(np.array([o == "feature" for o in origins], np.bool_))


class Refused(Struct, frozen=True):
    """Why a baseline gives no detector."""

    reason: str


class Watching(Struct, frozen=True, kw_only=True):
    """A detector as it stands before a window."""

    id: int
    detector: Detector
    cuts: ModelCuts
    state: State
    before: str
    """Digest of `state`."""


class Watched(Struct, frozen=True, kw_only=True):
    """What a detector says of a window, and how it stands afterwards."""

    said: Said
    after: State
    findings: tuple[Finding, ...]
    tree: Tree


# --- fitting ----------------------------------------------------------------------------------------


def fit_detector(
    cuts: ModelCuts,
    windows: Sequence[tuple[int, Observed]],
    contract: Contract,
    windows_per_alarm: float,
    *,
    bounded: Mapping[str, Sequence[str]],
    inherit: Fitted | None = None,
    seed: int = 0,
) -> Fitted | Refused:
    """Fit a detector on reference windows, each (start in ms, counts), oldest first.

    With fewer than 168 windows and an earlier detector under the same cuts, only the location is new.
    """
    count = len(windows)
    length_ms = contract.windows.length_ms
    if inherit is not None and (inherit.cuts_id, inherit.length_ms) != (cuts.cuts_id, length_ms):
        inherit = None  # windows of another length vary otherwise
    if count < (REFUSED_WINDOWS if inherit is None else LEAST_REBASE_WINDOWS):
        return Refused(
            f"the baseline holds {count} windows; the detector needs {REFUSED_WINDOWS}, and {FULL_WINDOWS} "
            "to see small changes"
        )
    starts = [start_ms for start_ms, _ in windows]
    delta = contract.alarms.smallest_shift
    if inherit is not None and count < FULL_WINDOWS:
        measured = [inherit.contrasts.measure(one, cuts) for _, one in windows]
        return Fitted(
            cuts_id=cuts.cuts_id,
            length_ms=length_ms,
            contrasts=inherit.contrasts,
            calibration=rebased(inherit.calibration, measured, starts, delta=delta),
            certificate=None,
            inherited=True,
            doubts=(
                f"its level comes from {count} windows, its usual variation from the baseline before",
            ),
        )
    baseline = merged(one for _, one in windows)
    min_rows = max(LEAST_ROWS, contract.windows.min_rows)
    contrasts = Contrasts.of(cuts, baseline, bounded, windows=count, min_rows=min_rows)
    measured = [contrasts.measure(one, cuts) for _, one in windows]
    calibration = calibrate(
        contrasts,
        measured,
        starts,
        length_ms,
        delta=delta,
        time_zone=contract.windows.time_zone,
        min_rows=min_rows,
    )
    calibration, certificate = certify(
        contrasts, calibration, measured, starts, windows_per_alarm, length_ms, seed
    )
    return Fitted(
        cuts_id=cuts.cuts_id,
        length_ms=length_ms,
        contrasts=contrasts,
        calibration=calibration,
        certificate=certificate,
        doubts=tuple(_doubts(contrasts, measured, starts, contract, windows_per_alarm)),
    )


def merged(windows: Iterable[Observed]) -> Observed:
    """Return the counts of all. Raises ValueError for none, IncompatibleCuts."""
    whole: Observed | None = None
    for one in windows:
        whole = one if whole is None else whole.merge(one)
    if whole is None:
        raise ValueError("no windows")
    return whole


def _doubts(
    contrasts: Contrasts,
    measured: Sequence[Measured],
    starts: Sequence[int],
    contract: Contract,
    windows_per_alarm: float,
) -> Iterable[str]:
    count = len(measured)
    if count < DOUBTFUL_WINDOWS:
        yield (
            f"a reference of {count} windows says little of how windows depend on each other: the budget is "
            f"promised from {DOUBTFUL_WINDOWS} on"
        )
    half = count // 2
    if half < REFUSED_WINDOWS:
        return
    # A change inside the reference passes for usual variation, and blinds the detector to its like.
    length_ms = contract.windows.length_ms
    usual = calibrate(
        contrasts,
        measured[:half],
        starts[:half],
        length_ms,
        delta=contract.alarms.smallest_shift,
        time_zone=contract.windows.time_zone,
        min_rows=max(LEAST_ROWS, contract.windows.min_rows),
    )
    detector = Detector(contrasts, usual, windows_per_alarm, length_ms)
    state = detector.start()
    for window, start_ms in zip(measured[half:], starts[half:], strict=True):
        state, said = detector.update(state, window, start_ms)
        if said.alarm:
            first = said.moved[0]
            yield (
                f"the reference itself changes: {first.source} ({first.what}) since "
                f"{_when(first.onset_ms)}; a change of this size may pass for usual"
            )
            return


# --- one window -------------------------------------------------------------------------------------


def watch(watching: Watching, window: Observed, start_ms: int) -> Watched:
    """Ask the detector of a closed window. Windows come in order."""
    detector = watching.detector
    measured = detector.contrasts.measure(window, watching.cuts)
    after, said = detector.update(watching.state, measured, start_ms)
    return Watched(
        said=said,
        after=after,
        findings=tuple(_findings(detector, after, said, window.state.rows)),
        tree=_tree(watching, after, said),
    )


def state_digest(state: State) -> str:
    """Return what names a state in evidence."""
    return arrays.digest(state)


def kind_of(source: SourceContrasts, what: str) -> Kind:
    """Return what a finding about a source is about: broken data, or what the data say."""
    return Kind.DATA_QUALITY if what in QUALITY_RATES else source.kind


def is_detectors(finding: Finding) -> bool:
    """Whether the detector made a finding."""
    return finding.rule is None and finding.figure == FIGURE


def _kinds(detector: Detector) -> list[Kind]:
    """The kinds that a detector speaks of, each once, in the order of Kind."""
    found = {
        kind_of(source, what)
        for source in detector.contrasts.sources
        for what in (*source.labels, *source.rates)
    }
    return [kind for kind in Kind if kind in found]


def _findings(detector: Detector, after: State, said: Said, rows: int) -> Iterable[Finding]:
    """One finding per kind: the worst that the detector has to say of it.

    Its value is the evidence of the kind's sources that stand out; of a kind that has none, all that is left.
    """
    left = said.evidence * max(0.0, 1 - sum(m.share for m in said.moved))

    def is_of(m: Moved, kind: Kind) -> bool:
        return kind_of(_source(detector, m.source), m.what) is kind

    for kind in _kinds(detector):
        now = [m for m in said.moved if is_of(m, kind)]
        fresh = {m.source for m in now} if said.alarm else set()
        still = [
            one.moved
            for name, one in after.muted.items()
            if is_of(one.moved, kind) and name not in fresh
        ]
        outcome, reason, detail, onset_ms = Outcome.OK, Reason.WITHIN_LIMITS, "", None
        if fresh or still:
            outcome, reason = Outcome.ALARM, Reason.DETECTOR
            parts = [sentence(m, _source(detector, m.source)) for m in now if m.source in fresh]
            parts += [f"{sentence(m, _source(detector, m.source))}; it lasts" for m in still]
            detail = _joined(parts)
            onset_ms = min(m.onset_ms for m in (*now, *still) if m.source in fresh or m in still)
        elif now and said.warning:
            outcome, reason = Outcome.WARNING, Reason.DETECTOR
            detail = _joined([sentence(m, _source(detector, m.source)) for m in now])
            onset_ms = min(m.onset_ms for m in now)
        yield Finding(
            kind=kind,
            outcome=outcome,
            reason=reason,
            figure=FIGURE,
            value=said.evidence * sum(m.share for m in now) if now else left,
            threshold=1.0,
            rows=rows,
            detail=detail,
            onset_ms=onset_ms,
        )


def _joined(parts: Sequence[str]) -> str:
    said = "; ".join(parts[:MOST_SENTENCES])
    more = len(parts) - MOST_SENTENCES
    return said if more <= 0 else f"{said}; and {more} more"


def _tree(watching: Watching, after: State, said: Said) -> Tree:
    detector = watching.detector
    return {
        "id": watching.id,
        "evidence": said.evidence,
        "windows_per_alarm": detector.windows_per_alarm,
        "moved": [
            {
                **msgspec.to_builtins(m),
                "kind": str(kind_of(_source(detector, m.source), m.what)),
                "says": sentence(m, _source(detector, m.source)),
            }
            for m in said.moved
        ],
        "open": {
            name: {
                "kind": str(kind_of(_source(detector, name), one.moved.what)),
                "what": one.moved.what,
                "onset_ms": one.moved.onset_ms,
                "says": sentence(one.moved, _source(detector, name)),
            }
            for name, one in after.muted.items()
        },
        "resolved": list(said.resolved),
        # Rounded: every verdict keeps it, and more digits would say nothing.
        "ranking": [
            {"source": r.source, "what": r.what, "share": round(r.share, SHARE_DIGITS)}
            for r in said.ranking
            if round(r.share, SHARE_DIGITS)
        ],
        "segments": [
            {"segment": s.segment, "share": round(s.share, SHARE_DIGITS)}
            for s in said.segments
            if round(s.share, SHARE_DIGITS)
        ],
    }


def says_the_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two trees tell people the same; the evidence itself may differ a little after a replay."""

    def told(tree: Mapping[str, Any]) -> Any:
        moved = [(m["source"], m["what"], m["onset_ms"]) for m in tree.get("moved", ())]
        held = [(n, o["what"], o["onset_ms"]) for n, o in sorted(tree.get("open", {}).items())]
        return moved, held, tree.get("resolved")

    return bool(told(before) == told(now))


def _source(detector: Detector, name: str) -> SourceContrasts:
    return detector.contrasts.sources[detector.names.index(name)]


# --- words ------------------------------------------------------------------------------------------


def sentence(moved: Moved, source: SourceContrasts) -> str:
    """Say what has moved, how far, since when and how much of the evidence it is."""
    windows = "1 window" if moved.windows == 1 else f"{moved.windows} windows"
    name = f"{source.column} and {source.other}" if source.origin == "joint" else moved.source
    return (
        f"{name}: {effect_words(moved, source)} over {windows} since {_when(moved.onset_ms)}, "
        f"{moved.share:.0%} of the evidence"
    )


def _when(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
