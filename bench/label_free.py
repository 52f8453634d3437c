"""How far estimates without labels are from the truth: NannyML's synthetic car loans.

    python bench/label_free.py [--quick] [--json] [--data FOLDER]

The reference's scores and labels make the calibrator; of each 5,000 further rows the figures are estimated
from the scores alone and compared with those of their labels (AUC of the raw scores, not of their bins).
`*_mae` are mean absolute errors over all windows; `*_coverage_before` and `*_coverage_after` the share of
windows whose figure lies in the 95 % interval, before and after the drift planted at row 25,000, which moves
the inputs and P(label | score), too. `check_z_*` and `check_invalid_*` are what comparing labels of 25
windows of 1,000 rows with the calibrator says before and after. `shift_*` are of a drawn model instead: windows of 2,000 rows, references of 20,000, the inputs moved by 0.7
standard deviations. `even`: the score knows of every cause of the label. `uneven`: of another cause, which moves,
too, it does not know; `_coverage` is of the plain intervals, `_widened` of those widened by what thirds of that
cause, told as segments, showed in the reference; `_by_lot` by segments that have nothing to do with it, and
`_width` how many times as wide the widened ones are. `extrapolations_*` are shares of windows called so beside a
reference of 5,000 labels, by the rule in force and (`_own_bin`) by a bin's own labels: windows like the reference,
and moved by 1.5 standard deviations. `estimate_ms` is CPU time of a window's
tree, `fit_ms` of a calibrator, `check_ms` of that comparison. FOLDER holds
`nannyml_car_loan`; default `shared/data` beside the repository. Without it nothing is measured, and it says so.
"""

import csv
import gzip
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rig
from scipy.stats import rankdata

from trimtab.detect.label_free import MOST_UNSUPPORTED, LabelFree, binary_estimates, estimated
from trimtab.detect.label_gaps import Gaps, gaps_of
from trimtab.detect.label_residuals import LabelledWindow, residual_check
from trimtab.detect.score_calibration import LEAST_NEAR, LabelledScores, calibrator
from trimtab.stats.scorebins import BINS, score_bins

BESIDE = rig.ROOT.parent / "shared" / "data"
ROWS, STEP, QUICK_STEP = 5_000, 1_000, 5_000
SHIFTED, QUICK_SHIFTED = 2_000, 200
DRIFT_ROW, LABELLED_ROWS = 25_000, 1_000
FIGURES = ("accuracy", "precision", "recall", "f1", "auc")
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def columns(file: Path, *names: str) -> list[Floats]:
    """Read columns of numbers."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [np.array([float(row[name]) for row in rows]) for name in names]


def by_bin(scores: Floats, chosen: Flags) -> npt.NDArray[np.int64]:
    """Count the chosen rows by score bin."""
    return np.bincount(score_bins(scores[chosen]), minlength=BINS)


def counts(scores: Floats, hits: Flags) -> LabelledScores:
    """Labelled rows by score bin."""
    sides = (by_bin(scores, chosen).tolist() for chosen in (hits, ~hits))
    return LabelledScores(*map(tuple, sides))


def realised(scores: Floats, said: Flags, hits: Flags) -> dict[str, float]:
    """The figures of labels; AUC by ranks of the raw scores."""
    tp, positives, negatives = int((said & hits).sum()), int(hits.sum()), int((~hits).sum())
    ranks = float(rankdata(scores)[hits].sum())
    return {
        "accuracy": float((said == hits).mean()),
        "precision": tp / int(said.sum()),
        "recall": tp / positives,
        "f1": 2 * tp / (int(said.sum()) + positives),
        "auc": (ranks - positives * (positives + 1) / 2) / (positives * negatives),
    }


def measure(folder: Path, step: int) -> dict[str, float]:
    """Estimate windows that begin every `step` rows and compare them with their labels."""
    names = ("y_pred_proba", "y_pred")
    reference = folder / "synthetic_car_loan_reference.csv.gz"
    scores, _, labels = columns(reference, *names, "repaid")
    known = counts(scores, labels == 1)
    scores, said = columns(folder / "synthetic_car_loan_analysis.csv.gz", *names)
    (labels,) = columns(folder / "synthetic_car_loan_analysis_target.csv.gz", "repaid")
    errors: dict[str, list[float]] = {name: [] for name in FIGURES}
    inside = {(name, when): list[bool]() for when in ("before", "after") for name in FIGURES}
    for start in range(0, scores.size - ROWS + 1, step):
        rows, when = slice(start, start + ROWS), "before" if start + ROWS <= DRIFT_ROW else "after"
        s, answer, hit = scores[rows], said[rows] == 1, labels[rows] == 1
        scored = {"1": by_bin(s, answer).tolist(), "0": by_bin(s, ~answer).tolist()}
        tree, truth = estimated(LabelFree(known), scored, ROWS, "1"), realised(s, answer, hit)
        for name in FIGURES:
            figure = tree["figures"][name]
            errors[name].append(abs(figure["value"] - truth[name]))
            inside[name, when].append(figure["low"] <= truth[name] <= figure["high"])
    result = {"windows": float(len(errors["auc"]))}
    result |= {f"{name}_mae": float(np.mean(errors[name])) for name in FIGURES}
    result |= {f"{name}_coverage_{when}": float(np.mean(x)) for (name, when), x in inside.items()}
    calibrator.cache_clear()
    result["fit_ms"] = rig.cpu_ms(lambda: calibrator(known))
    result["estimate_ms"] = rig.cpu_ms(
        lambda: [estimated(LabelFree(known), scored, ROWS, "1") for _ in range(100)]
    )
    result["estimate_ms"] /= 100
    for when, begin in (("before", 0), ("after", DRIFT_ROW)):
        labelled = []
        for start in range(begin, begin + DRIFT_ROW, LABELLED_ROWS):
            rows = slice(start, start + LABELLED_ROWS)
            found = counts(scores[rows], labels[rows] == 1)
            labelled.append(LabelledWindow(start, found.hits, found.misses))
        check = residual_check(calibrator(known), labelled)
        result |= {f"check_z_{when}": check.z, f"check_invalid_{when}": float(check.invalid)}
        result["check_ms"] = rig.cpu_ms(
            lambda all_=labelled: residual_check(calibrator(known), all_)
        )
    return result


# --- a drawn model ----------------------------------------------------------------------------------


def draw(
    random: np.random.Generator, rows: int, shift: float, cause: float
) -> tuple[Floats, Flags, Floats]:
    """Scores, labels, and the cause of the labels that the score does not know of."""
    known, unknown = random.normal(shift, 1.0, (2, rows))
    scores = 1 / (1 + np.exp(-1.2 * known + 0.3))
    log_odds = np.log(scores / (1 - scores)) + cause * unknown
    return scores, random.random(rows) < 1 / (1 + np.exp(-log_odds)), unknown


def shifted(windows: int, name: str, cause: float) -> dict[str, float]:
    """Coverage under a shift of the inputs; a new reference every ten windows."""
    random, sides = np.random.default_rng(51), ("coverage", "widened", "by_lot")
    inside = {(figure, side): 0 for figure in FIGURES for side in sides}
    wider = dict.fromkeys(FIGURES, 0.0)
    for number in range(windows):
        if number % 10 == 0:
            scores, hits, unknown = draw(random, 20_000, 0.0, cause)
            fitted = calibrator(counts(scores, hits))
            gaps = [Gaps()]
            for third in (np.digitize(unknown, (-0.43, 0.43)), random.integers(0, 3, hits.size)):
                parts = {f"{k}": counts(scores[third == k], hits[third == k]) for k in range(3)}
                gaps.append(gaps_of(fitted, parts))
        scores, hits, _ = draw(random, 2_000, 0.7, cause)
        said = scores > 0.5
        truth, rows = realised(scores, said, hits), (by_bin(scores, said), by_bin(scores, ~said))
        for side, known in zip(sides, gaps, strict=True):
            for figure, found in binary_estimates(fitted, *rows, known).items():
                inside[figure, side] += found.low <= truth[figure] <= found.high
                if side == "widened":
                    wider[figure] += 1 + found.widened.by / (1.96 * found.se)
    result = {f"{name}_{figure}_{side}": hits / windows for (figure, side), hits in inside.items()}
    return result | {f"{name}_{figure}_width": total / windows for figure, total in wider.items()}


def called_extrapolations(windows: int) -> dict[str, float]:
    """Share of windows beyond a reference of 5,000 labels: by labels near a bin, and by those of the bin alone."""
    random = np.random.default_rng(52)
    result = {}
    for name, shift in (("alike", 0.0), ("moved", 1.5)):
        near, alone = 0, 0
        for _ in range(windows):
            scores, hits, _ = draw(random, 5_000, 0.0, 0.0)
            fitted = calibrator(counts(scores, hits))
            scores, _, _ = draw(random, 2_000, shift, 0.0)
            rows = by_bin(scores, np.ones(scores.size, np.bool_))
            near += fitted.unsupported(rows) > MOST_UNSUPPORTED
            few = fitted.labels < LEAST_NEAR
            alone += rows[few].sum() > MOST_UNSUPPORTED * scores.size
        result[f"extrapolations_{name}"] = near / windows
        result[f"extrapolations_{name}_own_bin"] = alone / windows
    return result


def main() -> None:
    """Measure and print."""
    parser = rig.options(__doc__, f"windows that do not overlap; else one every {STEP} rows")
    parser.add_argument("--data", type=Path, default=BESIDE, help="folder of nannyml_car_loan")
    asked = parser.parse_args()
    folder = asked.data / "nannyml_car_loan"
    if not folder.is_dir():
        sys.exit(f"skipped: there is no {folder}; name the folder that holds it with --data")
    result = measure(folder, QUICK_STEP if asked.quick else STEP)
    windows = QUICK_SHIFTED if asked.quick else SHIFTED
    result |= shifted(windows, "shift_even", 0.0) | shifted(windows, "shift_uneven", 0.2)
    result |= called_extrapolations(windows)
    rig.show(result, as_json=asked.json)


if __name__ == "__main__":
    main()
