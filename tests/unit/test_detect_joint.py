"""Relations of columns in the detector: found where nothing else moves, silent where they are as before."""

import msgspec
import numpy as np
import pytest
from joint_traffic import Columns
from msgspec.structs import replace
from sources_traffic import HOUR, START, autoregressive, follow

from trimtab.detect.contrasts import Contrasts
from trimtab.detect.drift import MOST_SENTENCES, Fitted, Watching, sentence, watch
from trimtab.detect.observed import Observed
from trimtab.detect.sources import feature_source
from trimtab.records import Kind, Outcome
from trimtab.stats.aggregate import PaneState, ResourceState
from trimtab.stats.joint import JointState, Related

REFERENCE = 168
AFTER = START + REFERENCE * HOUR


@pytest.fixture(scope="module")
def columns():
    return Columns(seed=1)


@pytest.fixture(scope="module")
def detector(columns):
    return columns.detector(columns.windows(REFERENCE))


def source(contrasts, name):
    return next(one for one in contrasts.sources if one.name == name)


def test_every_pair_of_columns_is_a_source_and_all_share_a_tenth_of_the_weight(detector):
    pairs = [one for one in detector.contrasts.sources if one.origin == "joint"]
    assert len(pairs) == 45
    assert {one.kind for one in pairs} == {Kind.INPUT}
    weight = sum(
        detector.weights[detector.names.index(one.name) == detector.source].sum() for one in pairs
    )
    assert weight == pytest.approx(0.1)


def test_a_new_relation_with_unchanged_columns_is_found_and_named(columns, detector):
    said = follow(detector, columns.cuts, columns.windows(6, pair=0.5), AFTER)
    first = next(place for place, one in enumerate(said) if one.alarm)
    assert first <= 2
    (moved,) = said[first].moved
    assert (moved.source, moved.what) == ("joint:f0 x f1", "rank correlation")
    assert moved.onset_ms == AFTER
    told = sentence(moved, source(detector.contrasts, moved.source))
    assert told.startswith("f0 and f1: rank correlation +0.")
    now, usual = told.split("rank correlation ")[1].split(" over")[0].split(", usually ")
    assert float(now) == pytest.approx(6 / np.pi * np.arcsin(0.25), abs=0.06)
    assert float(usual) == pytest.approx(0, abs=0.02)


def test_a_relation_that_is_lost_is_told_from_the_level_of_the_baseline():
    columns = Columns(count=3, seed=2)
    detector = columns.detector(columns.windows(REFERENCE, pair=0.8))
    said = follow(detector, columns.cuts, columns.windows(4), AFTER)
    moved = next(one for one in said if one.alarm).moved[0]
    told = sentence(moved, source(detector.contrasts, moved.source))
    now, usual = told.split("rank correlation ")[1].split(" over")[0].split(", usually ")
    assert float(now) == pytest.approx(0, abs=0.1)
    assert float(usual) == pytest.approx(0.79, abs=0.02)


def unchanged(kind, columns, count):
    """Windows whose relations are always the same; `columns` move or not."""
    levels = np.stack([autoregressive(columns.rng, count, 0.8, 0.5) for _ in columns.names], axis=1)
    for place in range(count):
        x = columns.values(common=0.0 if kind == "independent" else 0.5)
        if kind == "levels wander":
            x = x + levels[place]
        if kind == "columns drift" and place >= REFERENCE:
            x[:, 0] += 2
            x[:, 1] *= 3
            x[:, 2] = np.exp(x[:, 2])
        if kind == "heavy tails":
            x = x / np.sqrt(columns.rng.chisquare(3, size=(columns.rows, 1)) / 3)
        yield columns.observed(x)


@pytest.mark.parametrize(
    "kind", ["independent", "together", "levels wander", "columns drift", "heavy tails"]
)
def test_no_alarm_while_relations_are_as_before(kind):
    columns = Columns(count=6, rows=300, seed=3)
    windows = list(unchanged(kind, columns, REFERENCE + 240))
    detector = columns.detector(windows[:REFERENCE])
    said = follow(detector, columns.cuts, windows[REFERENCE:], AFTER)
    assert [one for one in said if one.alarm] == []
    assert max(one.evidence for one in said) < 0.5


def test_an_open_alarm_of_one_pair_leaves_the_others_watched(columns, detector):
    state, named = detector.start(), []
    windows = columns.windows(8, pair=0.6)
    more = [columns.values(pair=0.6) for _ in range(8)]
    for x in more:
        x[:, 5] = 0.7 * x[:, 4] + 0.7 * x[:, 5]
    windows += [columns.observed(x) for x in more]
    for place, window in enumerate(windows):
        measured = detector.contrasts.measure(window, columns.cuts)
        state, said = detector.update(state, measured, AFTER + place * HOUR)
        named += [(place, one.source) for one in said.moved if said.alarm]
    assert [name for _, name in named] == ["joint:f0 x f1", "joint:f4 x f5"]
    assert named[1][0] < 12
    assert set(state.muted) == {"joint:f0 x f1", "joint:f4 x f5"}


def test_a_window_of_few_sampled_rows_is_not_read(columns, detector):
    few = Columns(rows=49, seed=5)
    said = follow(detector, columns.cuts, few.windows(10, pair=0.95), AFTER)
    assert max(one.evidence for one in said) < 0.1
    none = [Observed(state=columns.state)] * 10
    assert max(one.evidence for one in follow(detector, columns.cuts, none, AFTER)) < 0.1


def test_what_moves_with_many_columns_is_told_briefly():
    columns = Columns(count=12, seed=6)
    detector = columns.detector(columns.windows(REFERENCE, common=0.8))
    fitted = Fitted(
        cuts_id=columns.cuts.cuts_id,
        length_ms=HOUR,
        contrasts=detector.contrasts,
        calibration=detector.calibration,
        certificate=None,
    )
    watching = Watching(
        id=1,
        detector=fitted.detector(720.0, HOUR),
        cuts=columns.cuts,
        state=detector.start(),
        before="",
    )
    for place in range(4):
        x = columns.values(common=0.8)
        x[:, 0] = columns.rng.permutation(x[:, 0])
        seen = watch(watching, columns.observed(x), AFTER + place * HOUR)
        watching = replace(watching, state=seen.after)
        if seen.said.alarm:
            break
    (finding,) = [one for one in seen.findings if one.outcome is Outcome.ALARM]
    assert finding.detail.count("rank correlation") == MOST_SENTENCES
    assert finding.detail.endswith("and 3 more")
    assert len(seen.tree["open"]) == 11


def joint_of(rows, windows, pairs=(("f0", "f1"),)):
    return JointState({pair: Related(windows, rows * windows, 0) for pair in pairs})


@pytest.mark.parametrize(
    ("joint", "why"),
    [
        (joint_of(500, 47), "47 windows with 50 sampled rows; a pair needs 48"),
        (joint_of(500, 60, [("f0", "gone")]), "hold rare values of both"),
        (joint_of(500, 47, [("f0", "f1"), ("f0", "f2")]), "(and 1 more pairs for the like)"),
    ],
)
def test_pairs_that_tell_too_little_are_skipped_with_a_reason(columns, joint, why):
    contrasts = Contrasts.of(
        columns.cuts, Observed(state=columns.state, joint=joint), windows=60, min_rows=200
    )
    assert contrasts.paired == frozenset()
    (skipped,) = [one for one in contrasts.skipped if one.name.startswith("joint:f0")]
    assert why in skipped.why
    (single,) = [one for one in contrasts.skipped if one.name == "joint"]
    assert "features are in no pair" in single.why


def test_a_feature_called_like_a_pair_has_a_name_of_its_own():
    assert feature_source("joint:a x b") == "feature:joint:a x b"


def test_windows_of_a_baseline_keep_their_pairs_and_older_ones_have_none(columns):
    (one,) = columns.windows(1)
    assert Observed.from_bytes(one.state.to_bytes(), one.beside_bytes()) == one
    older = msgspec.msgpack.encode((1, ResourceState().to_bytes(), {}))
    state = PaneState(columns.cuts.cuts_id)
    assert Observed.from_bytes(state.to_bytes(), older).joint == JointState()
