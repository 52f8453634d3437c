"""The study's budget, order and memory."""

import math

import pytest

from trimtab_agent.search.study import SearchSpec, StudyError, open_study, seed_of, sqlite_url

WARM = {"hyperparameters": {"rate": 0.5}, "architecture": {"layers": 2}}


def space(trial):
    return {
        "hyperparameters": {"rate": trial.suggest_float("rate", 0.01, 1.0, log=True)},
        "architecture": {"layers": trial.suggest_int("layers", 1, 3)},
    }


def opened(folder, spec, now_ms=0):
    return open_study(sqlite_url(folder / "study.db"), "run-1", spec, space, now_ms)


def test_the_budget_of_trials_is_kept_over_all_states(tmp_path):
    study = opened(tmp_path, SearchSpec(trials=4))
    study.complete(study.next_trial(0).number, 0.5, 3)
    study.fail(study.next_trial(0).number, "out of memory")
    number = study.next_trial(0).number
    study.report(number, 1, 0.1)
    study.prune(number)
    study.complete(study.next_trial(0).number, 0.7, 2)
    assert study.next_trial(0) is None
    assert [t.state for t in study.trials()] == ["complete", "failed", "pruned", "complete"]
    assert study.trials()[1].reason == "out of memory"
    assert (study.best().number, study.best().value, study.best().best_step) == (3, 0.7, 2)


def test_no_trial_starts_after_the_budget_of_seconds_also_when_opened_again(tmp_path):
    spec = SearchSpec(trials=10, seconds=5)
    study = opened(tmp_path, spec, now_ms=1000)
    assert study.next_trial(5999) is not None
    assert study.next_trial(6000) is None
    assert opened(tmp_path, spec, now_ms=9_000).started_ms == 1000


def test_the_champions_parameters_are_tried_first_and_its_value_is_not_believed(tmp_path):
    study = opened(tmp_path, SearchSpec(trials=3, warm_start=(WARM,)))
    first = study.next_trial(0)
    assert first.params["hyperparameters"] == {"rate": 0.5}
    assert first.params["architecture"] == {"layers": 2}
    assert study.best() is None
    assert opened(tmp_path, SearchSpec(trials=3, warm_start=(WARM,))).trials()[0].origin == "warm:0"


def test_a_trial_left_running_is_failed_and_tried_again_once_with_the_same_parameters(tmp_path):
    spec = SearchSpec(trials=2)
    first = opened(tmp_path, spec)
    lost = first.next_trial(0)
    for _ in range(2):
        again = opened(tmp_path, spec)
    retried = again.next_trial(0)
    assert retried.params == lost.params
    again.complete(retried.number, 0.5, 1)
    again.complete(again.next_trial(0).number, 0.6, 1)
    assert again.next_trial(0) is None
    assert [t.state for t in again.trials()] == ["failed", "complete", "complete"]


def test_a_trial_that_ends_the_process_three_times_is_given_up(tmp_path):
    spec = SearchSpec(trials=2)
    rates = [opened(tmp_path, spec).next_trial(0).params["hyperparameters"]["rate"] for _ in "123"]
    assert len(set(rates)) == 1
    study = opened(tmp_path, spec)
    assert study.next_trial(0).params["hyperparameters"]["rate"] != rates[0]
    assert study.used() == 2


def test_an_interrupted_search_draws_what_an_uninterrupted_one_draws(tmp_path):
    def search(folder, lose_at):
        folder.mkdir()
        spec = SearchSpec(trials=12, pruner="none")
        study, drawn, lost = opened(folder, spec), [], set(lose_at)
        while (asked := study.next_trial(0)) is not None:
            if len(drawn) in lost:
                lost.remove(len(drawn))
                study = opened(folder, spec)
                continue
            drawn.append(asked.params)
            study.complete(asked.number, -abs(asked.params["hyperparameters"]["rate"] - 0.3), 1)
        return drawn

    assert search(tmp_path / "whole", []) == search(tmp_path / "broken", [0, 5, 9])


def test_a_grid_is_walked_without_repeats_and_continues_after_a_restart(tmp_path):
    spec = SearchSpec(trials=100, sampler="grid", warm_start=(WARM,))
    seen = []
    study = opened(tmp_path, spec)
    for _ in range(10):
        asked = study.next_trial(0)
        seen.append(
            (asked.params["hyperparameters"]["rate"], asked.params["architecture"]["layers"])
        )
        study.complete(asked.number, 0.1, 1)
        study = opened(tmp_path, spec)
    assert seen[0] == (0.5, 2)
    assert set(seen[1:]) == {(rate, n) for rate in (0.01, 0.1, 1.0) for n in (1, 2, 3)}


def test_another_specification_for_the_same_run_is_refused(tmp_path):
    opened(tmp_path, SearchSpec(trials=3))
    with pytest.raises(StudyError, match="another specification"):
        opened(tmp_path, SearchSpec(trials=4))


def test_a_value_that_is_not_finite_fails_the_trial(tmp_path):
    study = opened(tmp_path, SearchSpec(trials=3))
    study.complete(study.next_trial(0).number, math.nan, 1)
    assert study.trials()[0].state == "failed"
    assert "nan" in study.trials()[0].reason


def test_the_median_pruner_gives_up_a_trial_that_lags(tmp_path):
    study = opened(tmp_path, SearchSpec(trials=6))
    for _ in range(3):
        number = study.next_trial(0).number
        assert not any(study.report(number, step, 0.9) for step in range(1, 5))
        study.complete(number, 0.9, 1)
    number = study.next_trial(0).number
    assert [study.report(number, step, 0.1) for step in range(1, 5)] == [False, False, True, True]


def test_seeds_differ_between_runs_and_places():
    assert len({seed_of("a", 0), seed_of("a", 1), seed_of("b", 0)}) == 3
    assert 0 <= seed_of("a", 0) < 2**31
