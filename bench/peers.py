"""Rows per second beside Evidently and whylogs, each from the same frames, on this machine, in this run.

    python bench/peers.py [--quick] [--json]

A reference and some windows of numeric features, as pandas frames made beforehand. `vs_evidently`: its data
drift preset with KS, against ours: columns to a state (`observe_pane`) and all figures of a window, KS among
them. `vs_whylogs`: its profile of each frame, against `observe_pane` alone. Both sides begin with the frame in
memory; nothing is decoded. Ours is binned and exact to the bin, Evidently's reads every value. whylogs runs
in an environment of its own, since its dependencies are not ours: `make bench-peers`. CPU time.
"""

import os
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rig

from trimtab.contracts.model import Contract, Feature
from trimtab.detect.baseline import Baseline
from trimtab.detect.figures import figures
from trimtab.stats.aggregate import Column, PaneState, ResourceState, observe_pane
from trimtab.stats.cuts import ModelCuts, build_numeric_cuts, model_cuts

FEATURES, ROWS, WINDOWS = 20, 10_000, 5
NAMES = [f"f{k:02d}" for k in range(FEATURES)]
PEERS = Path(__file__).resolve().parent.parent / ".venv-peers" / "bin" / "python"
PYTHON_VARIABLE = "TRIMTAB_PEERS_PYTHON"
"""Another Python that has whylogs."""
QUIET = {"DO_NOT_TRACK": "1", "WHYLOGS_NO_ANALYTICS": "True"}
"""No peer sends usage data."""
CONTRACT = Contract(
    name="m", task="binary", features={name: Feature(kind="number") for name in NAMES}
)
_CHILD = """
import sys, time
import numpy as np, pandas as pd
import whylogs as why
data = np.load(sys.argv[1])
frames = [pd.DataFrame(dict(zip(data["names"].tolist(), values))) for values in data["windows"]]
why.log(frames[0].head(100))
began = time.process_time()
for frame in frames:
    why.log(frame).profile().view()
print(time.process_time() - began)
"""


def count(cuts: ModelCuts, frame: pd.DataFrame) -> PaneState:
    """Count a frame, as a flush counts its columns."""
    numeric = {name: Column(frame[name].to_numpy()) for name in NAMES}
    rows = len(frame)
    return observe_pane(cuts, rows, numeric=numeric, categories={}, statuses={"ok": rows}, rules={})


def describe(cuts: ModelCuts, baseline: Baseline, frame: pd.DataFrame) -> dict[str, Any]:
    """Count a frame and compare it with the baseline."""
    state = count(cuts, frame)
    return figures(
        state,
        cuts,
        baseline,
        CONTRACT,
        {},
        rows_by_version={"1": len(frame)},
        resources=ResourceState(),
        judged_version="1",
    )


def evidently_s(reference: pd.DataFrame, frames: list[pd.DataFrame]) -> float:
    """CPU seconds of Evidently's data drift preset over every window."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=NAMES)
    report = Report([DataDriftPreset(num_method="ks")])

    def compare(frame: pd.DataFrame, base: pd.DataFrame) -> None:
        current = Dataset.from_pandas(frame, data_definition=definition)
        known = Dataset.from_pandas(base, data_definition=definition)
        report.run(current, known).dict()

    compare(frames[0].head(100), reference.head(100))
    return rig.cpu_s(lambda: [compare(frame, reference) for frame in frames])


def whylogs_s(folder: Path, frames: list[pd.DataFrame]) -> float | str:
    """CPU seconds of whylogs' profiles, or why there are none."""
    python = Path(os.environ.get(PYTHON_VARIABLE, PEERS))
    if not python.exists():
        return "not installed: make bench-peers"
    path = folder / "frames.npz"
    np.savez(path, names=np.array(NAMES), windows=np.array([f.to_numpy().T for f in frames]))
    done = subprocess.run(
        [str(python), "-c", _CHILD, str(path)],
        env={**os.environ, **QUIET, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    return float(done.stdout.split()[-1])


def measure(rows: int, windows: int) -> dict[str, Any]:
    """Measure each side on the same frames."""
    rng = np.random.default_rng(1)
    made = [
        pd.DataFrame(dict(zip(NAMES, rng.normal(size=(FEATURES, rows)), strict=True)))
        for _ in range(windows + 1)
    ]
    reference, frames = made[0], made[1:]
    cuts = model_cuts((name, build_numeric_cuts(reference[name].tolist())) for name in NAMES)
    baseline = Baseline(count(cuts, reference), 1, 1, 1)
    describe(cuts, baseline, frames[0])
    counted_s = rig.cpu_s(lambda: [count(cuts, frame) for frame in frames])
    described_s = rig.cpu_s(lambda: [describe(cuts, baseline, frame) for frame in frames])
    total = rows * windows
    result: dict[str, Any] = {
        "rows_per_window": rows,
        "features": FEATURES,
        "windows": windows,
        "count_rows_per_s": round(total / counted_s),
        "figures_rows_per_s": round(total / described_s),
    }
    peer_s = evidently_s(reference, frames)
    result["evidently_rows_per_s"] = round(total / peer_s)
    result["vs_evidently"] = round(peer_s / described_s, 1)
    with tempfile.TemporaryDirectory() as folder:
        spent = whylogs_s(Path(folder), frames)
    if isinstance(spent, str):
        result |= {"whylogs_rows_per_s": spent, "vs_whylogs": spent}
    else:
        result["whylogs_rows_per_s"] = round(total / spent)
        result["vs_whylogs"] = round(spent / counted_s, 1)
    return result


def main() -> None:
    """Measure and print."""
    asked = rig.options(__doc__, "2 windows of 1,000 rows").parse_args()
    os.environ.update(QUIET)
    warnings.simplefilter("ignore")
    rig.show(measure(*((1_000, 2) if asked.quick else (ROWS, WINDOWS))), as_json=asked.json)


if __name__ == "__main__":
    main()
