"""The user's rules: text such as `accuracy < 0.90 in 3 of 4` to a Rule, and back to its meaning.

Grammar (spaces are free between words):

    [warn] FIGURE[(FEATURE)] OP LIMIT [in M of N] [min_rows K]

FIGURE is one of FIGURES; OP is <, <=, > or >=; LIMIT is NUMBER, `reference`, `reference + NUMBER`,
`reference - NUMBER` or `NUMBER * reference`, where `reference` is the same figure of the active baseline
(`detect.reference`). The rule is met in a window when the comparison
holds, and raises the alarm when it is met in M of the last N windows (default 1 of 1). Windows with
fewer than K rows (default: the contract's `windows.min_rows`) do not count. FEATURE is a declared
feature, or `prediction`. A feature name that holds a parenthesis needs double quotes. A rule that
begins with `warn` never raises an alarm: its window is a warning, which the agent weighs and nobody
is called for.
"""

import difflib
import math
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

from msgspec import Struct

from trimtab.errors import ContractError

WINDOWS_MAX = 100
"""The largest N: a rule that looks further back belongs in a longer window."""
PREDICTION = "prediction"
"""The target of a rule on what the model answers, in the place of a feature."""


class Kind(StrEnum):
    """What a rule, a verdict or an alert is about."""

    DATA_QUALITY = "data_quality"
    INPUT = "input"
    PREDICTION = "prediction"
    PERFORMANCE = "performance"
    RESOURCES = "resources"
    VOLUME = "volume"


Op = Literal["<", "<=", ">", ">="]
Target = Literal["none", "number", "category", "any"]
"""Whether a figure takes a feature, and of which kind."""
Unit = Literal["share", "ratio", "ms", "percent", "bytes", "rows", "value"]


class FigureSpec(Struct, frozen=True):
    """One figure that rules may use."""

    kind: Kind
    target: Target
    unit: Unit
    meaning: str
    task: Literal["any", "classification", "binary", "regression"] = "any"


_Q, _I, _P, _R = Kind.DATA_QUALITY, Kind.INPUT, Kind.PERFORMANCE, Kind.RESOURCES
_CLASS: Literal["classification"] = "classification"
_BINARY: Literal["binary"] = "binary"
_REGRESSION: Literal["regression"] = "regression"

FIGURES: dict[str, FigureSpec] = {
    "accuracy": FigureSpec(_P, "none", "share", "share of labelled rows answered right", _CLASS),
    "precision": FigureSpec(_P, "none", "share", "precision (macro over several classes)", _CLASS),
    "recall": FigureSpec(_P, "none", "share", "recall (macro over several classes)", _CLASS),
    "f1": FigureSpec(_P, "none", "share", "F1 (macro over several classes)", _CLASS),
    "auc": FigureSpec(_P, "none", "share", "area under the ROC curve of the score", _BINARY),
    "brier": FigureSpec(_P, "none", "share", "mean squared error of the score (Brier)", _BINARY),
    "log_loss": FigureSpec(_P, "none", "value", "mean logarithmic loss of the score", _BINARY),
    "ece": FigureSpec(_P, "none", "share", "expected calibration error of the score", _CLASS),
    "mae": FigureSpec(_P, "none", "value", "mean absolute error", _REGRESSION),
    "rmse": FigureSpec(_P, "none", "value", "root of the mean squared error", _REGRESSION),
    "p50_latency_ms": FigureSpec(_R, "none", "ms", "median latency"),
    "p95_latency_ms": FigureSpec(_R, "none", "ms", "95th percentile of latency"),
    "p99_latency_ms": FigureSpec(_R, "none", "ms", "99th percentile of latency"),
    "error_rate": FigureSpec(_Q, "none", "share", "share of rows whose status is not ok"),
    "abnormal_request_rate": FigureSpec(
        _Q, "none", "share", "share of rows with an abnormal request"
    ),
    "abnormal_response_rate": FigureSpec(
        _Q, "none", "share", "share of rows with an abnormal response"
    ),
    "outlier_rate": FigureSpec(
        _I, "none", "share", "share of rows unlike the reference in several features at once"
    ),
    "missing_rate": FigureSpec(_Q, "any", "share", "share of rows without a value"),
    "unseen_rate": FigureSpec(_Q, "category", "share", "share of rows with an undeclared category"),
    "out_of_range_rate": FigureSpec(_Q, "number", "share", "share of rows outside min and max"),
    "ks": FigureSpec(_I, "number", "share", "binned Kolmogorov-Smirnov distance"),
    "ks_p": FigureSpec(_I, "number", "share", "p value of the binned Kolmogorov-Smirnov test"),
    "psi": FigureSpec(_I, "any", "ratio", "population stability index"),
    "chi2_p": FigureSpec(_I, "category", "share", "p value of the chi-square test"),
    "effect": FigureSpec(_I, "any", "ratio", "effect size of the difference from the baseline"),
    "max_psi": FigureSpec(_I, "none", "ratio", "the largest psi over all features"),
    "drifted_share": FigureSpec(_I, "none", "share", "share of features that have drifted"),
    "cpu_percent": FigureSpec(_R, "none", "percent", "mean processor use"),
    "memory_bytes": FigureSpec(_R, "none", "bytes", "largest memory use"),
    "disk_percent": FigureSpec(_R, "none", "percent", "largest disk use"),
    "rows": FigureSpec(Kind.VOLUME, "none", "rows", "rows in the window"),
}
"""The closed list of figures that rules may use."""


COMPARED = frozenset(("ks", "ks_p", "psi", "chi2_p", "effect", "max_psi", "drifted_share"))
"""Figures that compare with the reference already: the reference itself has none."""
FACTOR_MAX = 1_000_000.0
"""The largest factor of the reference: beyond it limits would overflow sooner than mean anything."""


class Rule(Struct, frozen=True):
    """A rule the user set. Met when `figure op limit`; an alarm when met in m of n windows.

    The limit is factor * reference + threshold, where `reference` is the figure's value in the baseline.
    """

    figure: str
    feature: str | None
    op: Op
    threshold: float
    m: int
    n: int
    min_rows: int | None
    """Windows with fewer rows do not count; None: the contract's `windows.min_rows`."""
    text: str
    """As the user wrote it."""
    kind: Kind
    warns: bool = False
    """Met in m of n windows it is a warning, never an alarm."""
    factor: float = 0.0
    """Times the reference; 0 where the limit is a number."""

    @property
    def relative(self) -> bool:
        """Whether the limit depends on the reference."""
        return self.factor != 0

    def limit(self, reference: float) -> float:
        """Return the limit under a reference; of a rule with a number it is that number, whatever is given."""
        return self.factor * reference + self.threshold if self.relative else self.threshold

    def met(self, value: float, limit: float) -> bool:
        """Whether the figure's value breaks this rule under a limit."""
        match self.op:
            case "<":
                return value < limit
            case "<=":
                return value <= limit
            case ">":
                return value > limit
            case ">=":
                return value >= limit


_RULE = re.compile(
    r"""
    \s*(?:(?P<warn>warn)\s+)?(?P<figure>[A-Za-z_][A-Za-z0-9_]*)
    \s*(?:\(\s*(?:"(?P<quoted>[^"]*)"|(?P<feature>[^()"]*?))\s*\))?
    \s*(?P<op><=|>=|<|>)
    \s*(?:(?P<factor>[^\s*]+?)\s*\*\s*reference
        |reference\s*(?:(?P<sign>[-+*/])\s*(?P<offset>\S+))?
        |(?P<threshold>[^\s]+))
    (?:\s+in\s+(?P<m>\d{1,9})\s+of\s+(?P<n>\d{1,9}))?
    (?:\s+min_rows\s+(?P<min_rows>\d{1,9}))?
    \s*
    """,
    re.VERBOSE,
)
_FORM = (
    'Write [warn] FIGURE[(FEATURE)] OP LIMIT [in M of N] [min_rows K], as "accuracy < 0.9 in 3 of 4". '
    "LIMIT is NUMBER, reference, reference + NUMBER, reference - NUMBER or NUMBER * reference."
)


def parse_rule(text: str) -> Rule:
    """Return the rule that `text` says. Raises ContractError with what was expected."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise ContractError(f"{text!r} is not a rule. {_FORM}")
    figure = match["figure"]
    spec = FIGURES.get(figure)
    if spec is None:
        raise ContractError(
            f"{figure!r} is no figure.{did_you_mean(figure, FIGURES)} "
            f"Figures: {', '.join(FIGURES)}."
        )
    feature = match["quoted"] if match["quoted"] is not None else match["feature"]
    _check_target(figure, spec, feature)
    m, n = int(match["m"] or 1), int(match["n"] or 1)
    if not 1 <= m <= n <= WINDOWS_MAX:
        raise ContractError(
            f"`in {m} of {n}` cannot be. Write 1 ≤ M ≤ N ≤ {WINDOWS_MAX}, as in 3 of 4."
        )
    factor, threshold = _limit(match, figure, spec, feature)
    return Rule(
        figure=figure,
        feature=feature or None,
        op=match["op"],  # type: ignore[arg-type]  # the pattern allows these four only
        threshold=threshold,
        m=m,
        n=n,
        min_rows=int(match["min_rows"]) if match["min_rows"] else None,
        text=" ".join(text.split()),
        kind=Kind.PREDICTION if feature == PREDICTION and spec.kind is Kind.INPUT else spec.kind,
        warns=match["warn"] is not None,
        factor=factor,
    )


def _check_target(figure: str, spec: FigureSpec, feature: str | None) -> None:
    if spec.target == "none" and feature is not None:
        raise ContractError(f"{figure} takes no feature. Write `{figure}` alone.")
    if spec.target != "none" and not feature:
        raise ContractError(f"{figure} needs a feature. Write `{figure}(FEATURE)`.")


def _limit(
    match: re.Match[str], figure: str, spec: FigureSpec, feature: str | None
) -> tuple[float, float]:
    """Return (factor of the reference, number) of a rule's right side. Raises ContractError."""
    if match["threshold"] is not None:
        return 0.0, _threshold(match["threshold"], figure, spec)
    if figure in COMPARED:
        named = f"{figure}({feature})" if feature else figure
        raise ContractError(
            f"{figure} compares with the reference already. Write a number, as `{named} {match['op']} 0.2`."
        )
    if match["factor"] is not None:
        factor = _number(match["factor"])
        if not 0 < factor <= FACTOR_MAX:
            raise ContractError(
                f"{match['factor']} times the reference is no limit. "
                f"Write a factor above 0, at most {FACTOR_MAX:.0f}."
            )
        return factor, 0.0
    if match["sign"] is None:
        return 1.0, 0.0
    if match["sign"] in "*/":
        raise ContractError(
            f"`reference {match['sign']} {match['offset']}` is not understood. "
            "Write the factor first, as `0.95 * reference`."
        )
    offset = _number(match["offset"])
    if offset < 0:
        raise ContractError(
            f"`reference {match['sign']} {match['offset']}` has two signs. Write `reference - 0.05` or "
            "`reference + 0.05`."
        )
    widest = {"share": 1.0, "percent": 100.0}.get(spec.unit, math.inf)
    if offset > widest:
        raise ContractError(
            f"{figure} lies between 0 and {widest:.0f}; {match['offset']} more or less never decides anything."
        )
    return 1.0, -offset if match["sign"] == "-" else offset


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ContractError(f"{text!r} is not a number. {_FORM}")
    return number


def _threshold(text: str, figure: str, spec: FigureSpec) -> float:
    threshold = _number(text)
    if spec.unit == "share" and not 0 <= threshold <= 1:
        raise ContractError(f"{figure} lies between 0 and 1; {text} never decides anything.")
    if spec.unit == "percent" and not 0 <= threshold <= 100:
        raise ContractError(f"{figure} lies between 0 and 100; {text} never decides anything.")
    return threshold


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return " Did you mean …?" for the closest of `words`, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
