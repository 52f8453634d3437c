import pytest

from trimtab.events.cloudevents import DecodeError, Reason
from trimtab.events.outcomes import outcome_event, outcome_id, read_outcome
from trimtab.events.types import ALERT_TYPE, VERDICT_TYPE


def test_an_outcome_is_a_cloudevent_with_a_deterministic_id() -> None:
    value = outcome_event(ALERT_TYPE, "m", "alert:1:opened", {"b": 1, "a": [2]}, 1_500)
    assert value == outcome_event(ALERT_TYPE, "m", "alert:1:opened", {"a": [2], "b": 1}, 1_500)
    outcome = read_outcome(value)
    assert outcome.id == outcome_id(ALERT_TYPE, "m", "alert:1:opened")
    assert (outcome.subject, outcome.time) == ("m", "1970-01-01T00:00:01.500Z")
    assert outcome.data == {"a": [2], "b": 1}


def test_ids_differ_with_type_model_and_key() -> None:
    assert (
        len(
            {
                outcome_id(ALERT_TYPE, "m", "1"),
                outcome_id(VERDICT_TYPE, "m", "1"),
                outcome_id(ALERT_TYPE, "m1", ""),
                outcome_id(ALERT_TYPE, "m", "2"),
            }
        )
        == 4
    )


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="no outcome type"):
        outcome_event("io.trimtab.label.v1", "m", "k", {}, 0)
    value = outcome_event(ALERT_TYPE, "m", "k", {}, 0).replace(b"alert.v1", b"alert.v2")
    with pytest.raises(DecodeError) as caught:
        read_outcome(value)
    assert caught.value.reason is Reason.UNKNOWN_EVENT_TYPE
