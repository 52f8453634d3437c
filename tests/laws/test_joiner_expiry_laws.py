"""Whatever expires and whoever takes over: figures and ledger are those of a joiner that never rebuilt."""

from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from joining_world import STEP, World

from trimtab.monitor import joiner as joiner_module
from trimtab.store import kept
from trimtab.store.engine import open_store
from trimtab.store.tables import metadata


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('laws') / 'laws.db'}")
    metadata.create_all(store.engine)
    yield store
    store.close()


EARLY_LABEL, ITS_ROW = ("flush", 1, [], [(0, 5, 0, False, 1)]), ("flush", 0, [(0, 1, 0, 1)], [])
CORRECTION = ("flush", 1, [], [(0, 6, 1, False, 0)])
TICK, TAKE_OVER = ("tick",), ("take over",)


@example([EARLY_LABEL, TICK, ITS_ROW, ("expire", 3), TICK, TAKE_OVER, CORRECTION], 1, 2, 1)
@example([EARLY_LABEL, ITS_ROW, TICK, ("expire", 3), TICK, TAKE_OVER, CORRECTION], 1_000, 2, 9)
@example([ITS_ROW, TICK, EARLY_LABEL, ("expire", 3), TICK, TAKE_OVER, CORRECTION], 1, 2, 1)
@settings(max_examples=60, deadline=None)
@given(
    st.lists(STEP, max_size=20),
    st.sampled_from((1, 1, 3, 1_000)),
    st.sampled_from((2, 4, 1_000)),
    st.sampled_from((1, 3, 10_000)),
)
def test_expiry_and_takeovers_change_nothing_that_is_still_counted(
    store, steps, checkpoint_runs, kept_rows, panes
):
    world = World(store)
    with (
        patch.object(kept, "PANES_PER_CHECKPOINT", panes),
        patch.multiple(joiner_module, CHECKPOINT_RUNS=checkpoint_runs, KEPT_RUN_ROWS=kept_rows),
    ):
        for kind, *values in [*steps, ("tick",)]:
            if kind == "flush":
                world.flush(*values)
            elif kind == "expire":
                world.ask(*values)
            elif kind == "take over":
                world.take_over()
            else:
                world.tick()
                world.check()
