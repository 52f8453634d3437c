"""Outcome events: what trimtab tells other systems on `trimtab.outcomes`.

The id is a digest of (type, model, key), so the relay may send an outcome again after a crash and
a subscriber recognises it. The Kafka key is the model.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from trimtab.events.cloudevents import SPEC_VERSION, DecodeError, Reason, decode_error
from trimtab.events.types import (
    ALERT_TYPE,
    RETRAINING_TYPE,
    ROLLOUT_TYPE,
    VERDICT_TYPE,
)

OUTCOME_TYPES = (VERDICT_TYPE, ALERT_TYPE, RETRAINING_TYPE, ROLLOUT_TYPE)
OUTCOME_SOURCE = "trimtab"
_SEPARATOR = "\x1f"
"""Keeps ("a", "bc") and ("ab", "c") apart in the digest."""


class Outcome(Struct, frozen=True, kw_only=True):
    """An outcome event in structured mode. `subject` is the model, `data` depends on `type`."""

    specversion: str = SPEC_VERSION
    type: str
    id: str
    source: str = OUTCOME_SOURCE
    subject: str
    time: str
    """RFC 3339, UTC, milliseconds."""
    datacontenttype: str = "application/json"
    data: dict[str, Any]


_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder(Outcome)


def outcome_id(type: str, model: str, key: str) -> str:  # noqa: A002 - the attribute's name
    """Return the deterministic id of an outcome: 32 hexadecimal digits of SHA-256."""
    text = _SEPARATOR.join((type, model, key))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def outcome_event(
    type: str,  # noqa: A002 - the attribute's name
    model: str,
    key: str,
    body: Mapping[str, Any],
    time_ms: int,
) -> bytes:
    """Return the value of an outcome's Kafka message (structured mode).

    `key` names the transition within the model, such as "alert:17:opened"; the same type, model and
    key always give the same id. Equal arguments give equal bytes.
    Raises ValueError when `type` is none of OUTCOME_TYPES.
    """
    if type not in OUTCOME_TYPES:
        raise ValueError(f"{type!r} is no outcome type. Use one of {', '.join(OUTCOME_TYPES)}.")
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return _ENCODER.encode(
        Outcome(
            type=type,
            id=outcome_id(type, model, key),
            subject=model,
            time=moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            data=dict(body),
        )
    )


def read_outcome(value: bytes) -> Outcome:
    """Return the outcome that a message's value holds. Raises DecodeError."""
    try:
        outcome = _DECODER.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise decode_error(error, value) from error
    if outcome.type not in OUTCOME_TYPES:
        raise DecodeError(Reason.UNKNOWN_EVENT_TYPE, repr(outcome.type))
    return outcome
