"""What a decision rests on: the newest judged findings of a model, its labels and its history. Pure.

A verdict of the newest window often cannot speak of performance yet, because labels come later. So
each rule is taken from the newest window that judged it, among the last `MEMORY_WINDOWS`.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from trimtab.detect.diagnosis import Cause, Code, Diagnosis, Sign, Signals, Signs, diagnose
from trimtab.detect.label_signals import LabelSignals
from trimtab.detect.signals import Judged, newest_judged, signals_of, with_labels
from trimtab.records import (
    FINAL_RUN,
    Incident,
    Kind,
    Outcome,
    Reason,
    Rollout,
    RolloutState,
    Run,
    RunState,
    Verdict,
)

MEMORY_WINDOWS = 24
"""How many windows back a judged finding still counts; chosen to outlive a label delay."""

_INPUT_KINDS = frozenset({Kind.INPUT, Kind.PREDICTION})
REFUNDED = frozenset({RunState.SUPERSEDED, RunState.CANCELLED})
"""Runs that end so give their share of the month's budget back; crashes and refusals count."""


class Concern(Struct, frozen=True, kw_only=True):
    """The newest judged finding of one rule or detector."""

    kind: Kind
    outcome: Outcome
    reason: Reason = Reason.WITHIN_LIMITS
    figure: str
    rule: str | None
    value: float | None
    threshold: float | None
    window_start_ms: int
    onset_ms: int

    @property
    def stands(self) -> bool:
        """Whether it is established: an alarm, or a `warn` rule that is met as often as it asks."""
        return self.outcome is Outcome.ALARM or self.reason is Reason.RULE_BREACHED


class Seen(Struct, frozen=True, kw_only=True):
    """What was read beside the verdicts because something stands."""

    labels: LabelSignals | None = None
    """What the archive's labelled rows say; None: not measured."""
    pending: bool = False
    """The archive's rows are being read; the next tick knows more."""
    broken_values: Signs | None = None
    """Collapsed values, changed units, risen rates of the newest window."""
    heterogeneity: Signs | None = None
    """Versions that differ in what they are fed."""


NOTHING_SEEN = Seen()


class Attempt(Struct, frozen=True):
    """How the model's last attempt ended, and when; `incident_id` is the incident it was for."""

    run_id: str
    outcome: str
    finished_ms: int
    incident_id: str | None = None


NO_DIAGNOSIS = diagnose(signals_of([], labels_promised=False))


class Evidence(Struct, frozen=True, kw_only=True):
    """All that `decide` looks at."""

    model: str
    concerns: list[Concern] = field(default_factory=list)
    watches_performance: bool = False
    """Whether any rule looks at performance, judged or not."""
    judged_performance: bool = False
    """Whether any performance finding has been judged in the remembered windows."""
    newest_window_ms: int | None = None
    labelled_rows: int = 0
    """Labelled rows of the champion since the onset."""
    labels_onset_ms: int | None = None
    """The onset those labels are counted from."""
    incident: Incident | None = None
    waiting_since_ms: int | None = None
    """When this incident began to wait for labels."""
    last_attempt: Attempt | None = None
    runs_this_month: int = 0
    busy: str | None = None
    """What is under way for the model ("run …", "rollout …"); None when nothing is."""
    champion: bool = True
    """Whether the model has a champion to compare a challenger with."""
    diagnosis: Diagnosis = NO_DIAGNOSIS
    """What kind of change it is, from all signals."""
    pending: bool = False
    """Labelled rows that may change the diagnosis are being read."""
    watching: str | None = None
    """The rollout whose promotion is being watched: it can still be taken back."""

    def alarms(self, *kinds: Kind) -> list[Concern]:
        """Concerns in alarm among these kinds, worst first known onset first."""
        found = [c for c in self.concerns if c.outcome is Outcome.ALARM and c.kind in kinds]
        return sorted(found, key=lambda c: (c.onset_ms, c.figure))

    def moved(self) -> list[Concern]:
        """What stands of inputs and predictions, as an alarm or as a warning, oldest onset first."""
        found = [c for c in self.concerns if c.stands and c.kind in _INPUT_KINDS]
        return sorted(found, key=lambda c: (c.onset_ms, c.figure))


def concerns(verdicts: Sequence[Verdict], since_ms: int = 0) -> list[Concern]:
    """The newest judged finding per rule, from the latest verdict of each window.

    `verdicts` in any order; windows that start before `since_ms` (an earlier champion's) are left out.
    """
    return [_concern(judged) for judged in newest_judged(newest_windows(verdicts, since_ms))]


def newest_windows(verdicts: Iterable[Verdict], since_ms: int = 0) -> list[Verdict]:
    """The latest revision of each of the last `MEMORY_WINDOWS` windows, newest window first."""
    latest: dict[int, Verdict] = {}
    for verdict in verdicts:
        held = latest.get(verdict.window_start_ms)
        if verdict.window_start_ms >= since_ms and (
            held is None or verdict.revision > held.revision
        ):
            latest[verdict.window_start_ms] = verdict
    starts = sorted(latest, reverse=True)[:MEMORY_WINDOWS]
    return [latest[start] for start in starts]


def _concern(judged: Judged) -> Concern:
    finding = judged.finding
    return Concern(
        kind=finding.kind,
        outcome=finding.outcome,
        reason=finding.reason,
        figure=finding.figure,
        rule=finding.rule,
        value=finding.value,
        threshold=finding.threshold,
        window_start_ms=judged.verdict.window_start_ms,
        onset_ms=judged.onset_ms,
    )


def harm_onset_ms(found: Sequence[Concern], incident: Incident | None) -> int | None:
    """Where training data and labels are counted from: the first breached window of performance.

    Without a performance alarm, the incident's own onset; None when there is neither.
    """
    onsets = [
        c.onset_ms for c in found if c.kind is Kind.PERFORMANCE and c.outcome is Outcome.ALARM
    ]
    if onsets:
        return min(onsets)
    moved = [c.onset_ms for c in found if c.kind in _INPUT_KINDS and c.stands]
    if incident is not None:
        return incident.onset_ms
    return min(moved) if moved else None


def gather(
    *,
    model: str,
    verdicts: Sequence[Verdict],
    since_ms: int,
    labelled_rows: int,
    labels_onset_ms: int | None,
    incident: Incident | None,
    runs: Sequence[Run],
    month_start_ms: int,
    last_attempt: Attempt | None,
    busy: str | None,
    champion: bool,
    labels_promised: bool = True,
    seen: Seen = NOTHING_SEEN,
    rollout: Rollout | None = None,
) -> Evidence:
    """Put the evidence together. `runs` are the model's runs, at least since the month began.

    `rollout` is the active one.
    """
    found = concerns(verdicts, since_ms)
    windows = newest_windows(verdicts, since_ms)
    waiting = None if incident is None else incident.decision.get("waiting_since_ms")
    return Evidence(
        model=model,
        concerns=found,
        watches_performance=any(f.kind is Kind.PERFORMANCE for v in windows for f in v.findings),
        judged_performance=any(c.kind is Kind.PERFORMANCE for c in found),
        newest_window_ms=windows[0].window_start_ms if windows else None,
        labelled_rows=labelled_rows,
        labels_onset_ms=labels_onset_ms,
        incident=incident,
        waiting_since_ms=waiting,
        last_attempt=last_attempt,
        runs_this_month=sum(
            run.created_ms >= month_start_ms and run.state not in REFUNDED for run in runs
        ),
        busy=busy,
        champion=champion,
        diagnosis=diagnosis_of(
            verdicts, since_ms, labels_promised, labelled_rows, seen, rollout, incident
        ),
        pending=seen.pending,
        watching=rollout.id if rollout and rollout.state is RolloutState.WATCHING else None,
    )


def diagnosis_of(
    verdicts: Sequence[Verdict],
    since_ms: int,
    labels_promised: bool,
    labelled_rows: int,
    seen: Seen = NOTHING_SEEN,
    rollout: Rollout | None = None,
    incident: Incident | None = None,
) -> Diagnosis:
    """Diagnose from verdicts, labelled rows and the active rollout; nothing stands, nothing is diagnosed."""
    signals = signals_of(
        newest_windows(verdicts),
        labels_promised=labels_promised,
        since_ms=since_ms,
        labelled_rows=labelled_rows,
    )
    if signals.firing:
        signals = with_labels(signals, seen.labels)
        broken = (*(signals.data_quality or ()), *(seen.broken_values or ()))
        signals = replace(
            signals,
            data_quality=None if signals.data_quality is None and not broken else broken,
            heterogeneity=seen.heterogeneity,
        )
    signals = replace(signals, canary=_harm(rollout))
    return _held(incident, signals) or diagnose(signals)


def _held(incident: Incident | None, signals: Signals) -> Diagnosis | None:
    """The incident's bad release, while it stands: the windows that showed it come do not stay for ever."""
    known = None if incident is None else incident.decision.get("diagnosis")
    if known is None or signals.quality == () or signals.data_quality or signals.heterogeneity:
        return None
    try:
        diagnosis = msgspec.convert(known, Diagnosis, strict=False)
    except msgspec.ValidationError:  # of a release that knew other causes
        return None
    versions = {sign.subject for sign in diagnosis.reasons if sign.code is Code.DEPLOY}
    moved = signals.features or signals.answers or signals.quality
    same = diagnosis.cause is Cause.BAD_RELEASE and signals.serving in versions
    return diagnosis if same and moved else None


def _harm(rollout: Rollout | None) -> Signs | None:
    """S10: an active rollout that is being rolled back for what its arms showed."""
    if rollout is None:
        return None
    look = rollout.assessment
    if rollout.state is not RolloutState.ROLLING_BACK or look.get("decision") != "roll_back":
        return ()
    return (
        Sign(
            code=Code.CANARY,
            subject=f"version {rollout.challenger_version}",
            text=str(look.get("reason", rollout.reason)),
            onset_ms=rollout.step_since_ms,
        ),
    )


def last_attempt(runs: Sequence[Run], ends: Mapping[str, tuple[str, int]]) -> Attempt | None:
    """The model's newest finished attempt; `ends` maps a run to its rollout's (end, time in ms).

    A blessed run is finished when its rollout is.
    """
    ended: list[Attempt] = []
    for run in runs:
        if run.state in REFUNDED or run.state not in FINAL_RUN:
            continue
        outcome, finished_ms = run.state.value, run.finished_ms or run.updated_ms
        if run.id in ends:
            outcome, finished_ms = ends[run.id]
        ended.append(Attempt(run.id, outcome, finished_ms, run.incident_id))
    return max(ended, key=lambda attempt: attempt.finished_ms, default=None)
