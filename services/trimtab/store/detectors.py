"""Detectors, each fitted on one baseline, and their states after the last windows of a model."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from msgspec import Struct
from sqlalchemy import Connection, delete, func, select

from trimtab.detect import arrays
from trimtab.detect.drift import Fitted, Refused
from trimtab.detect.evidence import State
from trimtab.errors import NotFoundError
from trimtab.store.dialect import insert_for
from trimtab.store.tables import baselines, detector_states, detectors


class DetectorRow(Struct, frozen=True, kw_only=True):
    """A fitted detector, or why its baseline gives none."""

    id: int
    model: str
    baseline_id: int
    fitted: Fitted | None
    refused: str | None
    created_ms: int


def find_detector(connection: Connection, model: str, baseline_id: int, recipe: str) -> int | None:
    """Return the id of a baseline's detector made by a recipe, a refused one too; None while it is not made."""
    found: int | None = connection.scalar(
        select(detectors.c.id).where(
            detectors.c.model == model,
            detectors.c.baseline_id == baseline_id,
            detectors.c.recipe == recipe,
        )
    )
    return found


def detector(connection: Connection, detector_id: int) -> DetectorRow:
    """Return one detector. Raises NotFoundError, and ArraysError for one that another release stored."""
    row = connection.execute(select(detectors).where(detectors.c.id == detector_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"There is no detector {detector_id}; its baseline may be gone.")
    return DetectorRow(
        id=row.id,
        model=row.model,
        baseline_id=row.baseline_id,
        fitted=None if row.body is None else _fitted(bytes(row.body)),
        refused=row.refused,
        created_ms=row.created_ms,
    )


@lru_cache(maxsize=64)  # immutable, and asked for at every evaluation
def _fitted(body: bytes) -> Fitted:
    return arrays.from_bytes(body, Fitted)


def newest_detector(
    connection: Connection, model: str, cuts_id: str, but_baseline_id: int
) -> Fitted | None:
    """Return the last detector fitted under these cuts on another baseline, which may inherit its variances."""
    body = connection.scalar(
        select(detectors.c.body)
        .join(baselines, baselines.c.id == detectors.c.baseline_id)
        .where(
            detectors.c.model == model,
            baselines.c.cuts_id == cuts_id,
            detectors.c.baseline_id != but_baseline_id,
            detectors.c.body.is_not(None),
        )
        .order_by(detectors.c.id.desc())
        .limit(1)
    )
    return None if body is None else _fitted(bytes(body))


def add_detector(
    connection: Connection,
    model: str,
    baseline_id: int,
    recipe: str,
    made: Fitted | Refused,
    now_ms: int,
) -> None:
    """Store what a fit gave; nothing where another process has stored it."""
    refused = made.reason if isinstance(made, Refused) else None
    connection.execute(
        insert_for(connection, detectors)
        .values(
            model=model,
            baseline_id=baseline_id,
            recipe=recipe,
            body=None if isinstance(made, Refused) else arrays.to_bytes(made),
            refused=refused,
            created_ms=now_ms,
        )
        .on_conflict_do_nothing()
    )


# --- states -----------------------------------------------------------------------------------------


class StateRow(Struct, frozen=True):
    """A detector's state after a window."""

    window_start_ms: int
    state: State
    digest: str


def state_before(
    connection: Connection, model: str, detector_id: int, start_ms: int
) -> StateRow | None:
    """Return the state after the last window before `start_ms`; None where none is kept."""
    c = detector_states.c
    row = connection.execute(
        select(c.window_start_ms, c.digest, c.body)
        .where(c.model == model, c.detector_id == detector_id, c.window_start_ms < start_ms)
        .order_by(c.window_start_ms.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    return StateRow(row.window_start_ms, arrays.from_bytes(bytes(row.body), State), row.digest)


def digest_after(connection: Connection, model: str, detector_id: int, start_ms: int) -> str | None:
    """Return the digest of the stored state after a window; None where none is kept."""
    c = detector_states.c
    found: str | None = connection.scalar(
        select(c.digest).where(
            c.model == model, c.detector_id == detector_id, c.window_start_ms == start_ms
        )
    )
    return found


def starts_after(connection: Connection, model: str, detector_id: int, start_ms: int) -> list[int]:
    """Return the windows after `start_ms` whose states are kept, oldest first."""
    c = detector_states.c
    return list(
        connection.scalars(
            select(c.window_start_ms)
            .where(c.model == model, c.detector_id == detector_id, c.window_start_ms > start_ms)
            .order_by(c.window_start_ms)
        )
    )


def save_states(
    connection: Connection,
    model: str,
    states: Mapping[tuple[int, int], tuple[State, str]],
    keep_from_ms: int,
) -> None:
    """Store states by (detector, window start), and let go what no late row can reach.

    Of each detector the last state before `keep_from_ms` stays: windows from then on replay from it.
    """
    c = detector_states.c
    first_ms: dict[int, int] = {}  # of a backlog most states would go again at once
    for detector_id, start_ms in states:
        if start_ms <= keep_from_ms:
            first_ms[detector_id] = max(start_ms, first_ms.get(detector_id, start_ms))
    for (detector_id, start_ms), (state, digest) in sorted(states.items(), key=lambda kv: kv[0]):
        if start_ms < first_ms.get(detector_id, start_ms):
            continue
        body = arrays.to_bytes(state)
        connection.execute(
            insert_for(connection, detector_states)
            .values(
                model=model,
                detector_id=detector_id,
                window_start_ms=start_ms,
                digest=digest,
                body=body,
            )
            .on_conflict_do_update(
                index_elements=[c.model, c.detector_id, c.window_start_ms],
                set_={"digest": digest, "body": body},
            )
        )
    last = connection.execute(
        select(c.detector_id, func.max(c.window_start_ms))
        .where(c.model == model, c.window_start_ms <= keep_from_ms)
        .group_by(c.detector_id)
    ).all()
    newest_id = max((detector_id for detector_id, _ in last), default=0)
    for detector_id, start_ms in last:
        # A detector that a newer one has followed is asked only about windows that may still be revised.
        kept = start_ms if detector_id == newest_id else keep_from_ms + 1
        connection.execute(
            delete(detector_states).where(
                c.model == model, c.detector_id == detector_id, c.window_start_ms < kept
            )
        )


def detectors_of(connection: Connection, model: str) -> Sequence[DetectorRow]:
    """Return a model's detectors, oldest first."""
    ids = connection.scalars(
        select(detectors.c.id).where(detectors.c.model == model).order_by(detectors.c.id)
    ).all()
    return [detector(connection, int(each)) for each in ids]
