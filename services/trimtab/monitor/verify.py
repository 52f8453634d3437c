"""`trimtab verify`: recompute a verdict from the stored states and compare bytes (design, rule 6).

The counts are read again; what the evidence itself records (rule memory, judged version, whether labels
were due) is taken from it. What retention or a later revision has replaced cannot be recomputed, and
the answer says which part that is.
"""

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from trimtab.detect.rules import PriorWindow
from trimtab.detect.verdict import WindowInputs, evaluate, verify
from trimtab.errors import NotFoundError
from trimtab.monitor.window_inputs import ModelReader
from trimtab.records import Reason, Verdict
from trimtab.store.engine import Store
from trimtab.store.models import contract_at
from trimtab.store.panes import WindowState
from trimtab.store.verdicts import verdict, verdict_history


class Verification(Struct, frozen=True, kw_only=True):
    """What recomputing a verdict gave."""

    verdict: int
    model: str
    window_start_ms: int
    confirmed: bool
    """Equal bytes."""
    said: str
    parts: list[str]
    """What differs, or has expired; empty when confirmed."""


def verify_verdict(store: Store, verdict_id: int) -> Verification:
    """Recompute a stored verdict. Raises NotFoundError when there is none."""
    stored = verdict(store, verdict_id).verdict
    parts = _differences(store, stored)
    said = (
        "Confirmed: the stored states give this verdict, byte for byte."
        if not parts
        else f"Not confirmed: {'; '.join(parts)}."
    )
    return Verification(
        verdict=verdict_id,
        model=stored.model,
        window_start_ms=stored.window_start_ms,
        confirmed=not parts,
        said=said,
        parts=parts,
    )


def _differences(store: Store, stored: Verdict) -> list[str]:
    newest = verdict_history(store, stored.model, stored.window_start_ms)[-1].verdict.revision
    if newest != stored.revision:
        replaced = f"revision {stored.revision} was replaced by revision {newest}"
        return [f"{replaced}, and the states are those of the newer one"]
    try:
        row = contract_at(store, stored.model, stored.evidence.contract_revision)
    except NotFoundError:
        return [f"contract revision {stored.evidence.contract_revision} is gone"]
    reader = ModelReader(store, row.contract, row.revision)
    with store.read() as connection:
        reader.begin(connection)
        inputs, read = _inputs(connection, reader, stored)
    expired = _expired(inputs, read, stored)
    return expired or verify(stored, evaluate(inputs))


def _inputs(
    connection: Connection, reader: ModelReader, stored: Verdict
) -> tuple[WindowInputs, WindowState]:
    found, read = reader.inputs(
        connection, stored.window_start_ms, stored.window_end_ms, None, _stalled(stored)
    )
    prior = stored.evidence.prior
    inputs = msgspec.structs.replace(
        found,
        revision=stored.revision,
        changed=stored.changed,
        code_version=stored.evidence.code_version,
        judged_version=prior.get("judged_version"),
        labels_due=bool(prior.get("labels_due")),
        prior=msgspec.convert(prior.get("windows", []), list[PriorWindow]),
    )
    return inputs, read


def _stalled(stored: Verdict) -> str | None:
    return next((f.detail for f in stored.findings if f.reason is Reason.STALLED), None)


def _expired(inputs: WindowInputs, read: WindowState, stored: Verdict) -> list[str]:
    """Name what the evidence rests on and the store no longer holds."""
    gone = []
    if read.coarser is not None:
        gone.append(
            f"its panes are part of a whole {read.coarser} by now, so that the window alone cannot be "
            "counted any more"
        )
    elif read.rows < stored.figures.get("rows", 0):
        gone.append("the panes' counts have expired")
    recorded = stored.evidence.prior.get("baseline")
    found = None
    if inputs.baseline is not None:
        baseline = inputs.baseline
        found = [baseline.id, baseline.windows, baseline.wanted]
    if recorded != found:
        gone.append(
            "the baseline was still being gathered then, and has grown since"
            if recorded and recorded[0] is None
            else "the baseline it was compared with is not the one found now"
        )
    return gone
