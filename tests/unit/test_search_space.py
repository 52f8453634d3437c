"""The three parts of the space, and what the data part does to the rows."""

import numpy as np
import pytest

from trimtab.artifacts import FeatureSpec
from trimtab_agent.recipes.base import recipe
from trimtab_agent.recipes.data import concatenate, make_data, with_validation
from trimtab_agent.search.space import (
    DataSpace,
    SpaceError,
    apply_data_part,
    data_space_for,
    grid,
    known_params,
    with_data_part,
)


def data(n_new: int = 100, n_old: int = 40, ones_in: int = 2):
    def part(n, original, start_ms):
        return make_data(
            np.arange(n).reshape(-1, 1),
            (np.arange(n) % ones_in == 0).astype(int),
            specs=(FeatureSpec("x"),),
            classes=("no", "yes"),
            task="binary",
            event_time_ms=start_ms + np.arange(n),
            original=original,
        )

    return with_validation(concatenate(part(n_old, True, 0), part(n_new, False, 1000)), 0.2)


def params(**part):
    return {"data": part, "seed": 7}


SPACE = with_data_part(recipe("image-cnn", {"shape": [8, 8, 1]}).space, DataSpace())


def test_the_window_keeps_the_newest_rows_before_validation():
    kept = apply_data_part(params(window=0.5, old_mix=0.0), data())
    assert sorted(kept.to_fit.features[:, 0]) == list(range(40, 80))
    assert sorted(kept.to_validate.features[:, 0]) == list(range(80, 100))


@pytest.mark.parametrize(("mix", "expected"), [(0.0, 0), (0.5, 20), (1.0, 40)])
def test_the_mix_takes_that_share_of_the_original_rows(mix, expected):
    kept = apply_data_part(params(window=1.0, old_mix=mix), data())
    assert int(kept.original.sum()) == expected
    assert len(kept.to_fit) == 80 + expected


def test_balancing_draws_the_rare_class_again_and_leaves_validation_alone():
    before = data(ones_in=4)
    kept = apply_data_part(params(old_mix=0.0, class_balance="balanced"), before)
    counts = np.bincount(kept.to_fit.labels)
    assert counts[0] == counts[1] == 60
    np.testing.assert_array_equal(kept.to_validate.labels, before.to_validate.labels)


def test_balancing_repeats_no_row_more_than_four_times_on_average():
    kept = apply_data_part(params(old_mix=0.0, class_balance="balanced"), data(ones_in=40))
    assert list(np.bincount(kept.to_fit.labels)) == [78, 8]


def test_the_draw_depends_on_the_seed_alone():
    first = apply_data_part(params(old_mix=0.5), data())
    np.testing.assert_array_equal(
        first.features, apply_data_part(params(old_mix=0.5), data()).features
    )
    other = apply_data_part({"data": {"old_mix": 0.5}, "seed": 8}, data())
    assert not np.array_equal(first.features, other.features)


def test_choices_that_cannot_matter_are_left_out():
    assert data_space_for(data(ones_in=2), DataSpace()).class_balance == ("none",)
    assert data_space_for(data(ones_in=4), DataSpace()).class_balance == ("none", "balanced")
    without_old = data()
    without_old = without_old.take(~without_old.original)
    assert data_space_for(without_old, DataSpace()).old_mix == (0.0,)


@pytest.mark.parametrize("wrong", [{"window": (0.0,)}, {"old_mix": (2.0,)}, {"window": ()}])
def test_a_wrong_choice_is_refused(wrong):
    with pytest.raises(ValueError, match=r"window|old_mix"):
        DataSpace(**wrong)


def test_only_what_the_space_allows_is_tried_again():
    champion = {
        "hyperparameters": {"learning_rate": 5.0, "batch_size": 32, "momentum": 0.9},
        "architecture": {"filters": 8, "depth": 2, "dense": 77},
        "data": {"window": 1.0, "old_mix": 1.0},
    }
    assert known_params(SPACE, champion) == {
        "batch_size": 32,
        "filters": 8,
        "depth": 2,
        "window": 1.0,
        "old_mix": 1.0,
    }


def test_a_grid_has_every_combination_once_in_a_seeded_order():
    space = with_data_part(
        lambda trial: {"hyperparameters": {"rate": trial.suggest_float("rate", 1, 100, log=True)}},
        DataSpace(class_balance=("none",)),
    )
    points = grid(space, seed=1)
    assert len(points) == 3 * 2 * 3
    assert len({tuple(sorted(point.items())) for point in points}) == len(points)
    assert {point["rate"] for point in points} == {1, 10, 100}
    assert points == grid(space, seed=1)
    assert points != grid(space, seed=2)


def test_a_grid_too_large_to_walk_is_refused():
    def space(trial):
        return {"hyperparameters": {f"x{i}": trial.suggest_float(f"x{i}", 0, 1) for i in range(8)}}

    with pytest.raises(SpaceError, match="6561 points"):
        grid(space, seed=1)


def test_a_part_of_another_name_is_refused():
    space = with_data_part(lambda _trial: {"optimiser": {}}, DataSpace())
    with pytest.raises(SpaceError, match="optimiser"):
        grid(space, seed=1)
