"""Training data: what belongs together, what is held out, what a file must hash to."""

from pathlib import Path

import numpy as np
import pytest

from trimtab.artifacts import FeatureSpec
from trimtab.serve.predictor import InputError, encode_rows
from trimtab_agent.recipes.base import RecipeError, recipe
from trimtab_agent.recipes.data import (
    DataError,
    concatenate,
    load_data,
    make_data,
    save_data,
    with_validation,
)

SPECS = (FeatureSpec("amount"), FeatureSpec("channel", "category", ("web", "app")))


def rows(n: int, *, original: bool = False, start_ms: int = 0):
    features = np.stack([np.arange(n), np.arange(n) % 3 - 1], axis=1)
    return make_data(
        features,
        np.arange(n) % 2,
        specs=SPECS,
        classes=("no", "yes"),
        task="binary",
        event_time_ms=start_ms + np.arange(n) * 10,
        original=original,
    )


def test_a_saved_file_gives_the_same_rows_back(tmp_path):
    data = with_validation(rows(20), 0.25)
    loaded = load_data(save_data(data, tmp_path / "data.npz"))
    for name in ("features", "labels", "event_time_ms", "original", "validation"):
        np.testing.assert_array_equal(getattr(data, name), getattr(loaded, name))
    assert (loaded.specs, loaded.classes, loaded.task) == (data.specs, data.classes, data.task)


def test_an_altered_file_is_refused(tmp_path):
    ref = save_data(rows(20), tmp_path / "data.npz")
    content = bytearray(Path(ref.path).read_bytes())
    content[200] ^= 1
    Path(ref.path).write_bytes(content)
    with pytest.raises(DataError, match="the record says"):
        load_data(ref)


def test_the_newest_new_rows_are_held_out_and_an_embargo_lies_before_them():
    data = with_validation(concatenate(rows(10, original=True), rows(20)), 0.25, embargo_ms=25)
    assert sorted(data.to_validate.features[:, 0]) == [15, 16, 17, 18, 19]
    # Validation starts at 150 ms, so rows after 125 ms are left out.
    assert data.to_fit.event_time_ms[~data.to_fit.original].max() == 120
    assert data.to_fit.original.sum() == 10


def test_too_few_new_rows_to_hold_out_say_so():
    with pytest.raises(DataError, match="collect more"):
        with_validation(rows(20, original=True), 0.25)


def test_a_label_outside_the_classes_is_refused():
    with pytest.raises(DataError, match="label codes"):
        make_data(np.zeros((2, 2)), np.array([0, 2]), specs=SPECS, classes=("no", "yes"))


def test_rows_become_codes_in_the_order_of_the_signature():
    encoded = encode_rows(
        rows(4).signature,
        [{"channel": "app", "amount": 2}, {"channel": "phone"}, [None, "web"]],
    )
    np.testing.assert_array_equal(encoded, np.array([[2, 1], [np.nan, -1], [np.nan, 0]]))


@pytest.mark.parametrize("row", [["three", "web"], [1.0], [1.0, "web", 2.0]])
def test_a_row_that_does_not_fit_is_refused(row):
    with pytest.raises(InputError):
        encode_rows(rows(4).signature, [row])


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(RecipeError, match="image-cnn, tabular"):
        recipe("image-cn")


@pytest.mark.parametrize(
    "options", [{}, {"shape": [8, 8]}, {"shape": [8, 8, 0]}, {"shape": [8, 8, 1], "size": 3}]
)
def test_wrong_image_options_are_refused(options):
    with pytest.raises(RecipeError):
        recipe("image-cnn", options)
