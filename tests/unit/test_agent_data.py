"""Snapshots: pinned files, labels as of the run, and a split by time. The archive on a log in memory writes them."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from trimtab.archive.app import Archive
from trimtab.artifacts import FeatureSpec
from trimtab.contracts.model import Contract, Feature, Labels, Prediction, Retraining, Source
from trimtab.detect.diagnosis import Cause, Signals, diagnose
from trimtab.detect.signals import with_labels
from trimtab.events.types import Inference, Label
from trimtab.source import Partition
from trimtab.store.engine import open_store
from trimtab.store.migrate import upgrade
from trimtab.testing.log import MemoryLog, MemorySource
from trimtab_agent.data import pin_snapshot, prepare, snapshot_from
from trimtab_agent.labelled import read_label_signals
from trimtab_agent.recipes.data import DataError, load_data

ROWS, FOREIGN, LABELS = Partition("i", 0), Partition("foreign", 0), Partition("l", 0)
T0 = 1_700_000_000_000
NOW = T0 + 1_000_000
SECOND = 1_000

CONTRACT = Contract(
    name="m",
    task="binary",
    features={
        "x": Feature(kind="number"),
        "c": Feature(kind="category"),
        "derived": Feature(kind="number", input=False),
    },
    prediction=Prediction(classes=("no", "yes")),
    labels=Labels(arrive="within 1h", sources=("human", "outcome")),
)


class World:
    """A model's traffic at one row a second, and the archive of it."""

    def __init__(self, url, directory):
        self.store, self.directory, self.log = open_store(url), directory, MemoryLog()
        upgrade(self.store)
        source = MemorySource(self.log)
        roles = {"i": "inference", "foreign": "inference", "l": "labels"}
        self._archive = Archive(
            self.store,
            source,
            directory / "archive",
            roles,
            owner="a",
            flush_rows=10**6,
            flush_s=0.0,
        )
        self._archive.start()
        source.assign(ROWS, FOREIGN, LABELS)
        self._archive.step()

    def row(self, number, topic=ROWS, at_s=None, **features):
        time = T0 + (number if at_s is None else at_s) * SECOND
        given = {"x": float(number), "c": "ab"[number % 2], **features}
        event = Inference(id=f"i{number}", model="m", version="1", time=time, features=given)
        self.log.send(topic, event, time)

    def label(self, number, value=None, received_s=None, **more):
        time = T0 + number * SECOND
        more = {"source": "human", **more}
        given = ("no", "yes")[number % 3 == 0] if value is None else value
        event = Label(inference_id=f"i{number}", model="m", label=given, time=time, **more)
        self.log.send(LABELS, event, T0 + (received_s or number) * SECOND)

    def stream(self, numbers, labels=True):
        for number in numbers:
            self.row(number)
            if labels:
                self.label(number)
        self.archive()

    def archive(self):
        self._archive.step()

    def pin(self, contract=CONTRACT, onset_ms=T0, now_ms=NOW, **more):
        return pin_snapshot(
            self.store, contract, run_id="r", onset_ms=onset_ms, now_ms=now_ms, **more
        )

    def prepare(self, contract=CONTRACT, snapshot=None, **more):
        snapshot = self.pin(contract) if snapshot is None else snapshot
        return prepare(snapshot, contract, self.directory / "data", **more)

    def rows(self, contract=CONTRACT, snapshot=None, **more):
        """(search, gate) as training data."""
        made = self.prepare(contract, snapshot, **more)
        return load_data(made.search), load_data(made.gate)


@pytest.fixture
def world(sqlite_url, tmp_path):
    world = World(sqlite_url, tmp_path)
    yield world
    world.store.close()


def seconds(data):
    """The rows as their numbers: row n has event time n seconds."""
    return ((data.event_time_ms - T0) // SECOND).tolist()


def truth(data):
    """Row number to label."""
    names = [data.classes[code] for code in data.labels] if data.classes else data.labels.tolist()
    return dict(zip(seconds(data), names, strict=True))


def everything(world, contract=CONTRACT, snapshot=None):
    search, gate = world.rows(contract, snapshot)
    return truth(search) | truth(gate)


# --- what is pinned -------------------------------------------------------------------------------


def test_a_snapshot_gives_the_same_rows_whatever_arrives_later(world):
    world.stream(range(40))
    snapshot = world.pin()
    before = everything(world, snapshot=snapshot)
    world.stream(range(40, 60))
    for number in range(40):
        world.label(number, "yes", revision=9)
    world.archive()
    assert everything(world, snapshot=snapshot) == before
    assert len(before) == 40
    assert set(everything(world).values()) == {"yes", "no"}
    assert world.pin().digest != snapshot.digest
    assert snapshot_from(msgspec.to_builtins(snapshot)) == snapshot


def test_a_tampered_file_is_refused_and_a_missing_one_named(world):
    world.stream(range(40))
    snapshot = world.pin()
    path = Path(snapshot.inferences[0].path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="SHA-256 differs"):
        world.prepare(snapshot=snapshot)
    path.unlink()
    with pytest.raises(DataError, match="mounted"):
        world.prepare(snapshot=snapshot)


@pytest.mark.parametrize("labels", [True, False])
def test_an_archive_without_rows_or_labels_says_so(world, labels):
    world.stream(range(5), labels=False)
    with pytest.raises(DataError, match="no inferences" if labels else "no labels"):
        world.pin(onset_ms=T0 + 10**6 if labels else T0)


def test_rows_before_the_onset_and_after_the_run_are_left_out(world):
    world.stream(range(60))
    snapshot = world.pin(onset_ms=T0 + 10 * SECOND, now_ms=T0 + 50 * SECOND)
    assert sorted(everything(world, snapshot=snapshot)) == list(range(10, 50))


def test_rows_from_a_topic_the_contract_does_not_name_are_no_training_data(world):
    world.stream(range(40))
    for number in range(100, 140):
        world.row(number, FOREIGN)
        world.label(number)
    world.archive()
    bound = msgspec.structs.replace(CONTRACT, source=Source(topics=("i",)))
    assert sorted(everything(world, bound)) == list(range(40))
    assert len(everything(world)) == 80


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"value": "yes", "revision": 1}, "yes"),
        ({"value": "yes", "revision": 0}, "yes"),  # a tie: the greater value
        ({"value": "no", "revision": 0}, "no"),
        ({"revision": 1, "retracted": True}, None),
        ({"revision": 0, "retracted": True}, None),  # a tie: the withdrawal
        ({"value": "yes", "revision": 1, "source": "model"}, "no"),
        ({"value": "yes", "revision": 1, "source": "unknown"}, "no"),
        ({"value": "yes", "revision": 1, "received_s": 2_000}, "no"),  # after the run was planned
        ({"value": "elsewhere", "revision": 1}, None),  # none of the classes
    ],
)
@pytest.mark.parametrize("later_first", [False, True])
def test_of_several_labels_the_one_wins_that_the_joiner_takes(world, second, expected, later_first):
    world.stream(range(40), labels=False)
    for number in range(40):
        if number != 7:
            world.label(number)
    for given in [second, {"value": "no"}][:: 1 if later_first else -1]:
        world.label(7, **given)
        world.archive()
    assert everything(world).get(7) == expected


def test_a_withdrawn_label_can_be_given_again(world):
    world.stream(range(40))
    world.label(7, revision=1, retracted=True)
    world.label(7, "yes", revision=2)
    world.archive()
    assert everything(world)[7] == "yes"


def test_a_row_sent_twice_is_one_row(world):
    world.stream(range(40))
    for number in range(40):
        world.row(number)
    world.archive()
    assert world.prepare().labelled_rows == 40


def test_labels_of_a_regression_are_finite_numbers(world):
    contract = msgspec.structs.replace(CONTRACT, task="regression", prediction=Prediction())
    world.stream(range(40), labels=False)
    for number in range(40):
        world.label(number, number / 2)
    for number, bad in ((3, "much"), (4, True)):
        world.label(number, bad, revision=1)  # the monitor rejects these, so they replace nothing
    world.archive()
    found = everything(world, contract)
    assert found == {number: number / 2 for number in range(40)}


# --- the split ------------------------------------------------------------------------------------


def test_the_newest_rows_judge_and_an_embargo_lies_before_them(world):
    world.stream(range(100))
    search, gate = world.rows(embargo_ms=5 * SECOND)
    assert seconds(gate) == list(range(75, 100))
    assert max(seconds(search)) == 69
    validation = seconds(search.to_validate)
    assert min(validation) - max(seconds(search.to_fit)) >= 5
    assert set(validation).isdisjoint(seconds(search.to_fit))


def test_rows_are_split_by_event_time_whatever_their_order_of_arrival(world):
    for number in np.random.default_rng(3).permutation(100).tolist():
        world.row(number)
        world.label(number)
        if number % 10 == 0:
            world.archive()
    world.archive()
    search, gate = world.rows()
    assert seconds(gate) == list(range(75, 100))
    assert max(seconds(search)) < 75


def test_rows_of_the_same_moment_are_never_on_both_sides(world):
    for number in range(40):
        world.row(number, at_s=number // 10 * 10)
        world.label(number)
    world.archive()
    made = world.prepare(gate_share=0.3)
    search = load_data(made.search)
    assert made.gate.rows == 12
    assert search.event_time_ms.max() < made.gate_from_ms


def test_rows_that_judged_once_never_judge_again(world):
    world.stream(range(100))
    first = world.prepare()
    spent_ms = first.gate_to_ms
    with pytest.raises(DataError, match="never gated"):
        world.prepare(snapshot=world.pin(gate_after_ms=spent_ms))
    world.stream(range(100, 110))
    second = world.prepare(snapshot=world.pin(gate_after_ms=spent_ms))
    assert second.gate_from_ms > spent_ms
    assert second.gate.rows == 10
    assert max(seconds(load_data(second.search))) == 99


def test_too_few_labelled_rows_say_so(world):
    world.stream(range(1))
    with pytest.raises(DataError, match="too few"):
        world.prepare()


# --- columns --------------------------------------------------------------------------------------


def test_categories_have_the_champions_codes_and_new_ones_come_after(world):
    world.stream(range(40))
    champion = (FeatureSpec("c", "category", ("z", "b")),)
    search, gate = world.rows(champion=champion)
    spec = next(spec for spec in search.specs if spec.name == "c")
    assert spec.values == ("z", "b", "a")
    assert gate.specs == search.specs
    codes = dict(zip(seconds(search), search.features[:, 1].tolist(), strict=True))
    assert (codes[0], codes[1]) == (2.0, 1.0)


def test_declared_categories_do_not_change_the_champions_codes(world):
    world.stream(range(40))
    features = {**CONTRACT.features, "c": Feature(kind="category", values=("a", "b"))}
    contract = msgspec.structs.replace(CONTRACT, features=features)
    champion = (FeatureSpec("c", "category", ("b", "a")),)
    search, _ = world.rows(contract, champion=champion)
    assert next(spec.values for spec in search.specs if spec.name == "c") == ("b", "a")


def test_descriptors_that_are_no_input_are_left_out(world):
    world.stream(range(40))
    search, _ = world.rows()
    assert [spec.name for spec in search.specs] == ["x", "c"]


def test_files_may_disagree_about_a_columns_type(world):
    world.stream(range(20))
    for number in range(20, 40):  # one file with text in x, no c at all, then one with numbers in c
        world.row(number, x="2.5" if number % 2 else "much", c=None)
        world.label(number)
    world.archive()
    for number in range(40, 60):
        world.row(number, x=True, c=3.0)
        world.label(number)
    world.archive()
    search, gate = world.rows(gate_share=0.5)
    x = dict(zip(seconds(gate), gate.features[:, 0].tolist(), strict=True))
    assert (x[41], x[59]) == (1.0, 1.0)
    values = next(spec.values for spec in gate.specs if spec.name == "c")
    assert values == ("3", "a", "b")
    x = dict(zip(seconds(search), search.features.tolist(), strict=True))
    assert x[21] == [2.5, -1.0]
    assert np.isnan(x[20][0])


# --- the original training set --------------------------------------------------------------------


def with_original(path, text):
    path.write_text(text)
    return msgspec.structs.replace(CONTRACT, retraining=Retraining(original=str(path)))


def test_the_original_set_is_for_search_only_and_marked(world, tmp_path):
    lines = "".join(f"{n},a,{('no', 'yes')[n % 2]}\n" for n in range(30))
    contract = with_original(tmp_path / "original.csv", "x,c,label\n" + lines)
    world.stream(range(40))
    search, gate = world.rows(contract)
    assert search.original.sum() == 30
    assert not gate.original.any()
    assert not search.to_validate.original.any()
    assert len(search.to_fit) + len(search.to_validate) == 60


def test_the_original_set_may_know_other_categories_and_classes(world, tmp_path):
    contract = with_original(tmp_path / "original.csv", "x,c,label\n1,fax,2\n2,,3\nnan,a,\n")
    contract = msgspec.structs.replace(contract, prediction=Prediction(), task="multiclass")
    world.stream(range(40))
    search, gate = world.rows(contract)
    assert search.classes == gate.classes == ("2", "3", "no", "yes")
    old = search.take(search.original)
    assert [search.classes[code] for code in old.labels] == ["2", "3"]
    assert next(spec.values for spec in search.specs if spec.name == "c") == ("a", "b", "fax")
    assert old.features[:, 1].tolist() == [2.0, -1.0]


def test_an_original_set_that_changed_or_lacks_a_column_is_refused(world, tmp_path):
    world.stream(range(40))
    contract = with_original(tmp_path / "original.csv", "x,label\n1,no\n")
    with pytest.raises(DataError, match="no column 'c'"):
        world.prepare(contract)
    snapshot = world.pin(contract)
    (tmp_path / "original.csv").write_text("x,c,label\n1,a,no\n")
    with pytest.raises(DataError, match="has changed"):
        world.prepare(contract, snapshot)
    (tmp_path / "original.parquet").write_text("not Parquet")
    contract = msgspec.structs.replace(
        contract, retraining=Retraining(original=str(tmp_path / "original.parquet"))
    )
    with pytest.raises(DataError, match="CSV or Parquet"):
        world.prepare(contract)


# --- what labelled rows say -----------------------------------------------------------------------

ONSET = T0 + 2_000 * SECOND


def stream_scored(world, numbers, seed, *, flipped=False, version="1", delay_s=60):
    """A row a second, x in -2 … 2, its true probability as the score; `flipped`: x means the opposite."""
    rng = np.random.default_rng(seed)
    for number in numbers:
        x = float(rng.normal())
        p = float(1 / (1 + np.exp(-1.5 * x)))
        truth = rng.random() < (1 - p if flipped else p)
        time = T0 + number * SECOND
        event = Inference(
            id=f"i{number}",
            model="m",
            version=version,
            time=time,
            features={"x": x, "c": "ab"[number % 2], "derived": x * x},
            prediction="yes" if p > 0.5 else "no",
            scores={"no": 1 - p, "yes": p},
        )
        world.log.send(ROWS, event, time)
        world.label(number, ("no", "yes")[int(truth)], received_s=number + delay_s)
        if number % 100 == 99:
            world.archive()
    world.archive()


SCORED = msgspec.structs.replace(
    CONTRACT, prediction=Prediction(classes=("no", "yes"), positive="yes")
)


def signals_of_rows(world, contract=SCORED, since_ms=T0, onset_ms=ONSET, version="1"):
    return read_label_signals(
        world.store,
        contract,
        version,
        since_ms=since_ms,
        onset_ms=onset_ms,
        now_ms=T0 + 10_000 * SECOND,
    )


def test_labelled_rows_tell_a_changed_concept_from_the_archive(world):
    stream_scored(world, range(2_000), 1)
    stream_scored(world, range(2_000, 3_000), 2, flipped=True)
    stream_scored(world, range(3_000, 3_300), 3, version="2")
    said = signals_of_rows(world)
    assert (said.reference_rows, said.rows) == (2_000, 1_000), "version 2 is another model"
    found = diagnose(with_labels(Signals(), said))
    assert found.cause is Cause.CONCEPT_DRIFT
    assert {"score", "x"} & {sign.subject for sign in said.calibration_shape}
    assert said.quality
    assert said.label_pipeline == ()


def test_labelled_rows_that_did_not_change_say_nothing(world):
    stream_scored(world, range(2_000), 1)
    stream_scored(world, range(2_000, 3_000), 2)
    said = signals_of_rows(world)
    assert said is not None
    assert diagnose(with_labels(Signals(), said)).cause is Cause.NONE


def test_labels_that_stop_coming_in_time_are_noticed(world):
    stream_scored(world, range(2_000), 1)
    stream_scored(world, range(2_000, 3_000), 2, delay_s=600)
    assert signals_of_rows(world).label_pipeline


def test_without_enough_labelled_rows_of_the_version_nothing_is_said(world):
    assert signals_of_rows(world) is None
    stream_scored(world, range(300), 1)
    assert signals_of_rows(world) is None, "no row since the onset"
    assert signals_of_rows(world, onset_ms=T0) is None, "no row before it"
    assert signals_of_rows(world, onset_ms=T0 + 250 * SECOND) is None, "50 rows are too few"
    regression = msgspec.structs.replace(CONTRACT, task="regression")
    assert signals_of_rows(world, regression, onset_ms=T0 + 150 * SECOND) is None


def test_an_altered_file_is_an_error_and_no_signal(world):
    stream_scored(world, range(300), 1)
    for path in (world.directory / "archive").rglob("*.parquet"):
        path.write_bytes(b"else")
    with pytest.raises(DataError, match="SHA-256"):
        signals_of_rows(world, onset_ms=T0 + 150 * SECOND)
