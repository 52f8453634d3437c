"""What judging a window costs, from its merged state to the verdict's bytes.

    python bench/evaluate.py [--quick] [--json]

`evaluate` and `encode` of windows of 20 and of 200 features, a tenth of them categories, 5,000 rows against a
reference of 20,000, one rule and the detector, fitted on 60 such windows; half of the windows have drifted in every
feature. `evaluate_ms_20_features` and `evaluate_ms_200_features` are CPU milliseconds of this process a window, medians; `figures_*` the part
that compares it with its baseline, `drifted_*` the whole of a window that has drifted. Reading the panes
from the store is not in it (`bench/fleet.py`).
"""

from typing import Any

import msgspec
import numpy as np
import rig

from trimtab.contracts.model import Contract, Feature, Reference, Windows
from trimtab.detect.baseline import Baseline
from trimtab.detect.calibration import calibrate
from trimtab.detect.contrasts import Contrasts
from trimtab.detect.drift import Fitted, Watching, merged, state_digest
from trimtab.detect.figures import comparisons
from trimtab.detect.observed import Observed
from trimtab.detect.verdict import WindowInputs, encode, evaluate
from trimtab.stats.aggregate import Column, PaneState, observe_pane
from trimtab.stats.cuts import ModelCuts, build_category_cuts, build_numeric_cuts, model_cuts

SIZES = (20, 200)
LENGTH_MS, FITTED_ON = 3_600_000, 60
ROWS, REFERENCE_ROWS, WINDOWS, QUICK_WINDOWS = 5_000, 20_000, 40, 10
WORDS = tuple(f"word-{k}" for k in range(12))


def is_category(feature: int) -> bool:
    """Every tenth feature is one."""
    return feature % 10 == 9


def contract(features: int) -> Contract:
    """Numbers, categories and one rule."""
    plain = rig.two_classes("m", features, Windows(length="1h"), Reference())
    kinds = {
        f"f{k}": Feature(kind="category" if is_category(k) else "number") for k in range(features)
    }
    return msgspec.structs.replace(plain, features=kinds)


class Made:
    """The cuts of a model, and states of windows."""

    def __init__(self, features: int) -> None:
        self.features, self.rng = features, np.random.default_rng(1)
        numbers, words = self.columns(REFERENCE_ROWS, 0.0)
        built = {name: build_numeric_cuts(column) for name, column in numbers.items()}
        cuts = built | {name: build_category_cuts(column) for name, column in words.items()}
        self.cuts: ModelCuts = model_cuts((f"f{k}", cuts[f"f{k}"]) for k in range(features))
        self.baseline = Baseline(self.state(REFERENCE_ROWS, 0.0), 168, 168, 1)
        self.watching = self.fit()

    def fit(self) -> Watching:
        """A detector, without the check on its own reference: that is made once, not per window."""
        windows = [Observed(state=self.state(ROWS, 0.0)) for _ in range(FITTED_ON)]
        contrasts = Contrasts.of(self.cuts, merged(windows), windows=FITTED_ON, min_rows=200)
        calibration = calibrate(
            contrasts,
            [contrasts.measure(one, self.cuts) for one in windows],
            [rig.START_MS + (k - FITTED_ON) * LENGTH_MS for k in range(FITTED_ON)],
            LENGTH_MS,
            delta=0.05,
            time_zone="UTC",
            min_rows=200,
        )
        fitted = Fitted(
            cuts_id=self.cuts.cuts_id,
            length_ms=LENGTH_MS,
            contrasts=contrasts,
            calibration=calibration,
            certificate=None,
        )
        detector = fitted.detector(720.0, LENGTH_MS)
        state = detector.start()
        return Watching(
            id=1, detector=detector, cuts=self.cuts, state=state, before=state_digest(state)
        )

    def columns(self, rows: int, shift: float) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """Columns by name; `shift` in standard deviations, of categories in places."""
        numbers, words = {}, {}
        for k in range(self.features):
            if is_category(k):
                places = self.rng.geometric(0.3, rows) + round(2 * shift)
                words[f"f{k}"] = [WORDS[min(p, len(WORDS)) - 1] for p in places.tolist()]
            else:
                numbers[f"f{k}"] = self.rng.normal(shift, 1, rows)
        return numbers, words

    def state(self, rows: int, shift: float) -> PaneState:
        """Count a window."""
        numbers, words = self.columns(rows, shift)
        return observe_pane(
            self.cuts,
            rows,
            numeric={name: Column(column) for name, column in numbers.items()},
            categories=words,
            statuses={"ok": rows},
            rules={},
        )

    def inputs(self, shift: float) -> WindowInputs:
        """Everything a window's verdict depends on."""
        state = self.state(ROWS, shift)
        return WindowInputs(
            contract=contract(self.features),
            contract_revision=1,
            code_version="bench",
            window_start_ms=rig.START_MS,
            window_end_ms=rig.START_MS + LENGTH_MS,
            revision=1,
            state=state,
            by_version={"1": state},
            cuts=self.cuts,
            baseline=self.baseline,
            judged_version="1",
            detector=self.watching,
        )


def measure(features: int, windows: int) -> dict[str, float]:
    """Measure windows of one size."""
    made = Made(features)
    usual, drifted = ([made.inputs(shift) for _ in range(windows // 2)] for shift in (0.0, 0.5))

    def judged(inputs: WindowInputs) -> bytes:
        return encode(evaluate(inputs))

    judged(usual[0])
    both = [[rig.cpu_ms(lambda one=one: judged(one)) for one in side] for side in (usual, drifted)]
    compared = [
        rig.cpu_ms(lambda one=one: comparisons(one.state, one.cuts, one.baseline))
        for one in (*usual, *drifted)
    ]
    return {
        f"evaluate_ms_{features}_features": rig.middle([*both[0], *both[1]]),
        f"drifted_ms_{features}_features": rig.middle(both[1]),
        f"figures_ms_{features}_features": rig.middle(compared),
    }


def main() -> None:
    """Measure and print."""
    asked = rig.options(__doc__, f"{QUICK_WINDOWS} windows of each size").parse_args()
    result: dict[str, float] = {}
    for features in SIZES:
        result |= measure(features, QUICK_WINDOWS if asked.quick else WINDOWS)
    rig.show(result, as_json=asked.json)


if __name__ == "__main__":
    main()
