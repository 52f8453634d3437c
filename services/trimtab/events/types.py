"""The event types, version 1: what streams through Kafka.

Times are `time`: an RFC 3339 string with an offset, or an integer of milliseconds since
the epoch (UTC). Fields are only ever added, with defaults; unknown fields are ignored; old payloads
stay in the tests (design, section 4).
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

INFERENCE_TYPE = "io.trimtab.inference.v1"
BATCH_TYPE = "io.trimtab.inference.batch.v1"
LABEL_TYPE = "io.trimtab.label.v1"
RESOURCE_TYPE = "io.trimtab.resource.v1"
TRAFFIC_TYPE = "io.trimtab.traffic.v1"
VERDICT_TYPE = "io.trimtab.verdict.v1"
ALERT_TYPE = "io.trimtab.alert.v1"
RETRAINING_TYPE = "io.trimtab.retraining.v1"
ROLLOUT_TYPE = "io.trimtab.rollout.v1"

ID_LENGTH_MAX = 256
NAME_LENGTH_MAX = 200
ARM_LENGTH_MAX = 40

TIME_MS_MIN = -2_208_988_800_000
"""1900-01-01: earlier times are taken for mistakes (`bad_time`)."""
TIME_MS_MAX = 7_258_118_400_000
"""2200-01-01: later times are taken for mistakes (`bad_time`), such as microseconds."""

EventTime = (
    Annotated[datetime, Meta(tz=True)] | Annotated[int, Meta(ge=TIME_MS_MIN, le=TIME_MS_MAX)]
)
"""An aware RFC 3339 time, or integer milliseconds since the epoch."""

Id = Annotated[str, Meta(min_length=1, max_length=ID_LENGTH_MAX)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
Arm = Annotated[str, Meta(max_length=ARM_LENGTH_MAX)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""An integer that a SQL column holds; JSON alone has no bound."""
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Scalar = float | Int64 | bool | str | None
"""A value of a feature, prediction or label."""

Status = Literal["ok", "error", "timeout", "rejected"]
LabelSource = Literal["human", "outcome", "rule", "model", "unknown"]


class ResourceSample(Struct, frozen=True, omit_defaults=True):
    """Gauges of the machine or container that serves a model, at one moment."""

    cpu_percent: float | None = None
    """Share of the available cores in use, 0 to 100."""
    memory_bytes: Count | None = None
    disk_percent: float | None = None
    gpu_percent: float | None = None
    queue_depth: Count | None = None


class Inference(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One inference: a request and its answer."""

    id: Id
    """Unique per model; labels name it. The same id again in the same pane is a duplicate."""
    model: Name
    version: Name
    time: EventTime
    features: dict[str, Scalar] = field(default_factory=dict)
    prediction: Scalar = None
    scores: dict[str, float] | None = None
    """Class name to score; for a binary model the positive class is enough."""
    latency_ms: float | None = None
    status: Status = "ok"
    error: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    """Values of segment attributes that are not features."""
    embedding: list[float] | None = None
    attributions: dict[str, float] | None = None
    """Feature name to its share in the answer."""
    input_ref: str | None = None
    """URI of the raw image, text or audio, which itself never enters Kafka."""
    arm: Arm | None = None
    """The arm that the request was assigned to, whichever arm answered (see `traffic_revision`)."""
    served_by: Arm | None = None
    """The arm that answered, where it differs from `arm`."""
    traffic_revision: Int64 | None = None
    sample_rate: Share = 1.0
    """The share of traffic this row stands for: 0.1 when one in ten is logged."""
    resources: ResourceSample | None = None


class InferenceBatch(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Many inferences of one model version in one message, as columns of equal length.

    Row i has the id `ids[i]`, or `"{id}#{i}"` when `ids` is absent.
    """

    id: Id
    model: Name
    version: Name
    time: EventTime | list[EventTime]
    rows: Annotated[int, Meta(ge=1, le=10_000)]
    ids: list[Id] | None = None
    features: dict[str, list[Scalar]] = field(default_factory=dict)
    prediction: list[Scalar] | None = None
    scores: dict[str, list[float]] | None = None
    latency_ms: list[float | None] | None = None
    status: list[Status] | None = None
    error: list[str | None] | None = None
    attributes: dict[str, list[str]] = field(default_factory=dict)
    arm: list[Arm | None] | None = None
    served_by: list[Arm | None] | None = None
    traffic_revision: list[Int64 | None] | None = None
    sample_rate: Share = 1.0
    attributions: dict[str, list[float | None]] | None = None


class Label(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The truth about one inference. The highest `revision` wins; ties by value bytes."""

    inference_id: Id
    model: Name
    label: Scalar
    time: EventTime
    revision: Count = 0
    retracted: bool = False
    source: LabelSource = "unknown"


class Resource(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one serving instance used, and what its producer sent and dropped so far."""

    instance: Name
    model: Name
    version: Name
    time: EventTime
    sample: ResourceSample = field(default_factory=ResourceSample)
    sent_events: Count | None = None
    """Events this producer has handed to Kafka since its start."""
    dropped_events: Count | None = None
    """Events this producer has dropped since its start, because its memory bound was reached
    or the broker could not be asked in time."""
    dropped_by_reason: dict[str, Count] = field(default_factory=dict)
    """`dropped_events` by reason: queue_full, too_large, invalid, send_failed, closed."""


class TrafficArm(Struct, frozen=True):
    """One arm of a split: its name, the version behind it and its share."""

    name: str
    version: str
    weight: float
    artifact_uri: str
    artifact_sha256: str


class Traffic(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a model's requests are split now. Readers ignore lower revisions.

    When `valid_until_ms` has passed, readers return to the champion.
    """

    model: Name
    revision: Count
    salt: str
    """New for each rollout, so that units are reshuffled."""
    arms: list[TrafficArm]
    """The champion first. Weights sum to 1."""
    valid_until_ms: int | None = None
    rollout_id: str | None = None


_EPOCH = datetime.fromtimestamp(0, UTC)
_MILLISECOND = timedelta(milliseconds=1)


def time_ms(time: datetime | int) -> int:
    """Milliseconds since the epoch of an event's time.

    `time` is an aware datetime or already milliseconds. Parts of a millisecond are cut off, as those of batches
    are: 10:59:59.9996 is before 11:00.
    """
    if isinstance(time, int):
        return time
    return (time - _EPOCH) // _MILLISECOND
