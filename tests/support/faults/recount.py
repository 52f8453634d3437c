"""A recount of topics by plain loops, to compare with what the store holds.

It shares no code with `trimtab.monitor`, `trimtab.windows` or the counting of `trimtab.stats`: messages
are read with `json`, rows are classified and counted one at a time. It takes as data what is data: the
contracts, the cuts' edges, what their bins add to a row's score, and where the ledger says that records were lost. `PaneState.to_bytes` and
`PerformanceState.to_bytes` only write the finished integers, so that whole states are compared by bytes.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from trimtab.stats.aggregate import FeatureState, PaneState
from trimtab.stats.loghistogram import LogHistogram
from trimtab.stats.performance import PerformanceState

MESSAGE_BYTES_MAX = 1_048_576
TIME_MIN, TIME_MAX = -2_208_988_800_000, 7_258_118_400_000
CLAMP = 2**36
KINDS = {
    "io.trimtab.inference.v1": "inference",
    "io.trimtab.inference.batch.v1": "batch",
    "io.trimtab.label.v1": "label",
    "io.trimtab.resource.v1": "resource",
}
BARE = {"inference": "inference", "labels": "label", "resources": "resource"}
UNITS = {"inference": "row", "labels": "label", "resources": "resource"}
EDGES = [
    math.ldexp(round(2.0 ** (i / 16), 12), octave) for octave in range(-20, 40) for i in range(16)
] + [2.0**40]


@dataclass(frozen=True)
class Record:
    """A message as Kafka gave it."""

    offset: int
    timestamp: int
    headers: tuple
    value: bytes | None


@dataclass
class Log:
    """One partition of one creation of a topic, under the number that the ledger gave it."""

    partition_id: int
    role: str
    records: list[Record]


class Bad(Exception):  # noqa: N818 - it names a message, not an error of ours
    """A message that does not count; its text is the reason."""


# --- reading a message ----------------------------------------------------------------------------


def load(value):
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise Bad("bad_utf8" if value[:1] == b"{" else "bad_json") from None

    def no_number(_):
        raise Bad("not_finite")

    def finite(token):
        number = float(token)
        return number if math.isfinite(number) else no_number(token)

    try:
        body = json.loads(text, parse_constant=no_number, parse_float=finite)
    except RecursionError:
        raise Bad("too_deep") from None
    except ValueError:
        raise Bad("bad_json") from None
    if not isinstance(body, dict):
        raise Bad("wrong_type")
    if not _well_formed(body):
        raise Bad("bad_json")
    return body


def _well_formed(thing):
    """Whether no string in it holds half of a surrogate pair."""
    if isinstance(thing, str):
        return not any("\ud800" <= c <= "\udfff" for c in thing)
    if isinstance(thing, dict):
        return all(_well_formed(k) and _well_formed(v) for k, v in thing.items())
    return all(map(_well_formed, thing)) if isinstance(thing, list) else True


def read(value, headers, role):
    """Return (kind, body) of a message, or raise Bad."""
    if not value:
        raise Bad("empty")
    if len(value) > MESSAGE_BYTES_MAX:
        raise Bad("too_large")
    named = {name.lower(): text.decode() for name, text in headers if text is not None}
    content = named.get("content-type", "").lower().partition(";")[0].strip()
    structured = content == "application/cloudevents+json"
    if not structured:
        if content not in ("", "application/json") and not content.endswith("+json"):
            raise Bad("unsupported_content_type")
        if named.get("ce_specversion", "1.0") != "1.0":
            raise Bad("unsupported_spec_version")
        if "ce_type" in named and named["ce_type"] not in KINDS:
            raise Bad("unknown_event_type")
    body = load(value)
    if structured or ("ce_type" not in named and "specversion" in body and "data" in body):
        if body.get("type") not in KINDS:
            raise Bad("unknown_event_type")
        if body["specversion"] != "1.0":
            raise Bad("unsupported_spec_version")
        kind, body = KINDS[body["type"]], body["data"]
    elif "ce_type" in named:
        kind = KINDS[named["ce_type"]]
    else:
        kind = "batch" if role == "inference" and "rows" in body else BARE[role]
    CHECKS[kind](body)
    if _has_nul(body):
        raise Bad("nul_character")
    return kind, body


def _has_nul(thing):
    if isinstance(thing, str):
        return "\0" in thing
    if isinstance(thing, dict):
        return any(_has_nul(k) or _has_nul(v) for k, v in thing.items())
    return any(map(_has_nul, thing)) if isinstance(thing, list) else False


def _text(body, name, most):
    if name not in body:
        raise Bad("missing_field")
    if not isinstance(body[name], str):
        raise Bad("wrong_type")
    if not 1 <= len(body[name]) <= most:
        raise Bad("bad_value")


def _scalar(value):
    if isinstance(value, dict | list):
        raise Bad("wrong_type")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Bad("bad_value")


def _time(value):
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Bad("wrong_type")
    if isinstance(value, str):
        if not re.fullmatch(
            r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)?", value
        ):
            raise Bad("bad_time")
        if not re.search(r"([Zz]|[+-]\d\d:\d\d)$", value):
            raise Bad("naive_time")
    elif not TIME_MIN <= value <= TIME_MAX:
        raise Bad("bad_time")


def _number_or_none(value):
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise Bad("wrong_type")


def check_inference(body):
    for name, most in (("id", 256), ("model", 200), ("version", 200)):
        _text(body, name, most)
    if "time" not in body:
        raise Bad("missing_field")
    _time(body["time"])
    if not isinstance(body.get("features", {}), dict):
        raise Bad("wrong_type")
    for value in body.get("features", {}).values():
        _scalar(value)
    _scalar(body.get("prediction"))
    _number_or_none(body.get("latency_ms"))
    if body.get("status", "ok") not in ("ok", "error", "timeout", "rejected"):
        raise Bad("bad_value")


def check_batch(body):
    for name, most in (("id", 256), ("model", 200), ("version", 200)):
        _text(body, name, most)
    columns = [body[n] for n in ("ids", "prediction", "latency_ms", "status") if n in body]
    columns += body.get("features", {}).values()
    if any(len(column) != body["rows"] for column in columns):
        raise Bad("unequal_columns")


def check_label(body):
    _text(body, "inference_id", 256)
    _text(body, "model", 200)
    if "label" not in body or "time" not in body:
        raise Bad("missing_field")
    _scalar(body["label"])
    _time(body["time"])
    revision = body.get("revision", 0)
    if isinstance(revision, bool) or not isinstance(revision, int):
        raise Bad("wrong_type")
    if revision < 0:
        raise Bad("bad_value")


def check_resource(body):
    for name in ("instance", "model", "version"):
        _text(body, name, 200)
    _time(body["time"])


CHECKS = {
    "inference": check_inference,
    "batch": check_batch,
    "label": check_label,
    "resource": check_resource,
}


def time_ms(value):
    if isinstance(value, int):
        return value
    since = datetime.fromisoformat(value.upper()) - datetime.fromtimestamp(0, UTC)
    return since // timedelta(milliseconds=1)


def rows_of(kind, body):
    """Return the inferences of a message as dictionaries."""
    if kind == "inference":
        return [body]
    rows = []
    for i in range(body["rows"]):
        row = {"model": body["model"], "version": body["version"], "time": body["time"]}
        row["id"] = body["ids"][i] if body.get("ids") else f"{body['id']}#{i}"
        row["features"] = {name: column[i] for name, column in body.get("features", {}).items()}
        for name in ("prediction", "latency_ms", "status"):
            if body.get(name):
                row[name] = body[name][i]
        rows.append(row)
    return rows


# --- what values are ------------------------------------------------------------------------------


def category(value):
    """The category of a value: None when missing, False when it can be none."""
    if value is None:
        return None
    if isinstance(value, str):
        return value if len(value) <= 256 else False
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def answer(value, task):
    """What a label or prediction names, or None."""
    if task == "regression":
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if number else None
    key = category(value)
    return key if isinstance(key, str) else None


def rounded(x):
    """The nearest integer, clamped; half to even."""
    q = round(x)
    return max(-CLAMP, min(CLAMP, q)), abs(q) > CLAMP


# --- counting -------------------------------------------------------------------------------------


class Feature:
    """Counts of one column."""

    def __init__(self, cuts, low=None, high=None):
        self.cuts, self.low, self.high = cuts, low, high
        self.numeric = hasattr(cuts, "edges")
        self.counts = [0] * (
            len(cuts.edges if self.numeric else cuts.categories) + self.numeric + 4
        )
        self.sum_q = self.sum_q2 = self.below = self.above = self.clamped = 0
        self.least = self.greatest = None

    def add(self, value):
        missing, error, third, fourth = range(len(self.counts) - 4, len(self.counts))
        if not self.numeric:
            key = category(value)
            if key is None:
                place = missing
            elif key is False:
                place = error
            elif key in self.cuts.categories:
                place = self.cuts.categories.index(key)
            else:
                place = fourth if key in self.cuts.others else third
            self.counts[place] += 1
            return
        if value is None:
            self.counts[missing] += 1
            return
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.counts[error] += 1
            return
        x = float(value)
        self.counts[bisect_left(self.cuts.edges, x)] += 1
        q, clamped = rounded((x - self.cuts.origin) * 2.0**self.cuts.exponent)
        self.sum_q += q
        self.sum_q2 += q * q
        self.clamped += clamped
        self.least = x if self.least is None else min(self.least, x)
        self.greatest = x if self.greatest is None else max(self.greatest, x)
        self.below += self.low is not None and x < self.low
        self.above += self.high is not None and x > self.high

    def state(self):
        return FeatureState(
            self.cuts.cuts_id,
            tuple(self.counts),
            self.sum_q,
            self.sum_q2,
            None if self.least is None else self.least + 0.0,
            None if self.greatest is None else self.greatest + 0.0,
            self.below,
            self.above,
            self.clamped,
        )


class Window:
    """Everything counted about the rows of a window."""

    def __init__(self, contract, cuts):
        self.contract, self.cuts_id, self.rows = contract, cuts.cuts_id, 0
        self.statuses, self.rules, self.buckets = Counter(), Counter(), Counter()
        self.features = {
            n.name: Feature(n.cuts, contract.features[n.name].min, contract.features[n.name].max)
            for n in cuts.features
        }
        self.outputs = {n.name: Feature(n.cuts) for n in cuts.outputs}
        self.latency_sum = self.latency_invalid = 0
        self.latencies, self.scored = [], {}

    def add(self, row, broken, score):
        self.rows += 1
        self.statuses[row.get("status", "ok")] += 1
        self.rules.update(broken)
        for name, feature in self.features.items():
            feature.add(row.get("features", {}).get(name))
        if "prediction" in self.outputs:
            self.outputs["prediction"].add(row.get("prediction"))
        if "score" in self.outputs:
            self.outputs["score"].add(score)
        self.add_scored(row, score)
        latency = row.get("latency_ms")
        if latency is not None and latency < 0:
            self.latency_invalid += 1
        elif latency is not None:
            self.buckets[bisect_left(EDGES, latency)] += 1
            self.latency_sum += rounded(latency * 1024)[0]
            self.latencies.append(float(latency))

    def add_scored(self, row, score):
        said, place = self.outputs.get("prediction"), score_bin(score)
        if said is None or said.numeric or "score" not in self.outputs or place is None:
            return
        name = category(row.get("prediction"))
        if name in said.cuts.categories:
            self.scored.setdefault(name, [0] * 100)[place] += 1

    def to_bytes(self):
        latency = LogHistogram(
            len(self.latencies),
            self.latency_sum,
            0,
            self.latency_invalid,
            min(self.latencies, default=None),
            max(self.latencies, default=None),
            tuple(sorted(self.buckets.items())),
        )
        return PaneState(
            self.cuts_id,
            self.rows,
            dict(self.statuses),
            dict(self.rules),
            {name: f.state() for name, f in self.features.items()},
            {name: f.state() for name, f in self.outputs.items()},
            latency,
            {name: tuple(counts) for name, counts in sorted(self.scored.items())},
        ).to_bytes()


class Performance:
    """Joined labels of a window."""

    def __init__(self, task):
        self.task, self.labelled, self.predicted = task, 0, 0
        self.confusion, self.scored = Counter(), Counter()
        self.sum_e = self.sum_abs_e = self.sum_e2 = Fraction(0)
        self.unusable = 0

    def add(self, label, said, place):
        self.labelled += 1
        if self.task == "regression":
            if not math.isfinite(said - label):
                self.unusable += 1
                return
            e = Fraction(said - label)
            self.sum_e += e
            self.sum_abs_e += abs(e)
            self.sum_e2 += e * e
        else:
            self.confusion[label, said] += 1
            if place is not None:
                self.scored[label, said, place] += 1

    def to_bytes(self):
        return PerformanceState(
            dict(self.confusion),
            self.labelled - self.unusable,
            int(self.sum_e * 2**1074),
            int(self.sum_abs_e * 2**1074),
            int(self.sum_e2 * 2**2148),
            self.unusable,
            dict(self.scored),
        ).to_bytes()


def rules_broken(contract, cuts, row, score):
    """Return the names of the rules that a row breaks."""
    request, response = set(), set()
    by_name = {n.name: n.cuts for n in cuts.features}
    for name, feature in contract.features.items():
        value = row.get("features", {}).get(name)
        if value is None:
            if feature.required:
                request.add("missing_required")
        elif feature.kind == "number":
            if isinstance(value, bool | str):
                request.add("type_error")
            elif (feature.min is not None and value < feature.min) or (
                feature.max is not None and value > feature.max
            ):
                request.add("out_of_range")
        else:
            key, known = category(value), feature.values
            if not known:
                known = (*by_name[name].categories, *by_name[name].others)
            if key is False:
                request.add("type_error")
            elif key not in known:
                request.add("unseen_category")
    status = row.get("status", "ok")
    if status != "ok":
        response.add(status)
    elif row.get("prediction") is None:
        response.add("missing_prediction")
    classes = contract.prediction.classes
    said = row.get("prediction")
    closed = bool(classes) and contract.task != "regression" and said is not None
    if closed and category(said) not in classes:
        response.add("unknown_class")
    names = [f"request:{n}" for n in request] + [f"response:{n}" for n in response]
    names += ["request:outlier"] * is_outlier(contract, cuts, row)
    return names + ["request"] * bool(request) + ["response"] * bool(response)


def is_outlier(contract, cuts, row):
    """Whether what a row's values add up to, all but the most surprising one, is above the threshold."""
    if cuts.outliers is None or cuts.outliers.threshold is None:
        return False
    by_name = {n.name: n.cuts for n in cuts.features}
    found = [
        scored.surprise[place_of(scored, by_name[scored.name], row)]
        for scored in cuts.outliers.features
        if scored.name in contract.features
    ]
    return cuts.outliers.threshold < sum(found) - max([0, *found])


def place_of(scored, cuts, row):
    """Where a row's value is in a feature's table: bins, missing, error, two more, below and above all."""
    value, end = row.get("features", {}).get(scored.name), len(scored.surprise)
    if hasattr(cuts, "edges"):
        if value is None or isinstance(value, bool | str):
            return end - 6
        x = float(value)
        if x < scored.minimum:
            return end - 2
        return end - 1 if x > scored.maximum else bisect_left(cuts.edges, x)
    key = category(value)
    if key in cuts.categories:
        return cuts.categories.index(key)
    if key in cuts.others:
        return end - 3
    return end - (6 if key is None else 5 if key is False else 4)


def score_of(contract, row):
    """The score that is counted: of the likeliest class, or of the positive one."""
    scores = row.get("scores")
    if not scores:
        return None
    if contract.task == "multiclass":
        return max(scores.values())
    for name in (contract.prediction.score, contract.prediction.positive):
        if name and name in scores:
            return scores[name]
    return next(iter(scores.values())) if len(scores) == 1 else None


def score_bin(score):
    """The hundredth that a score lies in, None when it is no number between 0 and 1."""
    if score is None or not 0 <= score <= 1:
        return None
    return min(int(float(score) * 100 + 1e-9), 99)


def segments_of(contract, row):
    """The segments of a row beside the whole; categories of segments must be declared here."""
    names = [""]
    for column in contract.windows.segments:
        value, declared = row.get("features", {}).get(column), contract.features[column].values
        key = value if isinstance(value, str) else category(value)
        if key is None:
            names.append(f"{column}=missing")
        else:
            names.append(f"{column}={key if key in declared else 'other'}")
    return names


# --- the recount ----------------------------------------------------------------------------------


@dataclass
class Recount:
    """What the store should hold."""

    messages: Counter = field(default_factory=Counter)
    """By partition id."""
    classes: Counter = field(default_factory=Counter)
    """By (partition id, unit, class, reason)."""
    windows: dict = field(default_factory=dict)
    """By (model, window start, segment)."""
    performance: dict = field(default_factory=dict)
    """By (model, window start, segment, version)."""
    labels: Counter = field(default_factory=Counter)
    """By (partition id, "joined" | "duplicate" | "superseded" | "waiting")."""

    @property
    def rows(self):
        """Rows counted, over all partitions."""
        return sum(n for (_, u, c, _), n in self.classes.items() if (u, c) == ("row", "counted"))


def recount(logs, contract_at, cuts):
    """Count logs from their beginnings.

    `contract_at(partition_id, model, offset)` returns the contract in force, None when there is none;
    `cuts` are the cuts by model.
    """
    out = Recount()
    predictions, labels = defaultdict(list), defaultdict(list)
    for log in logs:
        past = Past()
        for record in log.records:
            out.messages[log.partition_id] += 1
            _one(out, log, record, contract_at, cuts, past, predictions, labels)
    _join(out, predictions, labels)
    return out


class Past:
    """What a partition has brought so far."""

    def __init__(self):
        self.newest, self.sealed = {}, {}
        """By model: the newest event time, and up to where panes have been sealed."""
        self.panes = defaultdict(set)
        """By (model, id): the panes that it was counted in, as (start, length)."""

    def knows(self, model, row_id, when, pane, seal):
        """Whether the id came in this pane, or in one of another length that holds the time and is open."""
        return any(
            known == pane
            or (known[1] != pane[1] and known[0] <= when < sum(known) and sum(known) > seal)
            for known in self.panes[model, row_id]
        )


def _one(out, log, record, contract_at, cuts, past, predictions, labels):
    pid = log.partition_id
    try:
        kind, body = read(record.value, record.headers, log.role)
    except Bad as reason:
        out.classes[pid, UNITS[log.role], "rejected", str(reason)] += 1
        return
    unit = {"inference": "row", "batch": "row", "label": "label", "resource": "resource"}[kind]
    contract = contract_at(pid, body["model"], record.offset)
    if contract is None:
        out.classes[pid, unit, "ignored", "unknown_model"] += body.get("rows", 1)
    elif unit == "row":
        for row in rows_of(kind, body):
            _row(out, pid, record, row, contract, cuts, past, predictions)
    elif unit == "label":
        _label(out, pid, body, contract, labels)
    elif time_ms(body["time"]) > record.timestamp + contract.windows.future_ms:
        out.classes[pid, "resource", "rejected", "future"] += 1
    else:
        out.classes[pid, "resource", "counted", ""] += 1


def _row(out, pid, record, row, contract, cuts, past, predictions):
    model, when, rules = contract.name, time_ms(row["time"]), contract.windows
    if when > record.timestamp + rules.future_ms:
        out.classes[pid, "row", "rejected", "future"] += 1
        return
    newest = past.newest[model] = max(past.newest.get(model, when), when)
    pane = when // rules.pane_ms * rules.pane_ms
    seal = newest - rules.out_of_order_ms - rules.lateness_ms
    sealed = past.sealed[model] = max(past.sealed.get(model, seal), seal)
    if pane + rules.pane_ms <= seal:
        out.classes[pid, "row", "too_late", ""] += 1
        return
    if past.knows(model, row["id"], when, (pane, rules.pane_ms), sealed):
        out.classes[pid, "row", "duplicate", ""] += 1
        return
    past.panes[model, row["id"]].add((pane, rules.pane_ms))
    out.classes[pid, "row", "counted", ""] += 1
    start = when // rules.length_ms * rules.length_ms
    segments = segments_of(contract, row)
    score = score_of(contract, row)
    broken = rules_broken(contract, cuts[model], row, score)
    for segment in segments:
        window = out.windows.get((model, start, segment))
        if window is None:
            window = out.windows[model, start, segment] = Window(contract, cuts[model])
        window.add(row, broken, score)
    said = answer(row.get("prediction"), contract.task)
    predictions[model, row["id"]].append(
        ((pane, pid), start, row["version"], segments, said, contract.task, score_bin(score))
    )


def _label(out, pid, body, contract, labels):
    if body.get("source", "unknown") not in contract.labels.sources:
        out.classes[pid, "label", "ignored", "source"] += 1
        return
    value, retracted = answer(body["label"], contract.task), body.get("retracted", False)
    if value is None and not retracted:
        out.classes[pid, "label", "rejected", "bad_label"] += 1
        return
    if value is None:
        value = 0.0 if contract.task == "regression" else ""
    rank = value if contract.task == "regression" else value.encode()
    labels[contract.name, body["inference_id"]].append(
        ((body.get("revision", 0), retracted, rank), pid, value)
    )


def _join(out, predictions, labels):
    for key, found in predictions.items():
        _, start, version, segments, said, task, place = min(found, key=lambda p: p[0])
        if said is None:
            continue
        best = max(labels.get(key, []), key=lambda e: e[0], default=None)
        for segment in segments:
            window = (key[0], start, segment, version)
            if window not in out.performance:
                out.performance[window] = Performance(task)
            out.performance[window].predicted += 1
            if best is not None and not best[0][1]:
                out.performance[window].add(best[2], said, place)
    for key, events in labels.items():
        rank = max(e[0] for e in events)
        # Of equal labels the one of the lowest partition stands, there the first.
        winner = min((e[1], i) for i, e in enumerate(events) if e[0] == rank)[1]
        for i, (said, pid, _) in enumerate(events):
            if said != rank:
                out.labels[pid, "superseded"] += 1
            elif i != winner:
                out.labels[pid, "duplicate"] += 1
            else:
                out.labels[pid, "joined" if key in predictions else "waiting"] += 1


# --- comparing ------------------------------------------------------------------------------------


def differences(store, expected: Recount, models) -> list[str]:
    """Return what the store holds differently, as text: ledgers, states by bytes, joined labels."""
    from trimtab.store.ledger import ledger

    entries = ledger(store)
    return [
        *_ledger_differences(entries, expected),
        *(text for model in models for text in _state_differences(store, expected, model)),
    ]


def _ledger_differences(entries, expected):
    found: dict[str, tuple[Any, Any]] = {}
    held: Counter = Counter()
    for entry in entries:
        pid, name = entry.partition_id, f"{entry.topic}[{entry.partition}]"
        mine = {k[1:]: n for k, n in expected.classes.items() if k[0] == pid and n}
        theirs = {k: n for k, n in entry.classes.items() if n}
        held.update({k: n for k, n in theirs.items() if k[1] == "held"})
        found[f"{name} messages"] = (expected.messages[pid], entry.messages)
        found[f"{name} classes"] = (mine, theirs)
        labels = entry.placed_labels | {"waiting": entry.waiting_labels}
        found[f"{name} labels"] = (
            {k: n for (p, k), n in expected.labels.items() if p == pid and n},
            {k: n for k, n in labels.items() if n},
        )
    return [f"{name}: expected {a}, stored {b}" for name, (a, b) in found.items() if a != b] + [
        f"rows are still held: {held}" for _ in range(bool(held))
    ]


def _state_differences(store, expected, model):
    from sqlalchemy import select

    from trimtab.store import tables as t
    from trimtab.store.panes import pane_times
    from trimtab.store.performance import window_performance
    from trimtab.store.window_state import window_state

    problems = []
    windows = {k[1:]: w for k, w in expected.windows.items() if k[0] == model.name}
    joins = {k[1:]: p for k, p in expected.performance.items() if k[0] == model.name}
    length = model.windows.length_ms
    starts = {pane // length * length for pane in pane_times(store, model.name)}
    with store.read() as connection:
        stored = set(
            connection.scalars(select(t.panes.c.segment).where(t.panes.c.model == model.name))
        )
        for segment in sorted(stored | {s for _, s in windows}):
            for start in sorted(starts | {s for s, _ in windows}):
                at = (connection, model.name, start, start + length, segment)
                name = f"{model.name} window {start} {segment!r}"
                state, mine = window_state(*at).state, windows.get((start, segment))
                theirs = None if state is None else state.to_bytes()
                if theirs != (mine.to_bytes() if mine else None):
                    problems.append(f"{name}: {_told(mine, state)}")
                found = window_performance(*at)
                versions = {v for s, g, v in joins if (s, g) == (start, segment)}
                for version in sorted(versions | found.keys()):
                    other, own = found.get(version), joins.get((start, segment, version))
                    a = (own.to_bytes(), own.labelled, own.predicted) if own else None
                    b = (
                        (other.state.to_bytes(), other.labelled_rows, other.predicted_rows)
                        if other
                        else None
                    )
                    if a != b and not (own is None and b and b[1:] == (0, 0)):
                        problems.append(f"{name} {version}: joined labels differ: {a} {b}")
    return problems


def _told(mine, state):
    if mine is None or state is None:
        return f"expected {'nothing' if mine is None else mine.rows}, stored {state and state.rows}"
    own = PaneState.from_bytes(mine.to_bytes())
    return "; ".join(
        f"{name}: expected {getattr(own, name)}, stored {getattr(state, name)}"
        for name in PaneState.__struct_fields__
        if getattr(own, name) != getattr(state, name)
    )
