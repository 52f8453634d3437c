"""What is packed comes back, whatever its span."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trimtab.store.entries import (
    LABEL_RECORD,
    PREDICTION_RECORD,
    REPEAT_RECORD,
    KeptRun,
    decode_kept,
    encode_kept,
)
from trimtab.store.label_runs import PREDICTION, Group, PredictionRun, decode_run, encode_run
from trimtab.store.run_codec import pack, unpack
from trimtab.windows.ids import id_hashes
from trimtab.windows.label_sample import in_sample

SIZE = st.integers(0, 20)
INTEGERS = st.integers(-(2**63), 2**63 - 1)


@given(
    arrays.arrays(np.int64, SIZE, elements=st.one_of(INTEGERS, st.integers(0, 3))),
    arrays.arrays(np.float64, SIZE),
    arrays.arrays(np.uint64, SIZE),
    arrays.arrays(np.bool_, SIZE),
    arrays.arrays(np.int32, SIZE),
    arrays.arrays(np.int8, SIZE),
    st.integers(1, 2**40),
)
def test_columns_come_back_as_they_were(integers, floats, hashes, flags, codes, small, step):
    columns = {
        "integers": integers,
        "steps": (codes.astype(np.int64) % 1_000) * step,
        "floats": floats,
        "hashes": hashes,
        "flags": flags,
        "codes": codes,
        "small": small,
    }
    found, extra = unpack(pack(columns, {"classes": ["a"]}))
    assert extra == {"classes": ["a"]}
    assert found.keys() == columns.keys()
    for name, column in columns.items():
        assert found[name].dtype == column.dtype
        assert found[name].tobytes() == column.tobytes()  # NaN and -0.0 included


GROUPS = (Group("1", "", 0, ("c=a",), 60_000),)


def prediction_run(bins):
    rows = 3
    return PredictionRun(
        id_hashes(f"id{i}" for i in range(rows)),
        np.arange(rows) * 60_000,
        np.zeros(rows, np.int32),
        np.array([0, 1, -1], np.int32),
        GROUPS,
        ("no", "yes"),
        bins,
    )


@pytest.mark.parametrize("bins", [[0, 99, 50], [-1, -1, 7], [-1, -1, -1]])
def test_score_bins_of_a_run_come_back(bins):
    found = decode_run(PREDICTION, encode_run(prediction_run(np.array(bins, np.int8))))
    assert found.bins.dtype == np.int8
    assert found.bins.tolist() == bins


def test_runs_and_kept_runs_from_before_scores_were_kept_are_read_without():
    run = prediction_run(None)
    columns, extra = unpack(encode_run(run))
    assert sorted(columns) == ["group", "hashes", "panes_ms", "values"]  # as it was written then
    assert sorted(extra) == ["classes", "groups"]
    assert decode_run(PREDICTION, encode_run(run)).bins is None
    records = np.zeros(3, PREDICTION_RECORD)
    records["pane"], records["bin"] = run.panes_ms, [0, 99, 50]
    nothing = np.empty(0, np.uint64)
    labels, repeats = np.zeros(0, LABEL_RECORD), np.zeros(0, REPEAT_RECORD)
    whole = KeptRun(run.hashes, records, nothing, labels, nothing, repeats, GROUPS, run.classes)
    kept = decode_kept(encode_kept(whole))
    assert kept.predictions["bin"].tolist() == [0, 99, 50]
    columns, extra = unpack(encode_kept(kept))
    del columns["p.bin"]
    old = decode_kept(pack(columns, extra))
    assert old.predictions["bin"].tolist() == [-1, -1, -1]
    assert old.predictions["pane"].tolist() == run.panes_ms.tolist()


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.25, 0.9])
def test_a_sample_has_its_share_of_every_shard(share):
    """Seeded by nothing: hashes of fixed ids. Within five standard errors."""
    hashes = id_hashes(f"order-{i}" for i in range(200_000))
    chosen = in_sample(hashes, share)
    shard = (hashes >> np.uint64(32)) % np.uint64(4)
    for number in range(4):
        rows = shard == number
        error = (share * (1 - share) / rows.sum()) ** 0.5
        assert abs(chosen[rows].mean() - share) < 5 * error
    assert in_sample(hashes, 1.0).all()


def test_a_smaller_sample_lies_within_a_larger_one():
    hashes = id_hashes(f"order-{i}" for i in range(10_000))
    assert not (in_sample(hashes, 0.1) & ~in_sample(hashes, 0.3)).any()
