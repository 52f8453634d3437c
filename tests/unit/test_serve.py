"""The server splits by unit, falls back to the champion, and says so in its events."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.testing import TestClient

from trimtab.artifacts import FORMAT, FeatureSpec, Manifest, make_signature
from trimtab.events.types import Traffic, TrafficArm
from trimtab.serve.app import create_app, derived_features
from trimtab.serve.arms import assign, place
from trimtab.serve.host import ModelHost
from trimtab.serve.inference import Inference, NotServedError
from trimtab.serve.predictor import Predictor
from trimtab.serve.traffic import TrafficTable, decode_traffic


def arm(name, weight):
    return TrafficArm(name, f"v-{name}", weight, f"/artifacts/{name}", name * 8)


def split(challenger=0.25, revision=3, valid_until_ms=None):
    return Traffic(
        model="m",
        revision=revision,
        salt="salt",
        arms=[arm("champion", 1 - challenger), arm("challenger", challenger)],
        valid_until_ms=valid_until_ms,
    )


def predictor(answer, features=("x", "y"), recipe="tabular", params=None):
    manifest = Manifest(
        format=FORMAT,
        recipe=recipe,
        framework="keras",
        files=(),
        signature=make_signature(
            "binary", tuple(FeatureSpec(name) for name in features), ("no", "yes")
        ),
        created_ms=0,
        params=params or {},
    )

    def score(batch):
        if isinstance(answer, Exception):
            raise answer
        return np.tile(np.array([answer], dtype=np.float32), (len(batch), 1))

    return Predictor(manifest, "0" * 64, score)


class Host:
    """A model host with what the test put into it."""

    def __init__(self, **predictors):
        self.predictors = predictors

    def get(self, arm):
        return self.predictors.get(arm.name)

    def failure(self, arm):
        return None if arm.name in self.predictors else "it is broken"


def inference(traffic, **predictors):
    table = TrafficTable()
    table.offer(traffic)
    return Inference(table, Host(**predictors), clock_ms=lambda: 1_000)


def unit_of(traffic, name):
    return next(
        str(number) for number in range(1_000) if assign(traffic, str(number), 0).name == name
    )


# --- arms -----------------------------------------------------------------------------------------


@given(st.text(max_size=30), st.floats(0.01, 0.5), st.floats(0.0, 0.49))
def test_a_unit_in_the_challengers_arm_stays_there_while_its_share_grows(unit, share, more):
    if assign(split(share), unit, 0).name == "challenger":
        assert assign(split(share + more), unit, 0).name == "challenger"


def test_shares_are_met_over_many_units():
    served = [assign(split(0.05), str(unit), 0).name for unit in range(20_000)]

    assert served.count("challenger") / len(served) == pytest.approx(0.05, abs=0.006)


@given(st.text(max_size=30))
def test_a_place_lies_in_the_unit_interval(unit):
    assert 0 <= place("salt", unit) < 1


def test_an_expired_split_gives_everything_to_the_champion():
    traffic = split(0.5, valid_until_ms=1_000)

    assert {assign(traffic, str(unit), 1_000).name for unit in range(100)} == {"champion"}
    assert {assign(traffic, str(unit), 999).name for unit in range(100)} == {
        "champion",
        "challenger",
    }


# --- the traffic table ----------------------------------------------------------------------------


def test_a_lower_revision_is_ignored_and_an_equal_one_renews():
    table = TrafficTable()
    table.offer(split(revision=3, valid_until_ms=5))

    assert not table.offer(split(revision=2))
    assert table.offer(split(revision=3, valid_until_ms=9))
    assert table.current("m").valid_until_ms == 9


def test_a_newer_split_takes_effect_when_its_arms_can_answer():
    loaded = set()
    table = TrafficTable(settled=lambda traffic: traffic.revision in loaded)
    table.offer(split(revision=3))
    table.offer(split(revision=4))

    assert table.current("m").revision == 3
    assert not table.offer(split(revision=3)), "an older one cannot come back"
    loaded.add(4)
    assert table.current("m").revision == 4


def test_a_split_that_comes_while_the_one_before_takes_effect_is_not_lost():
    def meanwhile(traffic):
        if traffic.revision == 4:
            table.offer(split(revision=5))
        return True

    table = TrafficTable(settled=meanwhile)
    table.offer(split(revision=3))
    table.offer(split(revision=4))
    table.current("m")
    assert table.current("m").revision == 5


def test_letting_go_of_an_older_split_keeps_what_a_newer_one_wants():
    host = ModelHost()
    old, new = split(revision=3), split(revision=4)
    host.want(old)
    host._failed = {arm.artifact_sha256: "gone" for arm in old.arms}
    host.want(
        msgspec.structs.replace(new, arms=[*new.arms, TrafficArm("x", "9", 0.0, "/x", "f" * 64)])
    )
    host._failed = {arm.artifact_sha256: "gone" for arm in old.arms}
    assert host.settled(old)
    assert "f" * 64 in host._wanted["m"]


@pytest.mark.parametrize("value", [None, b"", b"{", b'{"data": {}}', b"[1]", b"\xff"])
def test_an_unreadable_traffic_message_is_no_split(value):
    assert decode_traffic(value) is None


# --- answering ------------------------------------------------------------------------------------


def test_the_assigned_arm_answers():
    traffic = split()
    server = inference(traffic, champion=predictor([1, 0]), challenger=predictor([0, 1]))

    answer = server.answer("m", [[1.0, 2.0]], unit_of(traffic, "challenger"))

    assert answer.prediction.labels == ["yes"]
    assert (answer.status, answer.assigned.name, answer.served.name) == (
        "ok",
        "challenger",
        "challenger",
    )


@pytest.mark.parametrize("challenger", [None, RuntimeError("out of memory")])
def test_a_failing_challenger_is_answered_for_and_counted_against_its_arm(challenger):
    traffic = split()
    models = {"champion": predictor([1, 0])}
    if challenger is not None:
        models["challenger"] = predictor(challenger)
    server = inference(traffic, **models)

    answer = server.answer("m", [[1.0, 2.0]], unit_of(traffic, "challenger"))

    assert answer.prediction.labels == ["no"]
    assert (answer.status, answer.assigned.name, answer.served.name) == (
        "error",
        "challenger",
        "champion",
    )
    assert "the champion answered" in answer.error
    assert server.shares("m")[0]["served_by"] == "champion"


def test_a_failing_champion_is_an_error_that_names_it():
    server = inference(split(0.0), champion=predictor(RuntimeError("out of memory")))

    with pytest.raises(NotServedError, match="out of memory"):
        server.answer("m", [[1.0, 2.0]], "unit")


# --- descriptors ----------------------------------------------------------------------------------


def test_image_models_get_descriptors_beside_their_pixels():
    pixels = [f"p{index}" for index in range(4)]
    model = predictor([1, 0], pixels, "image-cnn", {"options": {"shape": [2, 2, 1]}})

    derived = derived_features(
        model.manifest, [dict(zip(pixels, [0.0, 1.0, 0.0, 1.0], strict=True))]
    )

    assert derived["brightness"] == [0.5]
    assert derived["contrast"] == [0.5]


# --- HTTP -----------------------------------------------------------------------------------------


class Events:
    """Collects what a stream would send."""

    def __init__(self):
        self.logged = []
        self.version = ""

    def of(self, _model, version):
        self.version = version
        return self

    def log(self, features=None, prediction=None, **fields):
        self.logged.append({"features": features, "prediction": prediction, **fields})


class Server:
    """A server over a fake host; everything else is the real thing."""

    from trimtab.serve.app import Server as _Real

    infer = _Real.infer
    _stream = _Real._stream
    _stream_failure = _Real._stream_failure

    def __init__(self, traffic, **predictors):
        self.inference = (
            inference(traffic, **predictors) if traffic else Inference(TrafficTable(), Host())
        )
        self.table = self.inference._table
        self.streams = Events()


def body(*rows):
    return {
        "id": "req",
        "inputs": [
            {
                "name": "x",
                "shape": [len(rows), 2],
                "datatype": "FP32",
                "data": [value for row in rows for value in row],
            }
        ],
    }


def test_an_answer_streams_one_event_per_row():
    server = Server(split(0.0), champion=predictor([0.25, 0.75]))
    with TestClient(create_app(server)) as client:
        response = client.post("/v2/models/m/infer", json=body([1, 2], [3, 4]))

    assert response.status_code == 200
    assert response.json()["outputs"][0]["data"] == ["yes", "yes"]
    assert [event["id"] for event in server.streams.logged] == ["req-0", "req-1"]
    assert server.streams.logged[0]["features"] == {"x": 1, "y": 2}
    assert server.streams.logged[0]["traffic_revision"] == 3


def test_a_failed_request_is_an_event_too():
    server = Server(split(0.0), champion=predictor(RuntimeError("boom")))
    with TestClient(create_app(server)) as client:
        response = client.post("/v2/models/m/infer", json=body([1, 2]))

    assert response.status_code == 503
    assert "boom" in response.json()["error"]
    assert server.streams.logged[0]["status"] == "error"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"inputs": []}',
        b"[" * 100_000,
        msgspec.json.encode(
            {"inputs": [{"name": n, "shape": [1], "datatype": "FP32", "data": [1]} for n in "ab"]}
        ),
    ],
)
def test_a_bad_body_is_refused_and_says_why(content):
    server = Server(split(0.0), champion=predictor([1, 0]))
    with TestClient(create_app(server)) as client:
        response = client.post("/v2/models/m/infer", content=content)

    assert response.status_code == 400
    assert len(response.json()["error"]) > 20


def test_readiness_says_why_not():
    with TestClient(create_app(Server(None))) as client:
        nothing = client.get("/v2/health/ready")
        unknown = client.get("/v2/models/m/ready")

    assert nothing.status_code == unknown.status_code == 503
    assert "trimtab model champion" in unknown.json()["reasons"][0]
