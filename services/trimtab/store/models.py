"""Models, contract revisions, versions and cuts. Pollers keep `CurrentContracts`."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, insert, select, update

from trimtab.contracts.compare import compare
from trimtab.contracts.model import Contract
from trimtab.errors import ConflictError, ContractError, NotFoundError
from trimtab.stats.cuts import ModelCuts
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.tables import contracts, cuts, models, versions

NAMES_PER_QUERY = 500
_ENCODER = msgspec.json.Encoder()
"""Keeps the order of keys: that of `[features]` names the columns of unnamed tensors."""


class Applied(Struct, frozen=True):
    """What `apply_contract` did."""

    revision: int
    difference_lines: list[str]
    """For people: one change per line, then what restarts and what goes on (`contracts.compare`)."""
    changed: bool


class ContractRow(Struct, frozen=True, kw_only=True):
    """One revision of a model's contract as it is stored."""

    revision: int
    contract: Contract
    text: str
    """The TOML that the user applied."""
    digest: str
    applied_ms: int
    applied_by: str


class VersionRow(Struct, frozen=True, kw_only=True):
    """One version of a model: seen in traffic, registered by the agent or a user, or both."""

    model: str
    version: str
    created_ms: int
    artifact_uri: str | None
    artifact_sha256: str | None
    run_id: str | None
    source: str


# --- contracts ------------------------------------------------------------------------------------


def apply_contract(store: Store, contract: Contract, text: str, by: str, now_ms: int) -> Applied:
    """Make `contract` the model's current revision, in one transaction; the same again changes nothing.

    A retired model comes back. `text` is the TOML it was parsed from, `by` who applied it.
    """
    body = _ENCODER.encode(contract).decode()
    digest = hashlib.sha256(body.encode()).hexdigest()
    with store.write() as connection:
        connection.execute(
            insert_for(connection, models)
            .values(name=contract.name, team=contract.team, contract_revision=0, created_ms=now_ms)
            .on_conflict_do_nothing()
        )
        model = connection.execute(
            select(models).where(models.c.name == contract.name).with_for_update()
        ).one()
        before = _row(connection, contract.name, model.contract_revision)
        lines = list(compare(before.contract if before else None, contract).lines)
        if before is not None and before.digest == digest and model.retired_ms is None:
            return Applied(before.revision, [], changed=False)
        revision = model.contract_revision
        if before is None or before.digest != digest:
            revision += 1
            connection.execute(
                insert(contracts).values(
                    model=contract.name,
                    revision=revision,
                    digest=digest,
                    text=text,
                    body=body,
                    applied_ms=now_ms,
                    applied_by=by,
                )
            )
        connection.execute(
            update(models)
            .where(models.c.name == contract.name)
            .values(team=contract.team, contract_revision=revision, retired_ms=None)
        )
    return Applied(revision, lines, changed=True)


def retire_model(store: Store, model: str, now_ms: int) -> None:
    """Stop watching a model; its history stays. Raises NotFoundError."""
    with store.write() as connection:
        done = connection.execute(
            update(models).where(models.c.name == model).values(retired_ms=now_ms)
        )
        if not done.rowcount:
            raise NotFoundError(f"There is no model {model!r}. `trimtab model list` names them.")


def load_contracts(store: Store) -> dict[str, ContractRow]:
    """Return the current contract of every model that is not retired, by model."""
    current = CurrentContracts(store)
    current.refresh()
    return current.rows


def current_contract(store: Store, model: str) -> ContractRow | None:
    """Return the current contract of a model; None when it is retired or there is none."""
    with store.read() as connection:
        return _current(connection, [model]).get(model)


class CurrentContracts:
    """The current contract of every model that is not retired, read as they change. For one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revisions: Sequence[tuple[str, int]] = []
        self.rows: dict[str, ContractRow] = {}
        """By model, in order of the names. A change makes a new mapping; the row of a model whose
        revision stays is the same object in it."""

    def refresh(self) -> frozenset[str]:
        """Read what has changed since the last call; return the models that are new, changed or gone."""
        query = (
            select(models.c.name, models.c.contract_revision)
            .where(models.c.retired_ms.is_(None))
            .order_by(models.c.name)
        )
        with self._store.read() as connection:
            revisions = [(name, revision) for name, revision in connection.execute(query)]
            if revisions == self._revisions:
                return frozenset()
            known = {model: row.revision for model, row in self.rows.items()}
            changed = [name for name, revision in revisions if known.get(name) != revision]
            rows = self.rows | _current(connection, changed)
        gone = known.keys() - {name for name, _ in revisions}
        self.rows = {name: rows[name] for name, _ in revisions}
        self._revisions = revisions
        return frozenset(gone | set(changed))


def _current(connection: Connection, names: Sequence[str]) -> dict[str, ContractRow]:
    found: dict[str, ContractRow] = {}
    for start in range(0, len(names), NAMES_PER_QUERY):
        rows = connection.execute(
            select(contracts)
            .join(
                models,
                (models.c.name == contracts.c.model)
                & (models.c.contract_revision == contracts.c.revision),
            )
            .where(
                models.c.retired_ms.is_(None),
                models.c.name.in_(names[start : start + NAMES_PER_QUERY]),
            )
        ).all()
        found |= {row.model: _contract_row(row) for row in rows}
    return found


def contract_at(store: Store, model: str, revision: int) -> ContractRow:
    """Return one revision of a contract. Raises NotFoundError."""
    with store.read() as connection:
        row = _row(connection, model, revision)
    if row is None:
        raise NotFoundError(
            f"There is no revision {revision} of {model!r}. `trimtab model show {model}` names them."
        )
    return row


def contract_history(store: Store, model: str) -> list[ContractRow]:
    """Return every revision of a model's contract, oldest first."""
    with store.read() as connection:
        rows = connection.execute(
            select(contracts).where(contracts.c.model == model).order_by(contracts.c.revision)
        ).all()
    return [_contract_row(row) for row in rows]


def _row(connection: Connection, model: str, revision: int) -> ContractRow | None:
    row = connection.execute(
        select(contracts).where(contracts.c.model == model, contracts.c.revision == revision)
    ).one_or_none()
    return None if row is None else _contract_row(row)


def _contract_row(row: Any) -> ContractRow:
    try:
        contract = _contract(row.body)
    except msgspec.MsgspecError as error:
        raise ContractError(
            f"Revision {row.revision} of {row.model!r} cannot be read by this release ({error}). "
            "Upgrade trimtab, or apply the contract again."
        ) from error
    return ContractRow(
        revision=row.revision,
        contract=contract,
        text=row.text,
        digest=row.digest,
        applied_ms=row.applied_ms,
        applied_by=row.applied_by,
    )


@lru_cache(maxsize=4_096)  # contracts are immutable, and read again and again
def _contract(body: str) -> Contract:
    return msgspec.json.decode(body, type=Contract)


# --- versions -------------------------------------------------------------------------------------


def register_version(
    store: Store,
    model: str,
    version: str,
    artifact_uri: str | None,
    artifact_sha256: str | None,
    run_id: str | None,
    source: str,
    now_ms: int,
) -> None:
    """Record a version; the same again changes nothing. See `add_version`."""
    with store.write() as connection:
        add_version(
            connection, model, version, artifact_uri, artifact_sha256, run_id, source, now_ms
        )


def add_version(
    connection: Connection,
    model: str,
    version: str,
    artifact_uri: str | None,
    artifact_sha256: str | None,
    run_id: str | None,
    source: str,
    now_ms: int,
) -> None:
    """Record a version inside the caller's transaction.

    `source` is "traffic", "agent" or "user". A version first seen in traffic gains its artifact when
    somebody registers it. Raises ConflictError when the version already has another artifact.
    """
    connection.execute(
        insert_for(connection, versions)
        .values(
            model=model,
            version=version,
            created_ms=now_ms,
            artifact_uri=artifact_uri,
            artifact_sha256=artifact_sha256,
            run_id=run_id,
            source=source,
        )
        .on_conflict_do_nothing()
    )
    if artifact_sha256 is None:
        return
    key = (versions.c.model == model) & (versions.c.version == version)
    stored = connection.scalar(select(versions.c.artifact_sha256).where(key))
    if stored is None:
        connection.execute(
            update(versions)
            .where(key)
            .values(
                artifact_uri=artifact_uri,
                artifact_sha256=artifact_sha256,
                run_id=run_id,
                source=source,
            )
        )
    elif stored != artifact_sha256:
        raise ConflictError(
            f"Version {version!r} of {model!r} already has another artifact (SHA-256 {stored[:12]}…). "
            "A version is immutable; register the artifact under a new one."
        )


def versions_of(store: Store, model: str) -> list[VersionRow]:
    """Return the versions of a model, oldest first."""
    with store.read() as connection:
        rows = connection.execute(
            select(versions)
            .where(versions.c.model == model)
            .order_by(versions.c.created_ms, versions.c.version)
        ).mappings()
        return [VersionRow(**row) for row in rows]


# --- cuts -----------------------------------------------------------------------------------------


def active_cuts(source: Store | Connection, model: str) -> ModelCuts | None:
    """Return the cuts under which the model's rows are counted now; None before the first ones."""
    query = select(cuts.c.body).where(cuts.c.model == model, cuts.c.active)
    if isinstance(source, Connection):
        body = source.scalar(query)
    else:
        with source.read() as connection:
            body = connection.scalar(query)
    return None if body is None else read_cuts(bytes(body))


def active_cuts_ids(connection: Connection) -> Sequence[tuple[str, str]]:
    """Return (model, cuts id) of all active cuts, in order of the models; from an index alone."""
    query = select(cuts.c.model, cuts.c.cuts_id).where(cuts.c.active).order_by(cuts.c.model)
    return [(model, cuts_id) for model, cuts_id in connection.execute(query)]


def cuts_at(source: Connection, model: str, cuts_id: str) -> ModelCuts | None:
    """Return the model's cuts of an id, whether active or not."""
    body = source.scalar(
        select(cuts.c.body).where(cuts.c.model == model, cuts.c.cuts_id == cuts_id)
    )
    return None if body is None else read_cuts(bytes(body))


@lru_cache(
    maxsize=256
)  # cuts are immutable; 67 features of 64 bins take about a millisecond to read
def read_cuts(body: bytes) -> ModelCuts:
    """Return the cuts that a stored body holds. Raises CutsError."""
    return ModelCuts.from_json(body)


def save_cuts(
    connection: Connection, model: str, model_cuts: ModelCuts, source: str, now_ms: int
) -> None:
    """Make these the model's active cuts, inside the caller's transaction.

    Rows are counted under them from the next load on. `source` says where they come from, such as
    "traffic" or "file:reference.csv". The same cuts again change nothing but `active`.
    """
    connection.execute(update(cuts).where(cuts.c.model == model).values(active=False))
    statement = insert_for(connection, cuts).values(
        model=model,
        cuts_id=model_cuts.cuts_id,
        body=model_cuts.to_json().encode(),
        created_ms=now_ms,
        active=True,
        source=source,
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[cuts.c.model, cuts.c.cuts_id], set_={"active": True}
        )
    )
