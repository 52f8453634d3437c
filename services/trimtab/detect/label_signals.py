"""What labelled rows say of a change: of the labels' shares, of their look, of the meaning of the inputs.

Reference rows (before the onset) are compared with window rows (since the onset). All tests are two-sample:
a short reference makes them weaker, not wrong.

Notation
    n, d     rows and features; bins (n, d) are places in a count vector of the reference's cuts
    h        contrasts of the binned features and of the score, standardised over the reference (`orthonormal`)
    w        0 for reference rows, 1 for window rows
    B(x)     1, contrasts of the score, location and spread of each number, indicators of categories
    S6       chi-square of the classes' counts
    S7       per class, z of the mean contrasts between reference and window: P(x | y)
    S8       logit P(y = k | y in {k, r}, x) = B(x) b + w a + w h(x) c: score test (Rao 1948) of a = 0, then of
             each c = 0 with a fitted. r is the most common class, k each other one.
Why S8 is so: if P(x | y) stands and only P(y) moves, the logit of any pair of classes moves by a constant, so
a alone is not 0 (Saerens, Latinne & Decaestecker 2002); if P(y | x) stands, nothing moves, whatever P(x) does.
The constant shows also where the concept moved evenly; then P(x | y) moved (S7), or, P(x) standing still, the
score of the labelled rows did not move with the labels (`score_of_labelled`).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from scipy.stats import chi2, norm

from trimtab.detect.diagnosis import Code, Sign, Signs
from trimtab.detect.orthonormal import Floats, category_contrasts, numeric_contrasts

Ints = npt.NDArray[np.int64]

ALPHA_PRIOR = 1e-3
ALPHA_INTERCEPT = 1e-3
ALPHA_SHAPE = 2e-3
"""Over the slope and all features."""
ALPHA_CONDITIONAL = 5e-3
"""Half of it for the location of the score over all classes, half over each class's score and features."""
ALPHA_DRIFT = 1e-3
ALPHA_QUALITY = 1e-3
LEAST_EFFECT = 0.05
"""Means of contrasts that moved by less, in standard deviations, have not moved."""
LEAST_PRIOR_SHIFT = 0.02
"""Total variation between the classes' shares."""
LEAST_QUALITY_DROP = 0.02
PIPELINE_Z = 6.0
LEAST_PIPELINE_CHANGE = 0.1
"""Labels come otherwise when the share that came in time changed by this much, and significantly."""
LEAST_ROWS = 100
"""Labelled rows on each side below which nothing is measured."""
LEAST_OF_CLASS = 30
"""Rows of a class on each side below which it has no S7 and no S8."""
MOST_ROWS = 20_000
"""Rows per side that are read; of more, every so-manieth."""
MOST_CLASSES = 10
MOST_FEATURES = 200
MOST_OF_CATEGORY = 8
SMOOTH_OF_SCORE = 3
SMOOTH_OF_FEATURE = 2
_STEPS = 25
_RIDGE = 1e-6


class Source(Struct, frozen=True):
    """One feature or the score, as binned."""

    name: str
    bins: int
    """Ordinary bins; a place beyond them is a missing or unusable value."""
    category: bool = False
    categories: tuple[str, ...] = ()


class LabelledRows(Struct, frozen=True, kw_only=True):
    """Labelled rows of one side, n each."""

    bins: Ints
    """Bins of the features, shape (n, d)."""
    score: Ints
    """Bin of the score or of the predicted class, shape (n,)."""
    label: Ints
    """Class, 0 .. classes - 1, shape (n,)."""
    right: npt.NDArray[np.bool_] | None = None
    """Whether the answer was right, shape (n,); None where it is not known."""

    def __len__(self) -> int:
        return int(self.label.size)

    def thinned(self, most: int) -> "LabelledRows":
        """Return at most so many rows, evenly spaced in their order."""
        if len(self) <= most:
            return self
        take = np.linspace(0, len(self) - 1, most).astype(np.int64)
        return LabelledRows(
            bins=self.bins[take],
            score=self.score[take],
            label=self.label[take],
            right=None if self.right is None else self.right[take],
        )


class LabelSignals(Struct, frozen=True, kw_only=True):
    """S6, S7 and S8 and what else labelled rows tell; each empty where it is quiet."""

    rows: int
    """Labelled rows since the onset."""
    reference_rows: int
    label_prior: Signs
    class_conditional: Signs
    calibration: Signs
    calibration_shape: Signs
    features: Signs
    """S3 of the labelled rows."""
    score: Signs
    """S4 of the labelled rows."""
    quality: Signs | None
    """None where it is not known which answers were right."""
    label_pipeline: Signs | None = None
    """See `label_pipeline`."""


def label_signals(
    reference: LabelledRows,
    window: LabelledRows,
    features: Sequence[Source],
    score: Source,
    classes: Sequence[str],
    onset_ms: int | None = None,
) -> LabelSignals | None:
    """Compare labelled rows since the onset with those before; None where a side has too few.

    Raises ValueError where shapes do not fit, or there are more than 200 features.
    """
    _check(reference, features)
    _check(window, features)
    if min(len(reference), len(window)) < LEAST_ROWS:
        return None
    old, new = reference.thinned(MOST_ROWS), window.thinned(MOST_ROWS)
    table = _Table.of(old, new, features, score)
    moved = _Moved(onset_ms)
    prior = moved.prior(old.label, new.label, classes)
    conditional = moved.conditional(table, old.label, new.label, classes)
    calibration, shape = moved.calibration(table, old.label, new.label, classes)
    drift, answers = moved.drift(table)
    return LabelSignals(
        rows=len(window),
        reference_rows=len(reference),
        label_prior=prior,
        class_conditional=conditional,
        calibration=calibration,
        calibration_shape=shape,
        features=drift,
        score=answers,
        quality=moved.quality(old.right, new.right),
    )


class Coming(Struct, frozen=True):
    """How labels came to rows of one side, labelled or not, n each."""

    delay_ms: Floats
    """From the row to its label, shape (n,); NaN while there is none."""
    age_ms: Floats
    """From the row to the moment of looking, shape (n,)."""

    def share_within(self, limit_ms: float) -> tuple[int, int]:
        """Return (rows labelled within the limit, rows old enough to be)."""
        old_enough = self.age_ms >= limit_ms
        return int((self.delay_ms[old_enough] <= limit_ms).sum()), int(old_enough.sum())


def label_pipeline(reference: Coming, window: Coming, onset_ms: int | None = None) -> Signs | None:
    """Say whether labels come another way than they did; None where too few rows are old enough.

    Compared is the share of rows that is labelled within the reference's median delay, and within the delay
    of 95 % of its labels; only rows that are older than that count.
    """
    delays = reference.delay_ms[~np.isnan(reference.delay_ms)]
    if delays.size < LEAST_ROWS:
        return None
    measured, signs = False, []
    for level, words in ((0.5, "the usual median delay"), (0.95, "the usual longest delay")):
        limit_ms = float(np.quantile(delays, level, method="inverted_cdf"))
        (k, n), (j, m) = reference.share_within(limit_ms), window.share_within(limit_ms)
        if min(n, m) < LEAST_ROWS:
            continue
        measured = True
        p = (k + j) / (n + m)
        z = (j / m - k / n) / max(math.sqrt(p * (1 - p) * (1 / n + 1 / m)), 1e-9)
        if abs(z) > PIPELINE_Z and abs(j / m - k / n) > LEAST_PIPELINE_CHANGE:
            text = (
                f"{j / m:.0%} of rows are labelled within {words}, {k / n:.0%} were (z = {z:.1f})."
            )
            signs.append(
                Sign(
                    code=Code.LABEL_PIPELINE,
                    subject="labels",
                    text=text,
                    value=round(j / m, 4),
                    limit=round(k / n, 4),
                    onset_ms=onset_ms,
                )
            )
    return tuple(signs) if measured else None


def _check(rows: LabelledRows, features: Sequence[Source]) -> None:
    n = len(rows)
    if rows.bins.shape != (n, len(features)) or rows.score.shape != (n,):
        raise ValueError(
            f"{n} labels, bins of shape {rows.bins.shape} for {len(features)} features, scores of shape "
            f"{rows.score.shape}: give one row each."
        )
    if len(features) > MOST_FEATURES:
        raise ValueError(f"{len(features)} features; at most {MOST_FEATURES} are compared.")


class _Table(Struct, frozen=True):
    """Contrasts per row: one block of columns for the score, one per feature; first old rows, then new."""

    blocks: tuple[tuple[str, Floats], ...]
    """(name, values of shape (old + new, columns)); the score's is first."""
    old: int

    @classmethod
    def of(
        cls, old: LabelledRows, new: LabelledRows, features: Sequence[Source], score: Source
    ) -> "_Table":
        """Build them from the reference's bin counts."""
        blocks = [(score.name, _block(score, old.score, new.score, SMOOTH_OF_SCORE))]
        for at, source in enumerate(features):
            values = _block(source, old.bins[:, at], new.bins[:, at], SMOOTH_OF_FEATURE)
            blocks.append((source.name, values))
        return cls(tuple((name, block) for name, block in blocks if block.shape[1]), len(old))

    @property
    def new(self) -> int:
        """How many rows are of the window."""
        return (self.blocks[0][1].shape[0] if self.blocks else 0) - self.old


def _block(source: Source, old: Ints, new: Ints, smooth: int) -> Floats:
    """Contrasts of one source per row, shape (old + new, columns); 0 for a missing value, told apart."""
    counts = np.bincount(old[old < source.bins], minlength=source.bins)[: source.bins]
    if source.category:
        names = source.categories or tuple(str(b) for b in range(source.bins))
        matrix = category_contrasts(counts.astype(np.float64), names)[0]
        # The indicators of all categories sum to a constant: the most common one is left out.
        order = np.argsort(-np.abs(matrix).max(0)) if matrix.shape[1] else np.zeros(0, np.int64)
        matrix = matrix[:, np.sort(order[: MOST_OF_CATEGORY + 1])][:, :MOST_OF_CATEGORY]
    else:
        matrix = numeric_contrasts(counts.astype(np.float64))[0][:, :smooth]
        matrix = matrix[:, : min(smooth, max(int(np.count_nonzero(counts)) - 1, 0))]
    place = np.concatenate([old, new])
    lost = place >= source.bins
    values = matrix[np.where(lost, 0, place)]
    values[lost] = 0
    share = float(lost[: old.size].mean())
    if 0 < share < 1:
        values = np.column_stack([values, (lost - share) / math.sqrt(share * (1 - share))])
    return np.asarray(values, dtype=np.float64)


class _Moved(Struct, frozen=True):
    """The tests; each gives the signs that fire."""

    onset_ms: int | None

    def _sign(self, code: Code, subject: str, text: str, value: float, limit: float) -> Sign:
        return Sign(
            code=code,
            subject=subject,
            text=text,
            value=round(value, 4),
            limit=round(limit, 4),
            onset_ms=self.onset_ms,
        )

    def prior(self, old: Ints, new: Ints, classes: Sequence[str]) -> Signs:
        """S6."""
        size = max(len(classes), int(old.max()) + 1, int(new.max()) + 1)
        counts = np.stack([np.bincount(side, minlength=size) for side in (old, new)])
        counts = counts[:, counts.sum(0) > 0].astype(np.float64)
        named = np.flatnonzero(np.bincount(np.concatenate([old, new]), minlength=size))
        expected = counts.sum(0) * counts.sum(1, keepdims=True) / counts.sum()
        statistic = float(((counts - expected) ** 2 / expected).sum())
        p = float(chi2.sf(statistic, max(counts.shape[1] - 1, 1)))
        shares = counts / counts.sum(1, keepdims=True)
        change = shares[1] - shares[0]
        if p >= ALPHA_PRIOR or np.abs(change).sum() / 2 < LEAST_PRIOR_SHIFT:
            return ()
        most = int(np.abs(change).argmax())
        name = _class_name(classes, int(named[most]))
        text = (
            f"{name!r} is {shares[1][most]:.1%} of the labels, it was {shares[0][most]:.1%} "
            f"(p = {p:.0e})."
        )
        return (self._sign(Code.LABEL_PRIOR, f"share of {name!r}", text, p, ALPHA_PRIOR),)

    def conditional(self, table: _Table, old: Ints, new: Ints, classes: Sequence[str]) -> Signs:
        """S7: the strongest contrast of each feature, over the classes."""
        enough = _common_classes(old, new)
        if not enough or not table.blocks:
            return ()
        columns = sum(block.shape[1] for _, block in table.blocks)
        limit = _bound(ALPHA_CONDITIONAL / 2, columns * len(enough))
        signs = []
        name, block = table.blocks[0]
        z, effect = _within_classes(block[: table.old, 0], block[table.old :, 0], old, new, enough)
        of_score = _bound(ALPHA_CONDITIONAL / 2, 1)
        if abs(z) > of_score and abs(effect) > LEAST_EFFECT:
            text = f"{name} moved by {effect:+.2f} sd within the classes (z = {z:.1f})."
            signs.append(self._sign(Code.CLASS_CONDITIONAL, name, text, z, of_score))
        for name, block in table.blocks:
            z, effect, which = max(
                (
                    (*_strongest(block[: table.old][old == k], block[table.old :][new == k]), k)
                    for k in enough
                ),
                key=lambda found: abs(found[0]),
            )
            if abs(z) > limit and abs(effect) > LEAST_EFFECT:
                text = f"{name} of {_class_name(classes, which)!r} rows moved by {effect:+.2f} sd (z = {z:.1f})."
                signs.append(self._sign(Code.CLASS_CONDITIONAL, name, text, z, limit))
        return tuple(signs)

    def calibration(
        self, table: _Table, old: Ints, new: Ints, classes: Sequence[str]
    ) -> tuple[Signs, Signs]:
        """S8: (intercept, slope and features), over pairs of classes."""
        common = _common_classes(old, new)
        if len(common) < 2 or not table.blocks:
            return (), ()
        base = np.column_stack([np.ones(table.old + table.new), *(b for _, b in table.blocks)])
        label = np.concatenate([old, new])
        late = np.arange(label.size) >= table.old
        owner = np.concatenate(
            [np.full(block.shape[1], at) for at, (_, block) in enumerate(table.blocks)]
        )
        first, others = common[0], common[1:]
        evenly = _bound(ALPHA_INTERCEPT, len(others))
        unevenly = _bound(ALPHA_SHAPE, len(others) * owner.size)
        intercept: list[Sign] = []
        shape: dict[str, Sign] = {}
        for k in others:
            rows = (label == k) | (label == first)
            z, c = _score_tests(base[rows], late[rows], (label[rows] == k).astype(np.float64))
            name = _class_name(classes, k)
            if abs(z) > evenly:
                more = "more" if z > 0 else "less"
                text = (
                    f"{name!r} comes {more} often than the same inputs meant before (z = {z:.1f})."
                )
                intercept.append(self._sign(Code.CALIBRATION, f"{name!r}", text, z, evenly))
            for at, one in zip(owner, c.tolist(), strict=True):
                subject = table.blocks[at][0]
                known = shape.get(subject)
                if abs(one) > max(unevenly, abs(known.value or 0.0) if known else 0.0):
                    text = f"What {subject} means for {name!r} changed (z = {one:.1f})."
                    shape[subject] = self._sign(Code.CALIBRATION, subject, text, one, unevenly)
        return tuple(intercept), tuple(shape.values())

    def drift(self, table: _Table) -> tuple[Signs, Signs]:
        """S3 and S4 of the labelled rows."""
        columns = sum(block.shape[1] for _, block in table.blocks[1:])
        features: list[Sign] = []
        answers: list[Sign] = []
        for at, (name, block) in enumerate(table.blocks):
            limit = _bound(ALPHA_DRIFT, max(columns if at else block.shape[1], 1))
            z, effect = _strongest(block[: table.old], block[table.old :])
            if abs(z) <= limit or abs(effect) <= LEAST_EFFECT:
                continue
            code = Code.FEATURE_DRIFT if at else Code.SCORE_DRIFT
            text = f"{name} of labelled rows moved by {effect:+.2f} sd (z = {z:.1f})."
            (features if at else answers).append(self._sign(code, name, text, z, limit))
        return tuple(features), tuple(answers)

    def quality(
        self, old: npt.NDArray[np.bool_] | None, new: npt.NDArray[np.bool_] | None
    ) -> Signs | None:
        """A drop of the share of right answers."""
        if old is None or new is None:
            return None
        before, now = float(old.mean()), float(new.mean())
        p = float(np.concatenate([old, new]).mean())
        spread = math.sqrt(p * (1 - p) * (1 / old.size + 1 / new.size))
        limit = float(norm.isf(ALPHA_QUALITY))
        z = (before - now) / spread if spread else 0.0
        if z <= limit or before - now <= LEAST_QUALITY_DROP:
            return ()
        text = f"{now:.1%} of the answers are right, {before:.1%} were (z = {z:.1f})."
        return (self._sign(Code.QUALITY_DROP, "accuracy", text, z, limit),)


def _class_name(classes: Sequence[str], k: int) -> str:
    return classes[k] if k < len(classes) else str(k)


def _bound(alpha: float, tests: int) -> float:
    """|z| that one of so many tests exceeds with probability at most alpha (Bonferroni)."""
    return float(norm.isf(alpha / 2 / max(tests, 1)))


def _common_classes(old: Ints, new: Ints) -> list[int]:
    """Classes with enough rows on both sides, most common first, at most `MOST_CLASSES`."""
    size = int(max(old.max(initial=0), new.max(initial=0))) + 1
    counts = np.stack([np.bincount(side, minlength=size) for side in (old, new)])
    enough = np.flatnonzero(counts.min(0) >= LEAST_OF_CLASS)
    total = counts.sum(0)
    return sorted(enough.tolist(), key=lambda k: (-total[k], k))[:MOST_CLASSES]


def _strongest(a: Floats, b: Floats) -> tuple[float, float]:
    """(z, difference) of the column whose means differ most, b - a, by Welch's statistic."""
    effect = b.mean(0) - a.mean(0)
    spread = np.sqrt(a.var(0) / a.shape[0] + b.var(0) / b.shape[0])
    z = effect / np.maximum(spread, 1e-9)
    at = int(np.abs(z).argmax())
    return float(z[at]), float(effect[at])


def _within_classes(
    a: Floats, b: Floats, old: Ints, new: Ints, classes: Sequence[int]
) -> tuple[float, float]:
    """(z, difference) of the mean, b - a, within the classes, each weighed by its rows in b."""
    share = np.array([np.count_nonzero(new == k) for k in classes], dtype=np.float64)
    share /= share.sum()
    effect = variance = 0.0
    for k, weight in zip(classes, share.tolist(), strict=True):
        before, after = a[old == k], b[new == k]
        effect += weight * float(after.mean() - before.mean())
        variance += weight**2 * float(before.var() / before.size + after.var() / after.size)
    return effect / math.sqrt(max(variance, 1e-18)), effect


def _score_tests(base: Floats, late: npt.NDArray[np.bool_], y: Floats) -> tuple[float, Floats]:
    """Score tests for y: (z of w given the base, z of w times each column of the base given base and w).

    `base` has a constant first column. Shape of the second: (columns - 1,).
    """
    w = late.astype(np.float64)[:, None]
    intercept = _score_z(base, w, y)
    return float(intercept[0]), _score_z(np.column_stack([base, w]), w * base[:, 1:], y)


def _score_z(x: Floats, z: Floats, y: Floats) -> Floats:
    """Rao's score statistic of each column of z in a logistic regression of y on x."""
    beta = _fit_logistic(x, y)
    p = _expit(x @ beta)
    weight = p * (1 - p)
    xw = x * weight[:, None]
    information = xw.T @ x + _RIDGE * x.shape[0] * np.eye(x.shape[1])
    cross = xw.T @ z
    left = (z * z * weight[:, None]).sum(0) - (cross * np.linalg.solve(information, cross)).sum(0)
    found: Floats = z.T @ (y - p) / np.sqrt(np.maximum(left, 1e-12))
    return np.where(left > 1e-6 * x.shape[0] * _RIDGE + 1e-9, found, 0.0)


def _fit_logistic(x: Floats, y: Floats) -> Floats:
    """Coefficients by Newton's steps, with a trace of ridge so that separable rows have an end."""
    ridge = _RIDGE * x.shape[0] * np.eye(x.shape[1])
    beta = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        p = _expit(x @ beta)
        gradient = x.T @ (y - p) - ridge @ beta
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(hessian, gradient)
        step *= min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
        beta = beta + step
        if float(np.abs(step).max()) < 1e-8:
            break
    return beta


def _expit(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))), dtype=np.float64)
