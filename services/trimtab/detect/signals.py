"""Signals for a diagnosis, from what verdicts hold and from labelled rows.

A user's rule gives a sign as the detector does: `psi(income) > 0.2` in alarm is S3, `missing_rate(income)`
is S1, `accuracy < 0.9` a drop of quality. A kind that some judged finding speaks of is measured; one that
none does is not.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from trimtab.detect.diagnosis import Code, Deploy, Sign, Signals, Signs
from trimtab.detect.drift import FIGURE
from trimtab.detect.label_signals import LabelSignals
from trimtab.records import Finding, Kind, Outcome, Reason, Verdict

DEPLOY_SHARE = 0.05
"""Share of a window's rows from which on a version counts as deployed: a canary's first step is none."""
ESTIMATED_FIGURE = "accuracy"
LEAST_ESTIMATED_DROP = 0.02
"""A smaller drop of the estimated accuracy is none."""
UNJUDGED = frozenset(
    {
        Reason.WAITING_FOR_LABELS,
        Reason.CALIBRATING,
        Reason.TOO_FEW_ROWS,
        Reason.NO_DATA,
        Reason.STALLED,
        Reason.LOST_MESSAGES,
        Reason.UNDEFINED,
        Reason.NOT_APPLICABLE,
    }
)
"""Reasons of findings that say nothing about the model."""
_GROUPS: dict[str, tuple[Code, str]] = {
    Kind.DATA_QUALITY: (Code.DATA_QUALITY, "data_quality"),
    Kind.INPUT: (Code.FEATURE_DRIFT, "features"),
    Kind.PREDICTION: (Code.SCORE_DRIFT, "answers"),
    Kind.PERFORMANCE: (Code.QUALITY_DROP, "quality"),
    Kind.RESOURCES: (Code.SERVICE, "service"),
    Kind.VOLUME: (Code.SERVICE, "service"),
}
"""The code and the field of `Signals` that a kind of finding belongs to."""
Key = tuple[Kind, str, str | None]


class Judged(Struct, frozen=True):
    """A finding that was judged, and the verdict it stands in."""

    finding: Finding
    verdict: Verdict

    @property
    def stands(self) -> bool:
        """Whether it is established: an alarm, or a `warn` rule that is met as often as it asks."""
        finding = self.finding
        return finding.outcome is Outcome.ALARM or finding.reason is Reason.RULE_BREACHED

    @property
    def key(self) -> Key:
        """What it is about, the same in every window."""
        return self.finding.kind, self.finding.figure, self.finding.rule

    @property
    def onset_ms(self) -> int:
        """When it began; the window's start where nothing says more."""
        onset_ms = self.finding.onset_ms
        return self.verdict.window_start_ms if onset_ms is None else onset_ms


def is_judged(finding: Finding) -> bool:
    """Whether a finding says something about the model; that rows came is not that."""
    counted = finding.kind is Kind.VOLUME and finding.rule is None and finding.figure == "rows"
    return finding.reason not in UNJUDGED and not counted


def newest_judged(verdicts: Iterable[Verdict]) -> list[Judged]:
    """Return the newest judged finding of each rule, and of the detector by kind; `verdicts` newest first."""
    found: dict[Key, Judged] = {}
    for verdict in verdicts:
        for finding in verdict.findings:
            if is_judged(finding):
                judged = Judged(finding, verdict)
                found.setdefault(judged.key, judged)
    return list(found.values())


def signals_of(
    verdicts: Sequence[Verdict],
    *,
    labels_promised: bool,
    since_ms: int = 0,
    labelled_rows: int | None = None,
) -> Signals:
    """Return what verdicts tell. `verdicts` are the latest of each window, newest first.

    Windows before `since_ms` (an earlier champion's) give no signs; whether a sign is new, and which version
    came when, is read from them.
    """
    recent = [verdict for verdict in verdicts if verdict.window_start_ms >= since_ms]
    groups: dict[str, Signs] = {}
    for judged in newest_judged(recent):
        code, field = _GROUPS.get(judged.finding.kind, (None, ""))
        if code is None:
            continue
        signs = signs_of(judged, code) if judged.stands else ()
        fresh = was_well_before(verdicts, judged.key, judged.onset_ms)
        signs = tuple(replace(sign, fresh=fresh) for sign in signs)
        groups[field] = groups.get(field, ()) + signs
    newest = recent[0] if recent else None
    moved = (*groups.get("features", ()), *groups.get("answers", ()))
    fields: dict[str, Any] = {**groups, "estimate": estimated_drop(recent, moved)}
    return Signals(
        **fields,
        deploys=deploys_of(verdicts),
        serving=next(filter(None, map(_serving, recent)), ""),
        labelled_rows=labelled_rows,
        labels_promised=labels_promised,
        window_ms=newest.window_end_ms - newest.window_start_ms if newest else 3_600_000,
    )


def signs_of(judged: Judged, code: Code) -> Signs:
    """Return the signs of a finding that stands: one of a rule, one per moved source of the detector."""
    finding = judged.finding
    if finding.rule is None:
        moved = _moved(judged, code)
        if moved:
            return moved
        said = finding.detail or f"{finding.figure} has changed"
        return (_sign(judged, code, _source(finding.figure), _sentence(said)),)
    if finding.value is None:
        text = f"{finding.figure} breaks the rule `{finding.rule}`."
    else:
        text = f"{finding.figure} is {finding.value:.4g}, which meets the rule `{finding.rule}`."
    return (_sign(judged, code, _source(finding.figure), text),)


def estimated_drop(verdicts: Sequence[Verdict], moved: Signs) -> Signs | None:
    """Return S5: what scores alone say of quality, since the oldest onset of what moved, against before.

    Read from the figures' part `estimated`; None where nothing moved or it holds no valid estimate on a side.
    The two standard errors of the difference are too wide where both share a calibrator's noise: that is the
    safe side.
    """
    onsets = [sign.onset_ms for sign in moved if sign.onset_ms is not None]
    if not onsets:
        return None
    onset_ms = min(onsets)
    sides: tuple[list[tuple[float, float]], ...] = ([], [])
    for verdict in verdicts:
        tree = verdict.figures.get("estimated") or {}
        found = tree.get("figures", {}).get(ESTIMATED_FIGURE)
        if found is not None and tree.get("status") in ("ok", "extrapolating"):
            sides[verdict.window_start_ms >= onset_ms].append((found["value"], found["se"]))
    if not all(sides):
        return None
    (before, noise), (now, more_noise) = ((_mean(side, 0), _mean(side, 1)) for side in sides)
    limit = max(LEAST_ESTIMATED_DROP, 2 * math.hypot(noise, more_noise))
    if before - now <= limit:
        return ()
    text = f"By its scores, {now:.1%} of the answers are right, {before:.1%} were: an estimate."
    return (
        Sign(
            code=Code.ESTIMATED_DROP,
            subject=f"estimated {ESTIMATED_FIGURE}",
            text=text,
            value=round(now, 4),
            limit=round(before, 4),
            onset_ms=onset_ms,
        ),
    )


def _mean(side: Sequence[tuple[float, float]], at: int) -> float:
    return sum(pair[at] for pair in side) / len(side)


def _sign(judged: Judged, code: Code, subject: str, text: str) -> Sign:
    finding = judged.finding
    return Sign(
        code=code,
        subject=subject,
        text=text,
        value=finding.value,
        limit=finding.threshold,
        onset_ms=judged.onset_ms,
    )


def _moved(judged: Judged, code: Code) -> Signs:
    """The sources that the detector's tree says have moved or have not come back."""
    tree = judged.verdict.figures.get(FIGURE)
    if judged.finding.figure != FIGURE or not isinstance(tree, dict):
        return ()
    kind = judged.finding.kind.value
    signs: dict[str, Sign] = {}
    for one in tree.get("moved", ()):
        if one.get("kind") == kind:
            signs[one["source"]] = Sign(
                code=code,
                subject=_source(one["source"]),
                text=_sentence(one["says"]),
                value=one.get("effect"),
                limit=one.get("usual"),
                onset_ms=one["onset_ms"],
            )
    for source, one in tree.get("open", {}).items():
        if one.get("kind") == kind and source not in signs:
            name = _source(source)
            signs[source] = Sign(
                code=code,
                subject=name,
                text=_sentence(one.get("says") or f"{name} ({one['what']}) is not as it was"),
                onset_ms=one["onset_ms"],
            )
    return tuple(signs.values())


def _source(figure: str) -> str:
    """Return the feature or output that a figure is about: of `psi(income)`, income; `accuracy` is itself."""
    _, bracket, inner = figure.partition("(")
    name = inner.removesuffix(")") if bracket else figure
    return name.removeprefix("output:")


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def was_well_before(verdicts: Sequence[Verdict], key: Key, onset_ms: int) -> bool:
    """Whether the newest judged window before the onset did not show it; False where none was judged.

    Only what was well before a deploy can be the deploy's doing.
    """
    for verdict in verdicts:
        if verdict.window_start_ms >= onset_ms:
            continue
        for finding in verdict.findings:
            judged = Judged(finding, verdict)
            if judged.key == key and is_judged(finding):
                return finding.outcome is Outcome.OK
    return False


def deploys_of(verdicts: Sequence[Verdict]) -> tuple[Deploy, ...]:
    """Return which versions came into traffic within these windows, or became the one that is judged.

    `verdicts` newest first. Versions of the oldest window are no deploys: nobody saw them come.
    """
    found: dict[str, Deploy] = {}
    known: set[str] = set()
    judged: str | None = None
    for verdict in reversed(verdicts):
        rows: Mapping[str, int] = verdict.figures.get("rows_by_version", {})
        total = sum(rows.values())
        if not total:
            continue
        serving = {version for version, n in rows.items() if n >= DEPLOY_SHARE * total}
        now = _serving(verdict)
        if known:
            for version in sorted(serving - known):
                found[version] = Deploy(version, verdict.window_start_ms, judged or "")
            if judged is not None and now != judged:
                found[now] = Deploy(now, verdict.window_start_ms, judged)
        known |= serving
        judged = now
    return tuple(sorted(found.values(), key=lambda deploy: deploy.first_seen_ms))


def _serving(verdict: Verdict) -> str:
    """The version whose answers a verdict judges; without one, that of most rows; "" without rows."""
    rows: Mapping[str, int] = verdict.figures.get("rows_by_version") or {}
    main = max(sorted(rows), key=lambda version: rows[version], default="")
    return str(verdict.figures.get("judged_version") or main)


def with_labels(signals: Signals, said: LabelSignals | None) -> Signals:
    """Add what labelled rows say; the verdicts' own signals stay where they have them."""
    if said is None:
        return signals
    return replace(
        signals,
        label_prior=said.label_prior,
        class_conditional=said.class_conditional,
        calibration=said.calibration,
        calibration_shape=said.calibration_shape,
        score_of_labelled=said.score,
        features=said.features if signals.features is None else signals.features,
        answers=said.score if signals.answers is None else signals.answers,
        quality=said.quality if signals.quality is None else signals.quality,
        label_pipeline=said.label_pipeline,
        labelled_rows=said.rows,
    )
