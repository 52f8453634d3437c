"""The records that agent, api, serve and store share: verdicts, alerts, incidents, runs, rollouts.

Every record is a value. The store keeps each as a row; the shells change them only by writing a
transition (what was, what is, why, when). Times are integer milliseconds since the epoch, UTC.
"""

from enum import IntEnum, StrEnum
from typing import Any

from msgspec import Struct, field


class Outcome(StrEnum):
    """What a verdict says. A closed set; `severity` is the one order among them."""

    OK = "ok"
    WARNING = "warning"
    ALARM = "alarm"
    CANNOT_TELL = "cannot_tell"

    @property
    def severity(self) -> int:
        """Worse is larger; not being able to tell is worse than a warning, never green."""
        return _SEVERITY[self]


_SEVERITY = {Outcome.OK: 0, Outcome.WARNING: 1, Outcome.CANNOT_TELL: 2, Outcome.ALARM: 3}


class Kind(StrEnum):
    """What a finding is about."""

    DATA_QUALITY = "data_quality"
    INPUT = "input"
    PREDICTION = "prediction"
    PERFORMANCE = "performance"
    RESOURCES = "resources"
    VOLUME = "volume"
    LEDGER = "ledger"
    """Of alerts about trimtab itself, never of a finding."""


class Reason(StrEnum):
    """Why an outcome is what it is. Stable codes; the text beside them may change."""

    WITHIN_LIMITS = "within_limits"
    RULE_BREACHED = "rule_breached"
    RULE_BREACHED_ONCE = "rule_breached_once"
    NO_DATA = "no_data"
    TOO_FEW_ROWS = "too_few_rows"
    WAITING_FOR_LABELS = "waiting_for_labels"
    CALIBRATING = "calibrating"
    STALLED = "stalled"
    LOST_MESSAGES = "lost_messages"
    NOT_APPLICABLE = "not_applicable"
    UNDEFINED = "undefined"
    DETECTOR = "detector"


class Finding(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One judged statement inside a verdict: a rule or a detector's say."""

    kind: Kind
    outcome: Outcome
    reason: Reason
    figure: str
    """Figure name, with its feature in brackets: `psi(income)`."""
    value: float | None = None
    threshold: float | None = None
    """The limit; of a rule against the reference, what that gave here."""
    reference: float | None = None
    """The figure of the active baseline that the limit was taken from; None of a limit that is a number."""
    rule: str | None = None
    """The rule's text; None for a detector."""
    breached: int = 0
    """Breached windows among the last `of` (M of N)."""
    needed: int = 1
    of: int = 1
    rows: int = 0
    detail: str = ""
    onset_ms: int | None = None
    """Start of the first breached window of the run that made it."""


class Evidence(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a verdict rests on; enough to recompute it (design, rule 6)."""

    input_digest: str
    """SHA-256 over the merged state, the series' rule memory before this window, and the ids below."""
    cuts_id: str | None = None
    baseline_id: int | None = None
    contract_revision: int
    code_version: str
    offsets: list[tuple[str, int, int, int]] = field(default_factory=list)
    """(topic, partition, first offset, next offset) that the state covers."""
    panes: int = 0
    prior: dict[str, Any] = field(default_factory=dict)
    """Rule memory (last outcomes) and detector state before this window."""


class Verdict(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One model, one closed window, one revision."""

    model: str
    window_start_ms: int
    window_end_ms: int
    revision: int
    outcome: Outcome
    kind: Kind | None
    """Kind of the worst finding; None when all is well."""
    reason: Reason
    summary: str
    """One plain sentence."""
    findings: list[Finding]
    figures: dict[str, Any]
    """`rows`, `status`, `latency_ms`, `features`, `prediction`, `resources`, `performance`
    (by version), `abnormal`; the exact tree is `trimtab.detect.figures`."""
    evidence: Evidence
    changed: str | None = None
    """For revision > 1: what changed since the revision before."""


class AlertState(StrEnum):
    """Life of an alert."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


class Alert(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One condition of one model that people should know of; opened once, updated, resolved."""

    id: str
    model: str
    """ "" where it is about trimtab itself."""
    condition: str
    """Key of the condition: the rule's text or `detector:KIND`. At most one open alert each."""
    kind: Kind
    state: AlertState
    opened_ms: int
    updated_ms: int
    window_start_ms: int
    """First window that made it."""
    last_window_ms: int
    windows: int
    """Windows in alarm so far."""
    verdict_id: int
    """0 where no verdict made it."""
    summary: str
    resolved_ms: int | None = None
    resolution: str | None = None
    acknowledged_by: str | None = None
    baseline_id: int | None = None
    """The baseline it was opened under: after a re-base quality must be ok, too, to resolve it."""


class IncidentState(StrEnum):
    """States of an incident."""

    WATCHING = "watching"
    DIAGNOSING = "diagnosing"
    WAITING_FOR_LABELS = "waiting_for_labels"
    ACTING = "acting"
    RESOLVED = "resolved"
    ESCALATED = "escalated"


class RunState(StrEnum):
    """States of a retraining run."""

    PLANNED = "planned"
    AWAITING_APPROVAL = "awaiting_approval"
    SEARCHING = "searching"
    FITTING = "fitting"
    REGISTERING = "registering"
    GATING = "gating"
    BLESSED = "blessed"
    REFUSED = "refused"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    WAITING_FOR_CHALLENGER = "waiting_for_challenger"
    """trainer = "external": `retraining.requested` has been published."""
    HELD = "held"
    """A stored state this release does not know is read as this."""


class RolloutState(StrEnum):
    """States of a rollout."""

    PENDING = "pending"
    AWAITING_APPROVAL = "awaiting_approval"
    STEP = "step"
    HELD = "held"
    PROMOTING = "promoting"
    WATCHING = "watching"
    DONE = "done"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"


FINAL_INCIDENT = frozenset({IncidentState.RESOLVED})
FINAL_RUN = frozenset(
    {RunState.BLESSED, RunState.REFUSED, RunState.FAILED, RunState.SUPERSEDED, RunState.CANCELLED}
)
FINAL_ROLLOUT = frozenset({RolloutState.DONE, RolloutState.ROLLED_BACK})


class Role(IntEnum):
    """What a key may do; each role may do what the lower ones may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3


class Incident(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One stretch of trouble with one model; a worsening drift stays one incident."""

    id: str
    model: str
    state: IncidentState
    reason: str
    """Why it is in this state, one plain sentence."""
    opened_ms: int
    updated_ms: int
    onset_ms: int
    """Event time at which the trouble began."""
    attempts: int = 0
    """Retraining runs started for it."""
    next_wake_ms: int | None = None
    """When to look again, by the wall clock."""
    alerts: list[str] = field(default_factory=list)
    run_id: str | None = None
    rollout_id: str | None = None
    decision: dict[str, Any] = field(default_factory=dict)
    """The last decision with its numbers: retrain or not, and why."""
    resolved_ms: int | None = None


class Run(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One retraining: search, fit, register, gate."""

    id: str
    model: str
    incident_id: str | None
    state: RunState
    reason: str
    created_ms: int
    updated_ms: int
    trainer: str
    onset_ms: int
    champion_version: str
    snapshot: dict[str, Any] = field(default_factory=dict)
    """Pinned data: manifest rows, label as-of, hashes, split bounds (ms)."""
    search: dict[str, Any] = field(default_factory=dict)
    """Trials done, best value and parameters."""
    params: dict[str, Any] = field(default_factory=dict)
    """The winner's parameters."""
    version: str | None = None
    """The challenger's version, once registered."""
    artifact_uri: str | None = None
    artifact_sha256: str | None = None
    gate: dict[str, Any] = field(default_factory=dict)
    """The gate's record: champion and challenger figures, gain with interval, checks, verdict."""
    approved_by: str | None = None
    finished_ms: int | None = None


class Rollout(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One challenger on its way to production, or out of it."""

    id: str
    model: str
    run_id: str
    state: RolloutState
    reason: str
    created_ms: int
    updated_ms: int
    champion_version: str
    challenger_version: str
    step: int = 0
    """Index into the contract's canary steps."""
    step_since_ms: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    """One entry per traffic revision: revision, share, from_ms, to_ms."""
    salt: str = ""
    traffic_revision: int = 0
    promoted_ms: int | None = None
    assessment: dict[str, Any] = field(default_factory=dict)
    """The last assessment: e-values, counts per (revision, arm), the decision and why."""
    finished_ms: int | None = None


class Transition(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One step of an incident, run or rollout. `seq` counts from 1 within its record."""

    record: str
    """ "incident", "run" or "rollout"."""
    record_id: str
    seq: int
    from_state: str
    to_state: str
    reason: str
    at_ms: int
    inputs: dict[str, Any] = field(default_factory=dict)
    """The numbers the decision used."""
    token: int = 0
    """Fencing token of the agent that wrote it."""
