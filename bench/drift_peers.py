"""How often other tools' usual rules alarm on the same windows. Not a benchmark: `calibration.py` runs it.

KS and Evidently run here. NannyML and river have dependencies that are not ours: they run in an environment of
their own (`make bench-peers`), and are skipped by name where there is none.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from drift_traffic import LEVELS, Rows
from scipy import stats

PEERS = Path(__file__).resolve().parent.parent / ".venv-peers" / "bin" / "python"
PYTHON_VARIABLE = "TRIMTAB_PEERS_PYTHON"
"""Another Python that has NannyML and river."""
QUIET = {"NML_DISABLE_USAGE_LOGGING": "1", "DO_NOT_TRACK": "1"}
"""No peer sends usage data."""
LEVEL = 0.05
REFERENCE_ROWS = 20_000
"""KS and Evidently compare with so many rows of the reference, drawn at random."""
FAR_TOOLS = ("nannyml_js_mean_3sd", "river_adwin")
SKIPPED = "not installed: make bench-peers"

_CHILD = """
import copy, json, sys, warnings
import numpy as np, pandas as pd
warnings.simplefilter("ignore")
import nannyml
from river.drift import ADWIN

data = np.load(sys.argv[1])
numbers, lengths = int(data["numbers"]), data["lengths"].tolist()
names = [f"n{j}" for j in range(numbers)]
kinds = [f"c{j}" for j in range(data["reference"].shape[0] - numbers)]
levels = np.array(list("abcde"))

def frame(columns, hours):
    made = dict(zip(names, columns[:numbers]))
    made |= {name: levels[codes.astype(int)] for name, codes in zip(kinds, columns[numbers:])}
    made["time"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(hours, unit="h")
    return pd.DataFrame(made)

calculator = nannyml.UnivariateDriftCalculator(
    column_names=[*names, *kinds], treat_as_categorical=kinds, timestamp_column_name="time",
    continuous_methods=["jensen_shannon"], categorical_methods=["jensen_shannon"], chunk_period="h",
)
calculator.fit(frame(data["reference"], data["reference_hours"]))
found = calculator.calculate(frame(data["windows"], data["hours"])).filter(period="analysis").to_df()
alerts = found[[c for c in found.columns if c[-1] == "alert"]].any(axis=1).tolist()

def watch(detectors, hours):
    flags = []
    for hour in hours:
        rows, any_alarm = data["windows"][:, data["hours"] == hour], False
        for detector, column in zip(detectors, rows.tolist()):
            for value in column:
                detector.update(value)
                any_alarm |= detector.drift_detected
        flags.append(bool(any_alarm))
    return flags

places = np.split(np.unique(data["hours"]), np.cumsum(lengths)[:-1])
detectors = [ADWIN() for _ in names]
adwin = [watch(detectors, places[0])]
adwin += [watch(copy.deepcopy(detectors), run) for run in places[1:]]
bounds = np.cumsum([0, *lengths])
print(json.dumps({
    "nannyml_js_mean_3sd": [alerts[a:b] for a, b in zip(bounds, bounds[1:])], "river_adwin": adwin,
}))
"""


class Runs:
    """Windows to judge: those in which nothing has changed, then for each change the windows since."""

    def __init__(self, reference: Sequence[Rows], usual: Sequence[Rows], seed: int) -> None:
        self.reference, self.usual = list(reference), list(usual)
        self.changed: list[tuple[str, list[Rows]]] = []
        together = _columns(reference)
        rng = np.random.default_rng(seed)
        drawn = rng.permutation(together.shape[1])[:REFERENCE_ROWS]
        self.numbers = reference[0].numbers.shape[0]
        self.drawn = together[:, drawn]

    def _judged(self, flags: Sequence[Sequence[bool]]) -> dict[str, Any]:
        """Alarms per 720 windows, and mean windows to the first after a change, at most all there are."""
        result: dict[str, Any] = {"per_720": round(720 * float(np.mean(flags[0])), 1)}
        delays: dict[str, list[int]] = {}
        for (shift, _), found in zip(self.changed, flags[1:], strict=True):
            delays.setdefault(shift, []).append((*found, True).index(True) + 1)
        if delays:
            result["delay_windows"] = {k: round(float(np.mean(v)), 1) for k, v in delays.items()}
        return result

    def here(self) -> dict[str, Any]:
        """Judge by the rules that run in this process."""
        has_evidently = find_spec("evidently") is not None
        drifted = _evidently(self.drawn, self.numbers) if has_evidently else None
        flags: dict[str, list[list[bool]]] = {}
        for run in [self.usual, *(windows for _, windows in self.changed)]:
            said = [self._rules(rows, drifted) for rows in run]
            for name in said[0]:
                flags.setdefault(name, []).append([one[name] for one in said])
        result: dict[str, Any] = {name: self._judged(found) for name, found in flags.items()}
        if not has_evidently:
            result["evidently_any_column"] = "not installed: pip install evidently"
        return result

    def _rules(self, rows: Rows, drifted: Callable[[Rows], list[bool]] | None) -> dict[str, bool]:
        least = min(self._p_values(rows))
        said = {"ks_any_05": least < LEVEL, "ks_bonferroni_05": least < LEVEL / len(self.drawn)}
        if drifted is not None:
            columns = drifted(rows)
            said["evidently_any_column"] = any(columns)
            said["evidently_dataset"] = bool(np.mean(columns) >= 0.5)
        return said

    def _p_values(self, rows: Rows) -> list[float]:
        """Two-sample KS of numbers, chi-squared of categories."""
        p = [
            float(stats.ks_2samp(known, column, method="asymp").pvalue)
            for known, column in zip(self.drawn[: self.numbers], rows.numbers, strict=True)
        ]
        for known, codes in zip(self.drawn[self.numbers :], rows.codes, strict=True):
            table = [np.bincount(c.astype(int), minlength=len(LEVELS)) for c in (known, codes)]
            kept = np.array(table)[:, np.sum(table, axis=0) > 0]
            p.append(float(stats.chi2_contingency(kept).pvalue))
        return p

    def elsewhere(self) -> dict[str, Any]:
        """Judge by the packages that have an environment of their own."""
        python = Path(os.environ.get(PYTHON_VARIABLE, PEERS))
        if not python.exists():
            return dict.fromkeys(FAR_TOOLS, SKIPPED)
        runs = [self.usual, *(windows for _, windows in self.changed)]
        windows = [rows for run in runs for rows in run]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.npz"
            np.savez(
                path,
                reference=_columns(self.reference),
                reference_hours=_hours(self.reference, 0),
                windows=_columns(windows),
                hours=_hours(windows, len(self.reference)),
                lengths=np.array([len(run) for run in runs]),
                numbers=self.numbers,
            )
            done = subprocess.run(
                [str(python), "-c", _CHILD, str(path)],
                env={**os.environ, **QUIET, "PYTHONPATH": ""},
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            return dict.fromkeys(FAR_TOOLS, f"failed: {done.stderr.strip().splitlines()[-1]}")
        flags = json.loads(done.stdout.splitlines()[-1])
        return {name: self._judged(flags[name]) for name in FAR_TOOLS}


def _columns(windows: Sequence[Rows]) -> npt.NDArray[np.float64]:
    """Numbers, then places of levels, shape (features, rows of all windows)."""
    return np.concatenate([np.vstack([w.numbers, w.codes]) for w in windows], axis=1)


def _hours(windows: Sequence[Rows], first: int) -> npt.NDArray[np.int64]:
    """An hour of its own for every window, shape (rows of all windows,)."""
    return np.repeat(first + np.arange(len(windows)), [w.codes.shape[1] for w in windows])


def _evidently(drawn: npt.NDArray[np.float64], numbers: int) -> Callable[[Rows], list[bool]]:
    """Return which columns drift by the tests and thresholds that Evidently chooses by itself."""
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType

    known = [pd.Series(column) for column in drawn]
    kinds = [ColumnType.Numerical] * numbers
    kinds += [ColumnType.Categorical] * (len(known) - numbers)
    tests = [get_stattest(a, a, kind, None) for a, kind in zip(known, kinds, strict=True)]

    def drifted(rows: Rows) -> list[bool]:
        current = [pd.Series(column) for column in (*rows.numbers, *rows.codes)]
        return [
            bool(test(a, b, kind, None).drifted)
            for test, a, b, kind in zip(tests, known, current, kinds, strict=True)
        ]

    return drifted
