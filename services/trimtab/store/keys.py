"""API keys and the audit trail.

A key is `tt_ID_SECRET`: 256 bits from the system's generator, shown once. The table keeps its SHA-256;
a slow hash would add nothing, since the secret cannot be guessed. The id finds the row, and the digests
are compared in constant time.
"""

import hashlib
import hmac
import secrets
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Row, delete, insert, select, update

from trimtab.errors import NotFoundError, TrimtabError
from trimtab.records import Role
from trimtab.store.engine import Store
from trimtab.store.tables import api_keys, models, sessions
from trimtab.store.tables import audit as audit_table

EVERYTHING = "*"


class KeyRow(Struct, frozen=True, kw_only=True):
    """An API key as it is stored, without its secret."""

    id: str
    name: str
    role: Role
    scope: str
    """`*`, `team:NAME` or `model:NAME`."""
    created_ms: int
    revoked_ms: int | None = None

    def allows(self, model: str, team: str) -> bool:
        """Return whether the key's scope covers a model of a team."""
        return self.scope in {EVERYTHING, f"model:{model}", f"team:{team}"}


class AuditRow(Struct, frozen=True, kw_only=True):
    """Who did what to what."""

    id: int
    at_ms: int
    who: str
    action: str
    subject: str
    detail: dict[str, Any]


def create_key(
    store: Store, name: str, role: Role, scope: str, now_ms: int, by: str = "cli"
) -> tuple[str, str]:
    """Make a key; return its id and the secret, which is shown this once and kept nowhere.

    Raises TrimtabError when name or scope is not one.
    """
    if not name.strip() or len(name) > 200:
        raise TrimtabError(
            "A key needs a name of 1 to 200 characters, such as the person's or job's."
        )
    kind, _, subject = scope.partition(":")
    if scope != EVERYTHING and not (kind in {"team", "model"} and subject):
        raise TrimtabError(f"{scope!r} is no scope. Write *, team:NAME or model:NAME.")
    key_id = secrets.token_hex(6)
    secret = f"tt_{key_id}_{secrets.token_urlsafe(32)}"
    with store.write() as connection:
        connection.execute(
            insert(api_keys).values(
                id=key_id,
                name=name,
                secret_sha256=_digest(secret),
                role=int(role),
                scope=scope,
                created_ms=now_ms,
            )
        )
        detail = {"name": name, "role": role.name.lower(), "scope": scope}
        audit(connection, by, "key.create", f"key:{key_id}", detail, now_ms)
    return key_id, secret


def authenticate(store: Store, secret: str) -> KeyRow | None:
    """Return the key that `secret` belongs to; None when there is none or it was revoked."""
    parts = secret.split("_", 2)
    if len(secret) > 200 or len(parts) != 3 or parts[0] != "tt":
        return None
    with store.read() as connection:
        row = connection.execute(select(api_keys).where(api_keys.c.id == parts[1])).one_or_none()
    if row is None or row.revoked_ms is not None:
        return None
    same = hmac.compare_digest(row.secret_sha256, _digest(secret))
    return _key(row) if same else None


def list_keys(store: Store) -> list[KeyRow]:
    """Return every key, oldest first, revoked ones included."""
    with store.read() as connection:
        rows = connection.execute(select(api_keys).order_by(api_keys.c.created_ms, api_keys.c.id))
        return [_key(row) for row in rows]


def revoke_key(store: Store, key_id: str, now_ms: int, by: str = "cli") -> KeyRow:
    """Revoke a key at once; repeating it changes nothing. Raises NotFoundError."""
    with store.write() as connection:
        row = connection.execute(
            select(api_keys).where(api_keys.c.id == key_id).with_for_update()
        ).one_or_none()
        if row is None:
            raise NotFoundError(f"There is no key {key_id!r}. `trimtab key list` shows them.")
        if row.revoked_ms is None:
            connection.execute(
                update(api_keys).where(api_keys.c.id == key_id).values(revoked_ms=now_ms)
            )
            audit(connection, by, "key.revoke", f"key:{key_id}", {"name": row.name}, now_ms)
        return _key(connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one())


def open_session(store: Store, key_id: str, now_ms: int, expires_ms: int) -> str:
    """Begin a login in a browser; return the cookie's token. Expired logins are removed."""
    token = secrets.token_urlsafe(32)
    with store.write() as connection:
        connection.execute(delete(sessions).where(sessions.c.expires_ms <= now_ms))
        connection.execute(
            insert(sessions).values(
                token_sha256=_digest(token), key_id=key_id, expires_ms=expires_ms
            )
        )
    return token


def session_key(store: Store, token: str, now_ms: int) -> KeyRow | None:
    """Return the key behind a login; None when it ended or its key was revoked."""
    with store.read() as connection:
        row = connection.execute(
            select(api_keys)
            .join(sessions, sessions.c.key_id == api_keys.c.id)
            .where(
                sessions.c.token_sha256 == _digest(token),
                sessions.c.expires_ms > now_ms,
                api_keys.c.revoked_ms.is_(None),
            )
        ).one_or_none()
    return None if row is None else _key(row)


def close_session(store: Store, token: str) -> None:
    """End a login."""
    with store.write() as connection:
        connection.execute(delete(sessions).where(sessions.c.token_sha256 == _digest(token)))


def audit(
    connection: Connection,
    who: str,
    action: str,
    subject: str,
    detail: dict[str, Any],
    now_ms: int,
) -> None:
    """Record an act in the transaction that does it."""
    connection.execute(
        insert(audit_table).values(
            at_ms=now_ms,
            who=who[:200],
            action=action,
            subject=subject[:300],
            detail=msgspec.json.encode(detail).decode(),
        )
    )


def list_audit(store: Store, limit: int, before_id: int | None = None) -> list[AuditRow]:
    """Return the newest `limit` acts, those before `before_id` when it is given."""
    query = select(audit_table).order_by(audit_table.c.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(audit_table.c.id < before_id)
    with store.read() as connection:
        return [
            AuditRow(
                id=row.id,
                at_ms=row.at_ms,
                who=row.who,
                action=row.action,
                subject=row.subject,
                detail=msgspec.json.decode(row.detail),
            )
            for row in connection.execute(query)
        ]


def team_of(store: Store, model: str) -> str | None:
    """Return the team that owns a model; None when there is no such model."""
    with store.read() as connection:
        team: str | None = connection.scalar(select(models.c.team).where(models.c.name == model))
    return team


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: Row[Any]) -> KeyRow:
    return KeyRow(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        scope=row.scope,
        created_ms=row.created_ms,
        revoked_ms=row.revoked_ms,
    )
