"""What is packed comes back, whatever its span."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

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
    st.integers(1, 2**40),
)
def test_columns_come_back_as_they_were(integers, floats, hashes, flags, codes, step):
    columns = {
        "integers": integers,
        "steps": (codes.astype(np.int64) % 1_000) * step,
        "floats": floats,
        "hashes": hashes,
        "flags": flags,
        "codes": codes,
    }
    found, extra = unpack(pack(columns, {"classes": ["a"]}))
    assert extra == {"classes": ["a"]}
    assert found.keys() == columns.keys()
    for name, column in columns.items():
        assert found[name].dtype == column.dtype
        assert found[name].tobytes() == column.tobytes()  # NaN and -0.0 included


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
