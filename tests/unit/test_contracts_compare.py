import pytest
from msgspec.structs import replace

from trimtab.contracts.compare import compare
from trimtab.contracts.model import Alarms, Contract, Feature, Retraining, Windows
from trimtab.errors import ContractError

OLD = Contract(
    name="a",
    task="binary",
    features={"x": Feature(kind="number"), "y": Feature(kind="category", values=("p",))},
)


def test_equal_revisions_differ_in_nothing() -> None:
    difference = compare(OLD, replace(OLD))
    assert difference.is_empty
    assert difference.lines == ()


def test_a_feature_added_restarts_only_itself() -> None:
    difference = compare(OLD, replace(OLD, features=OLD.features | {"z": Feature(kind="number")}))
    assert difference.restarts == ("feature z",)
    assert difference.features_added == ("z",)
    assert set(difference.goes_on) >= {"feature x", "feature y", "prediction", "baseline"}


def test_a_feature_removed_restarts_nothing() -> None:
    difference = compare(OLD, replace(OLD, features={"x": OLD.features["x"]}))
    assert (difference.restarts, difference.features_removed) == ((), ("y",))


def test_other_categories_restart_the_feature_and_other_limits_do_not() -> None:
    features = {"x": Feature(kind="number", min=0), "y": Feature(kind="category", values=("q",))}
    assert compare(OLD, replace(OLD, features=features)).restarts == ("feature y",)


@pytest.mark.parametrize("windows", [Windows(length="2h"), Windows(pane="30s")])
def test_other_windows_restart_all_windows_and_the_baseline(windows: Windows) -> None:
    difference = compare(OLD, replace(OLD, windows=windows))
    assert difference.restarts == ("all windows", "baseline")
    assert difference.goes_on == ()


def test_rules_and_retraining_restart_nothing() -> None:
    new = replace(
        OLD, alarms=Alarms(rules=("rows < 5",)), retraining=Retraining(mode="auto"), team="b"
    )
    difference = compare(OLD, new)
    assert difference.restarts == ()
    assert difference.changed == ("alarms.rules", "retraining.mode", "team")
    assert 'retraining.mode: "off" → "auto"' in difference.lines


def test_another_order_of_features_is_a_change() -> None:
    new = replace(OLD, features=dict(reversed(OLD.features.items())))
    assert compare(OLD, new).changed == ("features",)


def test_a_new_model_is_one_line() -> None:
    assert compare(None, OLD).lines == ("new model a: 2 features, task binary",)


def test_another_name_is_refused() -> None:
    with pytest.raises(ContractError, match="another model"):
        compare(OLD, replace(OLD, name="b"))
