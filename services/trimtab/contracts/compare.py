"""Two revisions of a contract: what changes, which series go on, which restart.

A *series* is a sequence of window figures that may be compared with each other: the counts of one
feature, the predictions, the performance, the windows as a whole. It restarts when its numbers
before and after the change no longer mean the same.
"""

from typing import Any

import msgspec
from msgspec import Struct

from trimtab.contracts.model import Contract, Feature
from trimtab.errors import ContractError

_WINDOWS_SERIES = "all windows"
_BASELINE_SERIES = "baseline"
_PREDICTION_SERIES = "prediction"
_PERFORMANCE_SERIES = "performance"

_RESTARTS: dict[str, tuple[tuple[str, ...], str]] = {
    "task": ((_PREDICTION_SERIES, _PERFORMANCE_SERIES), "the model answers something else"),
    "prediction.classes": ((_PREDICTION_SERIES, _PERFORMANCE_SERIES), "the classes are others"),
    "prediction.positive": ((_PERFORMANCE_SERIES,), "precision and recall mean another class"),
    "prediction.score": ((_PREDICTION_SERIES,), "the score is another one"),
    "labels.sources": ((_PERFORMANCE_SERIES,), "other labels count"),
    "windows.length": ((_WINDOWS_SERIES, _BASELINE_SERIES), "figures cover another length of time"),
    "windows.pane": ((_WINDOWS_SERIES, _BASELINE_SERIES), "the stored intervals are others"),
    "windows.time_zone": ((_BASELINE_SERIES,), "seasons are cut elsewhere"),
    "windows.segments": (("segments",), "rows are split otherwise; all rows together go on"),
    "reference.from": ((_BASELINE_SERIES,), "traffic is compared with something else"),
    "reference.time_column": ((_BASELINE_SERIES,), "the file is cut into other windows"),
    "reference.rows": ((_BASELINE_SERIES,), "other rows make the cuts"),
}
"""Key of the contract: the series a change restarts, and why. Every other key restarts nothing."""

_FEATURE_RESTARTS = {
    "kind": "counted in another way",
    "values": "counted in other categories",
}


class Difference(Struct, frozen=True):
    """What applying a new revision does."""

    lines: tuple[str, ...]
    """For people: one change per line, then what restarts and what goes on."""
    changed: tuple[str, ...]
    """Dotted keys that differ."""
    restarts: tuple[str, ...]
    """Series that restart: feature names as `feature NAME`, and the series' own names."""
    goes_on: tuple[str, ...]
    features_added: tuple[str, ...] = ()
    features_removed: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the two revisions say the same."""
        return not self.changed


def compare(old: Contract | None, new: Contract) -> Difference:
    """Return the difference between two revisions of one model; `old` is None for a new model.

    Raises ContractError when the names differ: that is another model.
    """
    if old is None:
        return Difference(
            lines=(f"new model {new.name}: {len(new.features)} features, task {new.task}",),
            changed=("name",),
            restarts=(),
            goes_on=(),
            features_added=tuple(new.features),
        )
    if old.name != new.name:
        raise ContractError(f"{new.name!r} is another model than {old.name!r}. Keep the name.")
    lines: list[str] = []
    changed: list[str] = []
    restarts: dict[str, str] = {}
    before, after = _flat(old), _flat(new)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key):
            continue
        changed.append(key)
        lines.append(f"{key}: {_show(before.get(key))} → {_show(after.get(key))}")
        series, why = _RESTARTS.get(key, ((), ""))
        restarts.update(dict.fromkeys(series, why))
    added, removed = _features(old, new, lines, changed, restarts)
    if _WINDOWS_SERIES in restarts:
        series_going_on: list[str] = []
    else:
        series_going_on = [
            name
            for name in (
                *(f"feature {name}" for name in new.features if name in old.features),
                _PREDICTION_SERIES,
                _PERFORMANCE_SERIES,
                _BASELINE_SERIES,
            )
            if name not in restarts
        ]
    lines.extend(f"restarts: {series} ({why})" for series, why in restarts.items())
    if changed:
        lines.append(f"goes on: {_short(series_going_on)}")
    return Difference(
        lines=tuple(lines),
        changed=tuple(changed),
        restarts=tuple(restarts),
        goes_on=tuple(series_going_on),
        features_added=added,
        features_removed=removed,
    )


def _features(
    old: Contract,
    new: Contract,
    lines: list[str],
    changed: list[str],
    restarts: dict[str, str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Append what differs between the features; return the names added and removed."""
    added = tuple(name for name in new.features if name not in old.features)
    removed = tuple(name for name in old.features if name not in new.features)
    for name in added:
        changed.append(f"features.{name}")
        lines.append(f"features.{name}: added ({new.features[name].kind})")
        restarts[f"feature {name}"] = "new; it starts with its own cuts"
    for name in removed:
        changed.append(f"features.{name}")
        lines.append(f"features.{name}: removed; its past windows stay")
    kept = [name for name in new.features if name in old.features]
    for name in kept:
        for key in Feature.__struct_fields__:
            was, is_now = getattr(old.features[name], key), getattr(new.features[name], key)
            if was == is_now:
                continue
            changed.append(f"features.{name}.{key}")
            lines.append(f"features.{name}.{key}: {_show(was)} → {_show(is_now)}")
            if key in _FEATURE_RESTARTS:
                restarts[f"feature {name}"] = _FEATURE_RESTARTS[key]
    if kept != [name for name in old.features if name in new.features]:
        changed.append("features")
        lines.append("features: another order (it names the columns of unnamed tensors)")
    return added, removed


def _flat(contract: Contract) -> dict[str, Any]:
    """Every key but the features, dotted, with its value."""
    flat: dict[str, Any] = {}
    for field in msgspec.structs.fields(contract):
        value = getattr(contract, field.name)
        if field.name == "features":
            continue
        if isinstance(value, Struct):
            for inner in msgspec.structs.fields(value):
                flat[f"{field.encode_name}.{inner.encode_name}"] = getattr(value, inner.name)
        else:
            flat[field.encode_name] = value
    return flat


def _show(value: object) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return "[" + _short([_show(item) for item in value]) + "]"
    return str(value) if not isinstance(value, str) else f'"{value}"'


def _short(names: list[str]) -> str:
    if not names:
        return "nothing"
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
