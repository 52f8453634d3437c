"""The HTTP API `/v1`, acting: alerts, runs, rollouts, keys. Operators act, admins keep keys.

API and pages change operational state only; how a model is judged is its contract's, and `trimtab model
apply` changes that. Every act is audited under the key's name.
"""

from typing import Annotated, Literal

from litestar import Router, delete, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from trimtab.api.auth import Asked, allow
from trimtab.api.routes import Key
from trimtab.clock import now_ms
from trimtab.contracts.model import duration_ms
from trimtab.records import Alert, Role
from trimtab.store import agent, alerts, keys
from trimtab.store.engine import Store
from trimtab.store.keys import KeyRow

Note = Annotated[str, Meta(max_length=2_000)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Resolution(Struct, frozen=True):
    """What was done about an alert."""

    note: Note = ""


class Quiet(Struct, frozen=True):
    """How long, and why."""

    duration: Annotated[str, Meta(max_length=40)] = "2h"
    note: Note = ""


class Challenger(Struct, frozen=True):
    """An artifact trained outside, for a run that waits for one."""

    artifact_uri: Annotated[str, Meta(min_length=1, max_length=2_000)]
    artifact_sha256: Sha256


class Asking(Struct, frozen=True):
    """A request that the agent acts on at its next tick."""

    request: int
    record: str
    id: str
    action: str


class NewKey(Struct, frozen=True):
    """A key to be made."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    role: Literal["viewer", "operator", "admin"] = "viewer"
    scope: Annotated[str, Meta(max_length=200)] = "*"


class MadeKey(Struct, frozen=True):
    """A made key; the secret is shown this once."""

    id: str
    secret: str


def who(key: KeyRow) -> str:
    """How a key's holder appears in the audit trail."""
    return f"{key.name} (key {key.id})"


def _alert(request: Asked, store: Store, alert: str) -> Alert:
    found = alerts.get_alert(store, alert)
    allow(request.user, store, found.model)
    return found


def _note(store: Store, request: Asked, action: str, subject: str, text: str) -> None:
    with store.write() as connection:
        keys.audit(connection, who(request.user), action, subject, {"note": text}, now_ms())


@post("/alerts/{alert:str}/ack", sync_to_thread=True, status_code=200)
def acknowledge(state: State, request: Asked, alert: FromPath[str]) -> Alert:
    """Say that somebody looks at an alert."""
    _alert(request, state.store, alert)
    changed = alerts.acknowledge(state.store, alert, who(request.user), now_ms())
    _note(state.store, request, "alert.ack", f"alert:{alert}", "")
    return changed


@post("/alerts/{alert:str}/resolve", sync_to_thread=True, status_code=200)
def resolve(
    state: State, request: Asked, alert: FromPath[str], data: JSONBody[Resolution]
) -> Alert:
    """Resolve an alert by hand; while its condition lasts the next verdict opens a new one."""
    _alert(request, state.store, alert)
    changed = alerts.resolve(state.store, alert, who(request.user), data.note, now_ms())
    _note(state.store, request, "alert.resolve", f"alert:{alert}", data.note)
    return changed


@post("/alerts/{alert:str}/silence", sync_to_thread=True)
def silence(
    state: State, request: Asked, alert: FromPath[str], data: JSONBody[Quiet]
) -> alerts.Silence:
    """Call no webhook for an alert's condition for a while; the record is kept."""
    found = _alert(request, state.store, alert)
    now = now_ms()
    until = now + duration_ms(data.duration)
    entry = alerts.silence(
        state.store, found.model, found.condition, now, until, who(request.user), data.note
    )
    _note(state.store, request, "alert.silence", f"alert:{alert}", data.note)
    return entry


@post("/runs/{run:str}/{action:str}", sync_to_thread=True, status_code=202)
def ask_run(
    state: State,
    request: Asked,
    run: FromPath[str],
    action: FromPath[Literal["approve", "reject", "cancel"]],
) -> Asking:
    """Ask the agent to approve, reject or cancel a run."""
    allow(request.user, state.store, agent.get_run(state.store, run).model)
    number = agent.request(state.store, "run", run, action, who(request.user), now_ms())
    return Asking(number, "run", run, action)


@post("/runs/{run:str}/challenger", sync_to_thread=True, status_code=202)
def give_challenger(
    state: State, request: Asked, run: FromPath[str], data: JSONBody[Challenger]
) -> Asking:
    """Give a run with an external trainer the challenger it waits for."""
    allow(request.user, state.store, agent.get_run(state.store, run).model)
    detail = {"artifact_uri": data.artifact_uri, "artifact_sha256": data.artifact_sha256}
    by = who(request.user)
    number = agent.request(state.store, "run", run, "challenger", by, now_ms(), detail)
    return Asking(number, "run", run, "challenger")


@post("/rollouts/{rollout:str}/{action:str}", sync_to_thread=True, status_code=202)
def ask_rollout(
    state: State,
    request: Asked,
    rollout: FromPath[str],
    action: FromPath[Literal["approve", "reject", "pause", "resume", "abort"]],
) -> Asking:
    """Ask the agent to approve, reject, pause, resume or abort a rollout."""
    allow(request.user, state.store, agent.get_rollout(state.store, rollout).model)
    number = agent.request(state.store, "rollout", rollout, action, who(request.user), now_ms())
    return Asking(number, "rollout", rollout, action)


@post("/keys", sync_to_thread=True, role=Role.ADMIN, everything=True)
def make_key(state: State, request: Asked, data: JSONBody[NewKey]) -> MadeKey:
    """Make an API key."""
    role = Role[data.role.upper()]
    made = keys.create_key(state.store, data.name, role, data.scope, now_ms(), who(request.user))
    return MadeKey(*made)


@delete("/keys/{key:str}", sync_to_thread=True, role=Role.ADMIN, everything=True, status_code=200)
def revoke_key(state: State, request: Asked, key: FromPath[str]) -> Key:
    """Revoke a key at once."""
    row = keys.revoke_key(state.store, key, now_ms(), who(request.user))
    return Key(
        id=row.id,
        name=row.name,
        role=row.role.name.lower(),
        scope=row.scope,
        created_ms=row.created_ms,
        revoked_ms=row.revoked_ms,
    )


acting = Router(
    "/",
    opt={"role": Role.OPERATOR},
    route_handlers=[
        acknowledge,
        resolve,
        silence,
        ask_run,
        give_challenger,
        ask_rollout,
        make_key,
        revoke_key,
    ],
)
