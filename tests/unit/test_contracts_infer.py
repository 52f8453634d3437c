import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.contracts.infer import infer_contract
from trimtab.contracts.parse import parse_contract
from trimtab.errors import ContractError
from trimtab.events.types import Inference


def rows(count: int = 300) -> list[Inference]:
    return [
        Inference(
            id=str(index),
            model="m",
            version="1",
            time=index,
            features={"a b": index * 0.5, "c": "x" if index % 2 else "y", "user": f"u{index}"},
            prediction=index % 2,
            latency_ms=float(index % 100),
        )
        for index in range(count)
    ]


def test_a_draft_fits_what_was_seen() -> None:
    contract = parse_contract(infer_contract(rows(), "m"), "m.toml")
    assert contract.task == "binary"
    assert contract.features["a b"].kind == "number"
    assert contract.features["c"].values == ("x", "y")
    assert contract.prediction.classes == ("0", "1")
    assert contract.alarms.rules == (
        "error_rate > 0.05 in 3 of 4",
        "p99_latency_ms > 150 in 3 of 4",
    )


@pytest.mark.parametrize(("answer", "figure"), [(1, "accuracy"), (0.5, "mae")])
def test_the_rule_against_the_reference_that_a_draft_names_can_be_added(answer, figure) -> None:
    events = [
        Inference(id=str(i), model="m", version="1", time=i, prediction=i % 2 * answer)
        for i in range(300)
    ]
    draft = infer_contract(events, "m")
    (rule,) = re.findall(r'^# With labels, add ("[^"]+")', draft, re.MULTILINE)
    text = draft.replace('arrive = "never"', 'arrive = "within 1 day"')
    contract = parse_contract(text.replace("rules = [", f"rules = [{rule}, "), "m.toml")
    assert contract.alarms.rules[0].startswith(figure)
    assert "reference" in contract.alarms.rules[0]


@pytest.mark.parametrize("prediction", [0.5, "x"])
def test_attributions_that_events_carry_are_watched(prediction: float | str) -> None:
    event = Inference(
        id="1",
        model="m",
        version="1",
        time=0,
        features={"a b": 1.0, "c": "x"},
        prediction=prediction,
        attributions={"a b": 0.5},
    )
    contract = parse_contract(infer_contract([event], "m"), "m.toml")
    assert contract.attributed == ("a b", "c")
    assert not parse_contract(infer_contract(rows(), "m"), "m.toml").attributed


def test_the_class_that_a_lone_score_names_is_the_positive_one() -> None:
    events = [
        Inference(
            id=str(i), model="m", version="1", time=i, prediction=answer, scores={"leave": 0.5}
        )
        for i, answer in enumerate(["leave", "stay"])
    ]
    prediction = parse_contract(infer_contract(events, "m"), "m.toml").prediction
    assert (prediction.positive, prediction.score) == ("leave", "leave")


def test_a_column_that_looks_like_an_id_is_pointed_out() -> None:
    line = next(
        line for line in infer_contract(rows(), "m").splitlines() if line.startswith("user")
    )
    assert "an id?" in line


def test_fractions_are_a_regression() -> None:
    row = Inference(id="1", model="m", version="1", time=0, prediction=1.5)
    assert parse_contract(infer_contract([row], "m"), "m.toml").task == "regression"


def test_a_model_that_was_not_seen_is_refused_with_those_that_were() -> None:
    with pytest.raises(ContractError, match="Models seen: m"):
        infer_contract(rows(3), "other")


scalars = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(
    st.lists(
        st.tuples(st.dictionaries(st.text(min_size=1, max_size=10), scalars, max_size=4), scalars),
        min_size=1,
        max_size=8,
    )
)
def test_every_draft_is_a_valid_contract(
    samples: list[tuple[dict[str, float | bool | str | None], float | bool | str | None]],
) -> None:
    events = [
        Inference(id=str(i), model="m", version="1", time=i, features=features, prediction=answer)
        for i, (features, answer) in enumerate(samples)
    ]
    assert parse_contract(infer_contract(events, "m"), "m.toml").name == "m"
