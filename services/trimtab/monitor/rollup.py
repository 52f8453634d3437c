"""Roll-up of one model's counts under the housekeeping lease: panes → hours → days → gone.

The order, for a pane:

1. sealed by its owner and seen by the evaluator, its window judged: folded over partitions and generations;
2. older than panes are kept: folded into its hour (but see `windows.rollup.fold_limits`: a window that is
   no whole number of hours needs its panes for as long as labels may change its verdict);
3. older than hours are kept: folded into its day, in the same way;
4. older than days are kept: deleted.

A pane that is not sealed, because its partition brings nothing more, stays as it is until step 4. A row that
comes late begins a new generation and goes the same way, into the hour or day that is there already.
"""

from collections.abc import Callable, Mapping
from functools import partial

from msgspec import Struct
from sqlalchemy import Connection

from trimtab.contracts.model import Contract
from trimtab.store.engine import Store
from trimtab.store.leases import Lease, check
from trimtab.store.rollups import (
    Fold,
    apply_fold,
    fold_gauge_hours,
    fold_gauge_panes,
    forget_counts,
    plan_panes,
    plan_rollup,
)
from trimtab.store.settled import standing
from trimtab.windows.rollup import FoldLimits, Kept, Resolution, fold_limits


class Rolled(Struct, frozen=True):
    """What one round did: rows that went, and whether more may be due at once."""

    rows: int
    more: bool


Plan = Callable[[Connection], Fold | None]


def roll_up(
    store: Store,
    lease: Lease,
    model: str,
    contract: Contract | None,
    newest_ms: int,
    kept: Kept,
    limit: int,
    *,
    only_panes: bool = False,
) -> Rolled:
    """Do each step once for a model, about `limit` rows of each.

    `contract` is None for a model that is watched no more, `newest_ms` its newest event time. With
    `only_panes` nothing of it is old enough for more than the first step. Raises ConflictError when the
    lease is another's now; the step that found out leaves nothing behind.
    """
    with store.read() as connection:
        stands = None if contract is None else standing(connection, contract)
    if contract is not None and stands is None:
        return Rolled(0, more=False)
    judged = None if stands is None else stands.judged
    seen = None if stands is None else stands.seen
    sealed_before_ms = newest_ms if stands is None else stands.evaluated_to_ms
    limits = fold_limits(kept, newest_ms, judged)
    first = partial(plan_panes, model=model, seen=seen, before_ms=sealed_before_ms, limit=limit)
    if only_panes:
        return _do(store, lease, first)
    steps = (
        first,
        _plan_of(model, Resolution.HOUR, limits.panes_ms, limit),
        _plan_of(model, Resolution.DAY, limits.hours_ms, limit),
    )
    done = [_do(store, lease, step) for step in steps]
    done.append(_resources_and_end(store, lease, model, limits, limit, seen))
    return Rolled(sum(one.rows for one in done), more=any(one.more for one in done))


def _plan_of(model: str, resolution: Resolution, before_ms: int, limit: int) -> Plan:
    return partial(
        plan_rollup, model=model, resolution=resolution, before_ms=before_ms, limit=limit
    )


def _do(store: Store, lease: Lease, plan: Plan) -> Rolled:
    """Plan in a snapshot, do it under the lease."""
    with store.read() as connection:
        fold = plan(connection)
    if fold is None:
        return Rolled(0, more=False)
    with store.write() as connection:
        check(connection, lease)
        return Rolled(apply_fold(connection, fold), more=fold.more)


def _resources_and_end(
    store: Store,
    lease: Lease,
    model: str,
    limits: FoldLimits,
    limit: int,
    seen: Mapping[str, int] | None,
) -> Rolled:
    with store.write() as connection:
        check(connection, lease)
        gone = (
            fold_gauge_panes(connection, model, seen, limits.panes_ms, limit),
            fold_gauge_hours(connection, model, limits.hours_ms, limit),
            forget_counts(connection, model, limits.days_ms, limit),
        )
    return Rolled(sum(gone), more=max(gone) >= limit)
