"""Leases: one owner at a time, by a row. Each acquisition raises the fencing token.

A holder passes its token to every write that must not come from an owner of the past; such a write
calls `check` in its own transaction.
"""

import os
import socket
import uuid

from msgspec import Struct
from sqlalchemy import Connection, select, update

from trimtab.errors import ConflictError
from trimtab.store.dialect import insert_for
from trimtab.store.engine import Store
from trimtab.store.tables import leases


class Lease(Struct, frozen=True):
    """A lease that was held when it was acquired."""

    name: str
    owner: str
    token: int
    expires_ms: int


def owner_name() -> str:
    """Return a name for this process that no other process shares, not even after a restart."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def acquire(store: Store, name: str, owner: str, now_ms: int, hold_ms: int) -> Lease | None:
    """Take or renew the lease `name` until `now_ms + hold_ms`; None while another holds it.

    Renewing keeps the token; taking it over from another owner, or after it expired, raises it.
    """
    with store.write() as connection:
        insert = insert_for(connection, leases)
        connection.execute(
            insert.values(name=name, owner="", token=0, expires_ms=0).on_conflict_do_nothing()
        )
        row = connection.execute(
            select(leases).where(leases.c.name == name).with_for_update()
        ).one()
        mine = row.owner == owner and row.expires_ms > now_ms
        if not mine and row.expires_ms > now_ms:
            return None
        token = row.token if mine else row.token + 1
        expires_ms = now_ms + hold_ms
        connection.execute(
            update(leases)
            .where(leases.c.name == name)
            .values(owner=owner, token=token, expires_ms=expires_ms)
        )
    return Lease(name, owner, token, expires_ms)


def check(connection: Connection, lease: Lease) -> None:
    """Stop a transaction of a past owner: raises ConflictError unless the token is still current.

    Locks the lease's row, so that nobody takes it over before this transaction ends.
    """
    token = connection.scalar(
        select(leases.c.token).where(leases.c.name == lease.name).with_for_update()
    )
    if token != lease.token:
        raise ConflictError(
            f"The lease {lease.name!r} now belongs to another owner; this work is dropped and theirs counts."
        )


def release(store: Store, lease: Lease) -> None:
    """Give the lease back at a clean stop, so that the next owner need not wait."""
    with store.write() as connection:
        connection.execute(
            update(leases)
            .where(leases.c.name == lease.name, leases.c.token == lease.token)
            .values(expires_ms=0)
        )
