"""Links from what names a feature to the feature's page."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from trimtab.alerts.lifecycle import condition_of
from trimtab.detect.drift import is_detectors
from trimtab.records import Finding, Verdict
from trimtab.store.feature_view import OUTPUT

_DOTS = (".", "..")
"""Browsers take these as steps in the tree of paths, encoded too."""


def feature_path(model: str, name: str) -> str:
    """Return the address of a feature's page. A name that no path can hold goes into the query.

    With a `%` it would be decoded twice on its way.
    """
    base = f"/models/{quote(model, safe='')}/features"
    if not name or "/" in name or "%" in name or name in _DOTS:
        return f"{base}?name={quote(name, safe='')}"
    return f"{base}/{quote(name, safe='')}"


def column_in(figure: str, tree: Mapping[str, Any]) -> str | None:
    """Return the feature or output that a finding's figure names, such as `psi(income)`; None without one."""
    name = figure.partition("(")[2][:-1]
    if name in (tree.get("features") or {}):
        return name
    return f"{OUTPUT}{name}" if name in (tree.get("prediction") or {}) else None


def columns_in(
    finding: Finding, tree: Mapping[str, Any], columns: Mapping[str, str]
) -> Sequence[str]:
    """Return the features and outputs that a finding is about; `columns` are those of the detector's sources."""
    if not is_detectors(finding):
        found = column_in(finding.figure, tree)
        return [] if found is None else [found]
    if not finding.detail:
        return []
    detector = tree.get("detector") or {}
    kind = str(finding.kind)
    sources = [one["source"] for one in detector.get("moved") or () if one.get("kind") == kind]
    sources += [
        name for name, one in (detector.get("open") or {}).items() if one.get("kind") == kind
    ]
    return list(dict.fromkeys(columns[source] for source in sources if source in columns))


def columns_by_condition(
    verdict: Verdict | None, columns: Mapping[str, str]
) -> dict[str, Sequence[str]]:
    """Return the features and outputs that each alert's condition is about, as the newest verdict tells."""
    if verdict is None:
        return {}
    return {
        condition_of(finding): columns_in(finding, verdict.figures, columns)
        for finding in verdict.findings
        if finding.rule is not None or is_detectors(finding)
    }
