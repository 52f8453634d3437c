"""What kind of change it is, since when, and what to do: from signals to one diagnosis.

A signal is `None` where it was not measured, empty where it was measured and is quiet, else its signs. The
rules (statistics, F) are asked in order, and where several causes are seen at once the safest action wins:
fix upstream, roll back, wait for labels, recalibrate, retrain. Mixed causes cannot be told apart from these
signals, so every sign is reported.

    broken data > bad release > label pipeline > what the labelled rows say > what moved without them

Without labels only broken data, a release, and "covariate or joint" may be claimed.
"""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

LEAST_LABELLED = 500
"""Labelled rows since the onset below which quiet label signals prove nothing."""


class Cause(StrEnum):
    """What kind of change it is. A closed set."""

    NONE = "none"
    DATA_QUALITY_BREAK = "data_quality_break"
    BAD_RELEASE = "bad_release"
    LABEL_PIPELINE_BREAK = "label_pipeline_break"
    LABEL_SHIFT = "label_shift"
    """P(label) moved, P(inputs | label) did not."""
    CONCEPT_DRIFT = "concept_drift"
    """P(label | inputs) moved."""
    COVARIATE_HARMFUL = "covariate_harmful"
    """P(inputs) moved, P(label | inputs) did not, and quality fell."""
    COVARIATE_BENIGN = "covariate_benign"
    """The same, and quality did not fall."""
    COVARIATE_OR_JOINT = "covariate_or_joint"
    """Inputs moved; no labels are promised that could tell more."""
    SUSPECTED_HARM = "suspected_harm"
    """Inputs moved; labels that must show harm are not here yet."""
    JOINT_OR_SERVING_CHANGE = "joint_or_serving_change"
    """Answers moved while each input, by itself, did not."""
    SERVICE = "service"
    """Volume or resources, and nothing else: the model is not the cause."""
    UNDETERMINED = "undetermined"
    """Something fired, and what is measured does not tell which change it is."""


class Advice(StrEnum):
    """What to do. `SAFEST` is their order."""

    FIX_UPSTREAM = "fix_upstream"
    ROLL_BACK = "roll_back"
    WAIT_FOR_LABELS = "wait_for_labels"
    RECALIBRATE = "recalibrate"
    RETRAIN = "retrain"
    DO_NOTHING = "do_nothing"


SAFEST = tuple(Advice)


class Code(StrEnum):
    """Which signal a sign belongs to (statistics, F)."""

    DATA_QUALITY = "S1"
    HETEROGENEITY = "S2"
    FEATURE_DRIFT = "S3"
    SCORE_DRIFT = "S4"
    ESTIMATED_DROP = "S5"
    LABEL_PRIOR = "S6"
    CLASS_CONDITIONAL = "S7"
    CALIBRATION = "S8"
    DEPLOY = "S9"
    CANARY = "S10"
    QUALITY_DROP = "quality"
    """Quality fell on labelled rows."""
    LABEL_PIPELINE = "labels"
    """Labels come less often, or from elsewhere, than they did."""
    SERVICE = "service"


class Sign(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One firing signal, with its number in one plain sentence."""

    code: Code
    text: str
    subject: str = ""
    """The feature, output, version or figure it is about."""
    value: float | None = None
    limit: float | None = None
    """What `value` was compared with."""
    onset_ms: int | None = None
    fresh: bool = True
    """Whether it was not there before its onset: only then can a deploy have brought it."""


Signs = tuple[Sign, ...]


class Deploy(Struct, frozen=True):
    """When a version was first seen in traffic: the start of that window, event time."""

    version: str
    first_seen_ms: int
    before: str = ""
    """The version that had the traffic before."""


class Signals(Struct, frozen=True, kw_only=True):
    """Everything that a diagnosis rests on. None: not measured; (): measured, and quiet."""

    data_quality: Signs | None = None
    """S1: rates of missing, wrong-type, unseen, infinite, out-of-range values; collapses; changed units."""
    heterogeneity: Signs | None = None
    """S2: one version, producer or partition differs from the rest."""
    features: Signs | None = None
    """S3."""
    answers: Signs | None = None
    """S4: score or predicted class."""
    estimate: Signs | None = None
    """S5: quality estimated without labels fell."""
    label_prior: Signs | None = None
    """S6."""
    class_conditional: Signs | None = None
    """S7: inputs or score of one class are not what they were."""
    calibration: Signs | None = None
    """S8, intercept: labels come more, or less, often than the reference says for the same inputs."""
    calibration_shape: Signs | None = None
    """S8, slope and per feature: they do so for some inputs more than for others."""
    score_of_labelled: Signs | None = None
    """S4 of the labelled rows alone: under label shift the score must have moved with the labels."""
    deploys: tuple[Deploy, ...] | None = None
    """S9."""
    serving: str = ""
    """The version whose answers are judged."""
    canary: Signs | None = None
    """S10: a rollout's evidence of harm."""
    quality: Signs | None = None
    """Quality fell on labelled rows, by a rule or against the reference."""
    label_pipeline: Signs | None = None
    service: Signs | None = None
    """Volume and resources."""
    labelled_rows: int | None = None
    """Labelled rows since the onset."""
    labels_promised: bool = True
    window_ms: int = 3_600_000
    """Length of a window: how exactly an onset is known."""

    @property
    def firing(self) -> Signs:
        """Return every sign, in the order of the codes."""
        groups = (
            self.data_quality,
            self.heterogeneity,
            self.features,
            self.answers,
            self.estimate,
            self.label_prior,
            self.class_conditional,
            self.calibration,
            self.calibration_shape,
            self.canary,
            self.quality,
            self.label_pipeline,
            self.service,
        )
        return tuple(sign for group in groups for sign in group or ())


class Diagnosis(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What kind of change it is, why, and what to do."""

    cause: Cause
    advice: Advice
    summary: str
    """What it is and what to do, in one or two short sentences."""
    reasons: Signs = ()
    """Every firing sign: first those that the cause rests on, then those of other causes."""
    onset_ms: int | None = None
    """When what it rests on began, event time."""
    also: tuple[Cause, ...] = ()
    """Other causes that are seen as well; `advice` is the safest of all."""


class _Found(Struct, frozen=True):
    """One cause that fits."""

    cause: Cause
    advice: Advice
    summary: str
    signs: Signs


def diagnose(signals: Signals) -> Diagnosis:
    """Say what kind of change the signals show (see the module's text)."""
    firing = signals.firing
    asked = (_broken_data(signals), _bad_release(signals), _broken_labels(signals))
    sure = [one for one in asked if one is not None]
    causes = sure or [_shift(signals)]
    first = min(causes, key=lambda one: SAFEST.index(one.advice))
    onsets = [sign.onset_ms for sign in first.signs or firing if sign.onset_ms is not None]
    return Diagnosis(
        cause=first.cause,
        advice=first.advice,
        summary=first.summary,
        reasons=tuple(dict.fromkeys(_deploy_reason(first, signals) + first.signs + firing)),
        onset_ms=min(onsets, default=None),
        also=tuple(one.cause for one in causes if one is not first),
    )


# --- causes that are fixed before anything is learned -------------------------------------------------


def _broken_data(signals: Signals) -> _Found | None:
    signs = (*(signals.data_quality or ()), *(signals.heterogeneity or ()))
    if not signs:
        return None
    deploy = _deploy_behind(signs, signals)
    ours = ""
    if deploy is not None:
        ours = f" It began with version {deploy.version}: if that deploy is ours, roll it back."
    return _Found(
        Cause.DATA_QUALITY_BREAK,
        Advice.FIX_UPSTREAM,
        f"The data is broken ({subjects(signs)}): fix it upstream, do not retrain.{ours}",
        signs,
    )


def _bad_release(signals: Signals) -> _Found | None:
    if signals.canary:
        return _Found(
            Cause.BAD_RELEASE,
            Advice.ROLL_BACK,
            f"The new version does harm ({subjects(signals.canary)}): roll back.",
            signals.canary,
        )
    if signals.quality == ():
        return None  # labelled rows say that the release does no harm
    signs = tuple(
        sign
        for group in (signals.features, signals.answers, signals.estimate, signals.quality)
        for sign in group or ()
    )
    deploy = _deploy_behind(signs, signals)
    if deploy is None:
        return None
    back = f" to {deploy.before}" if deploy.before else ""
    signs = tuple(sign for sign in signs if _coincide(sign, deploy, signals))
    return _Found(
        Cause.BAD_RELEASE,
        Advice.ROLL_BACK,
        f"{_capital(subjects(signs))} changed when version {deploy.version} came: roll back{back}.",
        signs,
    )


def _broken_labels(signals: Signals) -> _Found | None:
    residual = (*(signals.calibration or ()), *(signals.calibration_shape or ()))
    if not signals.label_pipeline or not residual:
        return None
    return _Found(
        Cause.LABEL_PIPELINE_BREAK,
        Advice.FIX_UPSTREAM,
        "The labels changed together with the way they come: check the label pipeline, do not retrain.",
        (*signals.label_pipeline, *residual),
    )


def _deploy_behind(signs: Sequence[Sign], signals: Signals) -> Deploy | None:
    """Return the newest deploy that some sign began with."""
    behind = [
        deploy
        for deploy in signals.deploys or ()
        if any(_coincide(sign, deploy, signals) for sign in signs)
    ]
    return max(behind, key=lambda deploy: deploy.first_seen_ms, default=None)


def _coincide(sign: Sign, deploy: Deploy, signals: Signals) -> bool:
    """Whether a sign began in the deploy's first window or the next: late in a window, it shows later."""
    if sign.onset_ms is None or not sign.fresh:
        return False
    return 0 <= sign.onset_ms - deploy.first_seen_ms <= signals.window_ms


def _deploy_reason(found: _Found, signals: Signals) -> Signs:
    deploy = _deploy_behind(found.signs, signals)
    if deploy is None:
        return ()
    return (
        Sign(
            code=Code.DEPLOY,
            subject=deploy.version,
            text=f"Version {deploy.version} was first seen when it began.",
            onset_ms=deploy.first_seen_ms,
        ),
    )


# --- shifts -------------------------------------------------------------------------------------------


def _shift(signals: Signals) -> _Found:
    measured = signals.calibration is not None and signals.calibration_shape is not None
    if signals.calibration or signals.calibration_shape:
        return _by_calibration(signals)
    if measured and (signals.labelled_rows or 0) >= LEAST_LABELLED:
        return _calibrated(signals)
    return _without_calibration(signals)


def _by_calibration(signals: Signals) -> _Found:
    """S8 fires: P(label | inputs) is not what it was."""
    intercept, shape = signals.calibration or (), signals.calibration_shape or ()
    conditional, prior = signals.class_conditional, signals.label_prior or ()
    if shape or conditional:
        where = shape or conditional or ()
        return _Found(
            Cause.CONCEPT_DRIFT,
            Advice.RETRAIN,
            f"The same inputs now mean other labels ({subjects(where)}): retrain on data since the onset.",
            (*intercept, *shape, *(conditional or ())),
        )
    moved = signals.score_of_labelled
    if prior and conditional is not None and moved != ():
        return _Found(
            Cause.LABEL_SHIFT,
            Advice.RECALIBRATE,
            f"The classes come in other shares ({subjects(prior)}), each looks as before: recalibrate, "
            "or correct the threshold for the new shares.",
            (*prior, *intercept),
        )
    return _Found(
        Cause.UNDETERMINED,
        Advice.WAIT_FOR_LABELS,
        "Labels come more or less often than they did; more of them must tell label shift from concept drift.",
        (*intercept, *prior),
    )


def _calibrated(signals: Signals) -> _Found:
    """S8 is quiet with enough labels: what moved is P(inputs) alone, or nothing."""
    moved, quality = _moved(signals), signals.quality or ()
    if signals.features == () and signals.answers:
        return _joint(signals)
    if not moved:
        return _quality_alone(signals)
    if quality:
        return _Found(
            Cause.COVARIATE_HARMFUL,
            Advice.RETRAIN,
            f"Inputs moved to where the model is worse ({subjects(moved)}), and quality fell: "
            "retrain with the new data.",
            (*moved, *quality),
        )
    return _Found(
        Cause.COVARIATE_BENIGN,
        Advice.DO_NOTHING,
        f"Inputs moved ({subjects(moved)}), quality did not suffer: nothing to do. "
        "Accept the new baseline once it has settled.",
        moved,
    )


def _without_calibration(signals: Signals) -> _Found:
    """What may be said without enough labelled rows."""
    moved, estimate, quality = _moved(signals), signals.estimate, signals.quality
    if signals.features == () and signals.answers:
        return _joint(signals)
    if not moved:
        return _quality_alone(signals)
    names = subjects(moved)
    if quality:
        return _Found(
            Cause.UNDETERMINED,
            Advice.RETRAIN,
            f"Inputs moved ({names}) and quality fell. Whether the inputs alone explain it "
            "cannot be told: too few labelled rows to compare.",
            (*moved, *quality),
        )
    if quality is not None:
        return _Found(
            Cause.COVARIATE_BENIGN,
            Advice.DO_NOTHING,
            f"Inputs moved ({names}), quality did not suffer: nothing to do.",
            moved,
        )
    if not signals.labels_promised:
        return _Found(
            Cause.COVARIATE_OR_JOINT,
            Advice.DO_NOTHING,
            f"Inputs moved ({names}). No labels are promised, so harm cannot be shown: no retraining. "
            "A person may look.",
            (*moved, *(estimate or ())),
        )
    if signals.answers == () and estimate == ():
        return _Found(
            Cause.COVARIATE_BENIGN,
            Advice.DO_NOTHING,
            f"Inputs moved ({names}), the answers did not: nothing to do. Assumes that the same inputs "
            "still mean the same labels.",
            moved,
        )
    return _Found(
        Cause.SUSPECTED_HARM,
        Advice.WAIT_FOR_LABELS,
        f"Inputs moved ({names}); whether it harms, labels must show.",
        (*moved, *(estimate or ())),
    )


def _moved(signals: Signals) -> Signs:
    """S3 and S4; answers alone pass for inputs where no input was measured."""
    return (*(signals.features or ()), *(signals.answers or ()))


def _joint(signals: Signals) -> _Found:
    answers = signals.answers or ()
    if signals.quality:
        return _Found(
            Cause.JOINT_OR_SERVING_CHANGE,
            Advice.WAIT_FOR_LABELS,
            f"The answers moved ({subjects(answers)}) and quality fell, yet no single input moved: check "
            "version, feature order and what feeds the model.",
            (*answers, *signals.quality),
        )
    wait = "wait for labels" if signals.labels_promised else "look at it"
    harmless = signals.quality == ()
    return _Found(
        Cause.JOINT_OR_SERVING_CHANGE,
        Advice.WAIT_FOR_LABELS if signals.labels_promised and not harmless else Advice.DO_NOTHING,
        f"The answers moved ({subjects(answers)}), no single input did: check version and feature "
        + ("order. Quality did not suffer." if harmless else f"order, {wait}."),
        answers,
    )


def _quality_alone(signals: Signals) -> _Found:
    if signals.quality:
        return _Found(
            Cause.UNDETERMINED,
            Advice.RETRAIN,
            f"Quality fell ({subjects(signals.quality)}); nothing that is measured tells why.",
            signals.quality,
        )
    if signals.estimate:
        return _Found(
            Cause.SUSPECTED_HARM,
            Advice.WAIT_FOR_LABELS,
            "Quality, estimated without labels, fell: labels must show whether it is so.",
            signals.estimate,
        )
    if signals.service:
        return _Found(
            Cause.SERVICE,
            Advice.FIX_UPSTREAM,
            f"{subjects(signals.service)} is in alarm. Retraining does not help there: look at the service.",
            signals.service,
        )
    if signals.label_prior or signals.class_conditional or signals.label_pipeline:
        signs = signals.firing
        return _Found(
            Cause.UNDETERMINED,
            Advice.WAIT_FOR_LABELS,
            f"The labelled rows changed ({subjects(signs)}); more of them must tell how.",
            signs,
        )
    return _Found(Cause.NONE, Advice.DO_NOTHING, "Nothing has moved.", ())


def subjects(signs: Sequence[Sign], most: int = 4) -> str:
    """Return what signs are about, in their order; the first few of many."""
    names = list(dict.fromkeys(sign.subject or sign.code.value for sign in signs))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
