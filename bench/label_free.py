"""How far estimates without labels are from the truth: NannyML's synthetic car loans.

    python bench/label_free.py [--quick] [--json] [--data FOLDER]

The reference's scores and labels make the calibrator; of each 5,000 further rows the figures are estimated
from the scores alone and compared with those of their labels (AUC of the raw scores, not of their bins).
`*_mae` are mean absolute errors over all windows; `*_coverage_before` and `*_coverage_after` the share of
windows whose figure lies in the 95 % interval, before and after the drift planted at row 25,000, which moves
the inputs and P(label | score), too. `check_z_*` and `check_invalid_*` are what comparing labels of 25
windows of 1,000 rows with the calibrator says before and after. `estimate_ms` is CPU time of a window's
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

from trimtab.detect.label_free import (
    LabelFree,
    LabelledWindow,
    estimated,
    residual_check,
)
from trimtab.detect.score_calibration import LabelledScores, calibrator
from trimtab.stats.scorebins import BINS, score_bins

BESIDE = rig.ROOT.parent / "shared" / "data"
ROWS, STEP, QUICK_STEP = 5_000, 1_000, 5_000
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


def main() -> None:
    """Measure and print."""
    parser = rig.options(__doc__, f"windows that do not overlap; else one every {STEP} rows")
    parser.add_argument("--data", type=Path, default=BESIDE, help="folder of nannyml_car_loan")
    asked = parser.parse_args()
    folder = asked.data / "nannyml_car_loan"
    if not folder.is_dir():
        sys.exit(f"skipped: there is no {folder}; name the folder that holds it with --data")
    rig.show(measure(folder, QUICK_STEP if asked.quick else STEP), as_json=asked.json)


if __name__ == "__main__":
    main()
