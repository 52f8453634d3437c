"""The model contract as a value. `parse.py` makes it from TOML, `compare.py` compares revisions.

Durations are text such as "2s", "90 min", "1h", "21 days"; `*_ms` properties give milliseconds.
A contract is immutable; a change makes a new revision.
"""

import re
from typing import Literal

from msgspec import Struct, field

from trimtab.errors import ContractError

_UNIT_MS = {
    "ms": 1,
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1_000),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60_000),
    **dict.fromkeys(("h", "hour", "hours"), 3_600_000),
    **dict.fromkeys(("d", "day", "days"), 86_400_000),
    **dict.fromkeys(("w", "week", "weeks"), 604_800_000),
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as "2s", "90 min" or "21 days".

    Raises ContractError when the text is no duration.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or match[2] not in _UNIT_MS:
        raise ContractError(
            f"{text!r} is not a duration. Write a number and a unit: 2s, 15 min, 1h, 21 days."
        )
    return round(float(match[1]) * _UNIT_MS[match[2]])


ATTRIBUTION = "attribution:"
"""What the name of a watched attribution begins with; no declared feature's does."""


class Feature(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One declared input column."""

    kind: Literal["number", "category"]
    min: float | None = None
    """Values below are counted as out of range (they still count in their bin)."""
    max: float | None = None
    values: tuple[str, ...] = ()
    """Declared categories; others are `unseen`."""
    required: bool = False
    """A row without it is abnormal (`missing_required`)."""
    personal: bool = False
    """Bin counts only; never in samples."""
    input: bool = True
    """False for columns derived at the producer (descriptors): watched, but not trained on."""


class Source(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where the model's events come from."""

    topics: tuple[str, ...] = ()
    """When given, events from any other topic that claim this model are rejected."""
    format: Literal["trimtab", "kserve", "seldon-v2", "oip-v2", "sagemaker"] = "trimtab"
    impossible: tuple[str, ...] = ()
    """Combinations of values that no true row has, such as "age < 18 and channel = 'branch'" (`contracts.combinations`)."""


class Prediction(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the model answers."""

    score: str | None = None
    """Name of the score of the positive class (binary)."""
    positive: str | None = None
    classes: tuple[str, ...] = ()
    attributions: bool = False
    """Whether each input's share in the answer, as events carry it, is watched beside the input."""


class Labels(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When the truth arrives."""

    arrive: str = "never"
    """ "never", or "within 21 days"."""
    sources: tuple[str, ...] = ("human", "outcome", "rule", "unknown")
    """Label sources that count. For training, "unknown" and "model" only count if listed here."""

    judge_share: float = 0.1
    """Rules on performance judge a window once this share of its rows is labelled, … """
    judge_after: str | None = None
    """… or so long after its end, whatever has come by then. Default: the time of `arrive`."""
    sample_share: float = 1.0
    """Share of the model's rows, by a hash of their ids, that are kept to be joined with labels."""

    @property
    def horizon_ms(self) -> int | None:
        """Milliseconds within which labels arrive; None when they never do."""
        text = self.arrive.strip()
        return None if text == "never" else duration_ms(text.removeprefix("within "))

    @property
    def judge_after_ms(self) -> int | None:
        """Milliseconds after a window's end when its labels are waited for no longer; None: no promise."""
        horizon_ms = self.horizon_ms
        if horizon_ms is None or self.judge_after is None:
            return horizon_ms
        return duration_ms(self.judge_after)


class Windows(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Event-time windows of the model's figures and verdicts."""

    length: str = "1h"
    pane: str | None = None
    """The smallest stored interval; divides `length`. Default: 60 s, or `length` if shorter."""
    lateness: str = "1h"
    """A row older than the watermark by more than this is `too late`."""
    out_of_order: str = "5s"
    """The watermark trails the newest event time by this much."""
    future: str = "5 min"
    """A row later than its Kafka timestamp by more than this is rejected."""
    idle: str = "10s"
    """A partition read to its end that brings nothing for this long stops holding windows back."""
    time_zone: str = "UTC"
    segments: tuple[str, ...] = ()
    min_rows: int = 200
    """Fewer rows in a window: `cannot_tell: too_few_rows`."""

    @property
    def length_ms(self) -> int:
        """Window length in milliseconds."""
        return duration_ms(self.length)

    @property
    def pane_ms(self) -> int:
        """Pane length in milliseconds."""
        return duration_ms(self.pane) if self.pane else min(60_000, self.length_ms)

    @property
    def lateness_ms(self) -> int:
        """Allowed lateness in milliseconds."""
        return duration_ms(self.lateness)

    @property
    def out_of_order_ms(self) -> int:
        """How far the watermark trails, in milliseconds."""
        return duration_ms(self.out_of_order)

    @property
    def future_ms(self) -> int:
        """How far ahead of its Kafka timestamp a row may be, in milliseconds."""
        return duration_ms(self.future)

    @property
    def idle_ms(self) -> int:
        """Idle time in milliseconds after which a partition is left out of the watermark."""
        return duration_ms(self.idle)


class Reference(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the traffic is compared with."""

    from_: str = field(default="traffic", name="from")
    """ "traffic", or the path of a Parquet or CSV file."""
    time_column: str | None = None
    rows: int = 2_000
    """From traffic: the first rows held to make the cuts."""
    windows: int = 168
    """Windows a baseline wants; fewer is `calibrating`."""


class Alarms(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """When people hear of it."""

    false_alarms: str | None = None
    """Such as "1 per 90 days"; default: the model's share of the fleet's budget."""
    smallest_shift: float = 0.05
    """What the detector calls a change: more than this, in standard deviations of a row. 0.02 is sensitive, and wants
    two weeks of reference."""
    rules: tuple[str, ...] = ()
    """Such as "accuracy < 0.90 in 3 of 4" or "psi(income) > 0.2 in 2 of 3"."""
    webhooks: tuple[str, ...] = ()
    """Names of webhooks (defined in the process settings) that receive this model's alerts."""


class Canary(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a challenger meets live traffic."""

    steps: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5)
    """Shares of traffic. 1.0 is not a step: promotion follows the last one."""
    step: str = "30 min"
    """Least time in a step."""
    longest: str = "7 days"
    """A rollout that is still undecided after this is rolled back."""
    watch: str = "1 day"
    """After promotion the old champion keeps `holdback` of the traffic for this long."""
    holdback: float = 0.05
    margin: float = 1.25
    """Non-inferior: the challenger's relative risk of a wrong answer is below this."""
    alpha: float = 0.05
    maturity: str = "0s"
    """Labels count only in panes older than this, the same for both arms."""
    max_error_rate: float = 0.02
    """Absolute ceiling on the challenger's error rate."""
    valid: str = "5 min"
    """An unrenewed split expires after this: servers return to the champion."""


class Retraining(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whether, how and how often the agent may retrain."""

    mode: Literal["off", "approve", "auto"] = "off"
    trainer: str = "external"
    """ "external", or the name of a recipe such as "tabular" or "image-cnn"."""
    options: dict[str, object] = field(default_factory=dict)
    """Passed to the recipe (such as shape = [8, 8, 1])."""
    search: Literal["bayesian", "random", "grid"] = "bayesian"
    trials: int = 20
    search_limit: str = "2h"
    min_labels: int = 500
    label_wait: str = "14 days"
    min_gain: float = 0.0
    """Lower bound of the gain on held-out rows must exceed this."""
    floor: float | None = None
    """Absolute lower limit for the challenger's quality figure."""
    metric: Literal["accuracy", "f1", "mae"] | None = None
    """The quality figure; default accuracy for classification, mae for regression."""
    cooldown: str = "1 day"
    budget_per_month: int = 10
    quiet_hours: tuple[str, str] | None = None
    original: str | None = None
    """Path of the original training set (Parquet or CSV, the label in a column `label`), mixed in by the search."""
    old_mix: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Shares of the original training set the search may mix in."""


class Contract(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One model's contract."""

    name: str
    team: str = "default"
    task: Literal["binary", "multiclass", "regression"]
    source: Source = Source()
    features: dict[str, Feature] = field(default_factory=dict)
    """In order: the order names the columns of unnamed tensors."""
    prediction: Prediction = Prediction()
    labels: Labels = Labels()
    windows: Windows = Windows()
    reference: Reference = Reference()
    alarms: Alarms = Alarms()
    retraining: Retraining = Retraining()
    canary: Canary = Canary()

    @property
    def attributed(self) -> tuple[str, ...]:
        """The features whose attributions are watched: the model's inputs, where the contract says so."""
        if not self.prediction.attributions:
            return ()
        return tuple(name for name, feature in self.features.items() if feature.input)

    @property
    def watched(self) -> dict[str, Feature]:
        """All columns that are counted: the features, then `attribution:NAME` of those in `attributed`."""
        return self.features | {
            f"{ATTRIBUTION}{name}": Feature(
                kind="number", personal=self.features[name].personal, input=False
            )
            for name in self.attributed
        }
