"""Attributions of Keras models: they add up to what the answer has changed by."""

import numpy as np
import pytest

from trimtab.errors import TrimtabError
from trimtab.events.types import Inference
from trimtab.sdk.attribute import Attributor

pytestmark = pytest.mark.tensorflow
NAMES = ("a", "b", "c")
BASELINE = np.array([0.1, -0.2, 0.3])
ROWS = np.random.default_rng(0).normal(size=(20, 3))


@pytest.fixture(scope="module")
def keras():
    import keras

    keras.utils.set_random_seed(1)
    return keras


def network(keras, outputs, activation, hidden="tanh"):
    keras.utils.set_random_seed(2)  # some random networks answer nearly the same to everything
    layers = keras.layers
    hidden = [layers.Dense(16, "tanh"), layers.Dense(8, hidden)]
    return keras.Sequential([layers.Input((3,)), *hidden, layers.Dense(outputs, activation)])


def test_the_attributions_of_a_linear_model_are_its_weights_times_the_changes(keras):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    weights = model.get_weights()[0][:, 0]
    columns = Attributor(model, NAMES, BASELINE, steps=1).attribute_batch(ROWS)
    found = np.column_stack([columns[name] for name in NAMES])
    assert np.allclose(found, (ROWS - BASELINE) * weights, atol=1e-5)


@pytest.mark.parametrize(("hidden", "error"), [("tanh", 1e-4), ("relu", 0.03)])
@pytest.mark.parametrize(("outputs", "output"), [(1, None), (4, 2)])
def test_the_attributions_of_an_answer_add_up_to_its_change_from_the_baseline(
    keras, outputs, output, hidden, error
):
    model = network(keras, outputs, "sigmoid" if output is None else "softmax", hidden)
    attributor = Attributor(model, NAMES, BASELINE, output=output)
    columns = attributor.attribute_batch(ROWS)
    total = np.sum([columns[name] for name in NAMES], axis=0)
    place = output or 0
    change = (
        model(ROWS.astype(np.float32)).numpy()[:, place]
        - model(BASELINE[None].astype(np.float32)).numpy()[0, place]
    )
    assert np.abs(change).max() > 0.05
    assert np.allclose(total, change, atol=error * np.abs(change).max())
    assert np.allclose(attributor.gap(ROWS), change - total, atol=1e-6)


def test_more_steps_leave_less_of_a_gap(keras):
    model = network(keras, 1, "sigmoid")
    few, many = (Attributor(model, NAMES, BASELINE, steps=steps).gap(ROWS) for steps in (1, 64))
    assert np.abs(many).max() < np.abs(few).max() / 5


def test_an_input_without_influence_or_change_has_no_share(keras):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, "sigmoid")])
    weights, bias = model.get_weights()
    weights[1] = 0
    model.set_weights([weights, bias])
    shares = Attributor(model, NAMES, BASELINE).attribute([2.0, 5.0, float(np.float32(0.3))])
    assert shares["a"] != 0
    assert shares["b"] == shares["c"] == 0


def test_the_attributions_of_a_row_are_those_of_its_batch_and_fit_an_event(keras):
    attributor = Attributor(network(keras, 1, "sigmoid"), NAMES, BASELINE)
    columns = attributor.attribute_batch(ROWS)
    one = attributor.attribute(ROWS[3])
    assert one == pytest.approx({name: columns[name][3] for name in NAMES}, abs=1e-6)
    event = Inference(id="i", model="m", version="1", time=0, attributions=one)
    assert event.attributions == one
    assert attributor.attribute_batch(np.zeros((0, 3))) == {name: [] for name in NAMES}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": ()}, "0 names"),
        ({"baseline": [0.0, 0.0]}, "one finite number per name"),
        ({"baseline": [0.0, np.nan, 0.0]}, "one finite number per name"),
        ({"steps": 0}, "steps 0"),
        ({"output": None}, "say which"),
        ({"output": 4}, "the model has 4"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused_with_what_to_give(keras, change, said):
    given = {"names": NAMES, "baseline": BASELINE, "output": 0} | change
    with pytest.raises(TrimtabError, match=said):
        Attributor(network(keras, 4, "softmax"), **given)


def test_rows_of_another_shape_or_with_nan_are_refused(keras):
    attributor = Attributor(network(keras, 1, "sigmoid"), NAMES, BASELINE)
    for rows in (np.zeros(3), np.zeros((2, 4)), np.full((1, 3), np.nan)):
        with pytest.raises(TrimtabError):
            attributor.attribute_batch(rows)


def test_a_model_without_a_gradient_is_refused(keras):
    model = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Lambda(lambda x: keras.ops.sign(x)[:, :1] * 0 + 1)]
    )

    class Constant:
        def __call__(self, rows, training):
            import tensorflow as tf

            return tf.stop_gradient(model(rows, training=training))

    with pytest.raises(TrimtabError, match="no gradient"):
        Attributor(Constant(), NAMES, BASELINE).attribute_batch(ROWS)
