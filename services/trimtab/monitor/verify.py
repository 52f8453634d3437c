"""`trimtab verify`: recompute a verdict from the stored states and compare bytes (design, rule 6).

The counts are read again; what the evidence itself records (rule memory, judged version, whether labels
were due, how columns went together in the sampled rows, which performance of the baseline it was compared with) is taken from it. What retention has let go, or a later revision has replaced, cannot be
recomputed, and the answer names it: nobody should take for a difference what is only no longer there.
"""

import msgspec
from msgspec import Struct
from sqlalchemy import Connection

from trimtab.detect.label_free import LabelFree
from trimtab.detect.reference import ReferenceFigure, is_performance
from trimtab.detect.rules import PriorWindow, rules_of
from trimtab.detect.verdict import (
    Carried,
    WindowInputs,
    evaluate,
    joint_of,
    reference_of,
    verify,
)
from trimtab.errors import NotFoundError
from trimtab.monitor.window_inputs import ModelReader
from trimtab.records import Reason, Verdict
from trimtab.store.baselines import has_baseline
from trimtab.store.engine import Store
from trimtab.store.joiners import labels_expired_to
from trimtab.store.models import contract_at, cuts_at
from trimtab.store.verdicts import verdict, verdict_history
from trimtab.store.window_state import WindowState


class Verification(Struct, frozen=True, kw_only=True):
    """What recomputing a verdict gave."""

    verdict: int
    model: str
    window_start_ms: int
    confirmed: bool
    """Equal bytes."""
    said: str
    parts: list[str]
    """What has expired or was replaced, else what differs; empty when confirmed."""
    expired: bool
    """Whether `parts` names what is no longer there, so that nothing could be compared."""


def verify_verdict(store: Store, verdict_id: int) -> Verification:
    """Recompute a stored verdict. Raises NotFoundError when there is none."""
    stored = verdict(store, verdict_id).verdict
    gone, differing = _compared(store, stored)
    if gone:
        said = f"It cannot be recomputed any more: {'; '.join(gone)}."
    elif differing:
        said = f"Not confirmed: the stored states give it otherwise in {', '.join(differing)}."
    else:
        said = "Confirmed: the stored states give this verdict, byte for byte."
    parts = gone or differing
    return Verification(
        verdict=verdict_id,
        model=stored.model,
        window_start_ms=stored.window_start_ms,
        confirmed=not parts,
        said=said,
        parts=parts,
        expired=bool(gone),
    )


def _compared(store: Store, stored: Verdict) -> tuple[list[str], list[str]]:
    """Return (what the verdict rests on and is no longer there, names of the parts that differ)."""
    newest = verdict_history(store, stored.model, stored.window_start_ms)[-1].verdict.revision
    if newest != stored.revision:
        replaced = f"revision {stored.revision} was replaced by revision {newest}"
        return [f"{replaced}, and the states are those of the newer one"], []
    try:
        row = contract_at(store, stored.model, stored.evidence.contract_revision)
    except NotFoundError:
        return [f"contract revision {stored.evidence.contract_revision} is gone"], []
    reader = ModelReader(store, row.contract, row.revision)
    with store.read() as connection:
        gone = _references_gone(connection, stored)
        if gone:
            return gone, []
        reader.begin(connection)
        inputs, read = _inputs(connection, reader, stored)
        gone = _counts_gone(inputs, read, stored)
        gone += _labels_gone(connection, inputs, stored)
    gone += _baseline_replaced(inputs, stored)
    gone += _detector_gone(inputs, stored)
    return (gone, []) if gone else ([], verify(stored, evaluate(inputs)))


def _inputs(
    connection: Connection, reader: ModelReader, stored: Verdict
) -> tuple[WindowInputs, WindowState]:
    found, read = reader.inputs(
        connection, stored.window_start_ms, stored.window_end_ms, None, _stalled(stored)
    )
    prior = stored.evidence.prior
    cuts_id = stored.evidence.cuts_id
    inputs = msgspec.structs.replace(
        found,
        # A window without rows names the cuts that were active then.
        cuts=None if cuts_id is None else cuts_at(connection, stored.model, cuts_id),
        revision=stored.revision,
        changed=stored.changed,
        code_version=stored.evidence.code_version,
        judged_version=prior.get("judged_version"),
        labels_due=bool(prior.get("labels_due")),
        joint=joint_of(prior),
        prior=msgspec.convert(prior.get("windows", []), list[PriorWindow]),
        label_free=msgspec.convert(prior.get("label_free"), LabelFree | None),
        reference=_reference(found, stored),
    )
    return inputs, read


def _reference(found: WindowInputs, stored: Verdict) -> dict[str, ReferenceFigure]:
    """Return what rules were compared with: performance as recorded, for labels come late; the rest as counted."""
    labelled = {rule.text for rule in rules_of(found.contract) if is_performance(rule)}
    recorded = reference_of(stored.evidence.prior)
    return {
        text: recorded.get(text, figure) if text in labelled else figure
        for text, figure in found.reference.items()
    }


def _stalled(stored: Verdict) -> str | None:
    return next((f.detail for f in stored.findings if f.reason is Reason.STALLED), None)


# --- what is no longer there ------------------------------------------------------------------------


def _references_gone(connection: Connection, stored: Verdict) -> list[str]:
    """Name cuts and baseline that the evidence refers to, where they are gone, and dropped figures."""
    gone, evidence = [], stored.evidence
    if "features" not in stored.figures:
        gone.append(
            "its own figures of features, prediction and resources have expired, so that there is nothing "
            "to compare with"
        )
    if evidence.cuts_id is not None and not cuts_at(connection, stored.model, evidence.cuts_id):
        gone.append(f"the cuts {evidence.cuts_id} that it was counted under are gone")
    baseline_id = evidence.baseline_id
    if baseline_id is not None and not has_baseline(connection, baseline_id):
        gone.append(f"the baseline {baseline_id} that it was compared with is gone")
    return gone


def _counts_gone(inputs: WindowInputs, read: WindowState, stored: Verdict) -> list[str]:
    """Name the window's counts that retention has taken, or that are read under other cuts by now."""
    gone = []
    before, cuts_id = stored.figures, stored.evidence.cuts_id
    if read.coarser is not None:
        gone.append(
            f"its panes are part of a whole {read.coarser} by now, so that the window alone cannot be "
            "counted any more"
        )
    elif read.rows < before["rows"]:
        gone.append("the panes' counts have expired")
    elif read.state is not None and read.cuts_id != cuts_id:
        gone.append(f"its rows are read under the cuts {read.cuts_id} by now, then {cuts_id}")
    gauges = inputs.resources.gauges
    if read.coarser is None and any(
        name not in gauges or gauges[name].count < gauge["samples"]
        for name, gauge in before["resources"].items()
    ):
        gone.append("the resources' gauges have expired")
    return gone


def _labels_gone(connection: Connection, inputs: WindowInputs, stored: Verdict) -> list[str]:
    """Say whether predictions or labels have expired that the verdict counted."""
    expired_to_ms = labels_expired_to(connection, stored.model)
    if expired_to_ms is None or expired_to_ms <= stored.window_start_ms:
        return []
    for version, before in stored.figures["performance"].items():
        found = inputs.performance.get(version)
        rows = (0, 0) if found is None else (found.labelled_rows, found.predicted_rows)
        if rows[0] < before["labelled_rows"] or rows[1] < before["predicted_rows"]:
            return ["its predictions and labels have expired, and with them its performance"]
    return []


def _detector_gone(inputs: WindowInputs, stored: Verdict) -> list[str]:
    """Say whether the detector's state before the window is not there, or is not what it was."""
    before = stored.evidence.prior.get("detector")
    if before is None or inputs.detector is None:
        return []
    if isinstance(inputs.detector, Carried):
        return ["the detector's state before it has expired"]
    if inputs.detector.before != before["before"]:
        return ["late rows of earlier windows have since replaced the detector's state before it"]
    return []


def _baseline_replaced(inputs: WindowInputs, stored: Verdict) -> list[str]:
    recorded = stored.evidence.prior.get("baseline")
    found = None
    if inputs.baseline is not None:
        baseline = inputs.baseline
        found = [baseline.id, baseline.windows, baseline.wanted]
    if recorded == found:
        return []
    if recorded and recorded[0] is None:
        return [
            "the baseline was still being gathered then, and its windows are not those kept now"
        ]
    return ["the baseline it was compared with is not the one found now"]
