"""Estimates without labels on NannyML's car loans, where a `shared` folder beside the repository holds them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOANS = ROOT.parent / "shared" / "data" / "nannyml_car_loan"


@pytest.mark.skipif(not LOANS.is_dir(), reason="nannyml_car_loan is not beside the repository")
def test_of_5000_loans_auc_and_accuracy_are_estimated_as_closely_as_nannyml_does():
    command = [sys.executable, str(ROOT / "bench" / "label_free.py"), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert found["windows"] == 10
    assert found["auc_mae"] < 0.0026  # NannyML's own CBPE: 0.0021 and 0.0031
    assert found["accuracy_mae"] < 0.0036
    assert found["auc_coverage_before"] == found["f1_coverage_before"] == 1.0
    # A shift that the score does not know of: what its segments showed covers it.
    assert found["shift_uneven_f1_coverage"] < 0.90 < 0.95 < found["shift_uneven_f1_widened"]
    assert found["shift_uneven_accuracy_widened"] > 0.92
    assert found["shift_even_f1_width"] < 1.02
    assert found["extrapolations_alike"] == 0 < 0.5 < found["extrapolations_alike_own_bin"]
    assert found["extrapolations_moved"] > 0.5
    # From row 25,000 on the scores mean something else: recall is wrong, and labels tell.
    assert found["recall_coverage_after"] < 0.5
    assert not found["check_invalid_before"]
    assert found["check_invalid_after"]


def test_without_the_data_the_benchmark_says_what_it_skips(tmp_path):
    command = [sys.executable, str(ROOT / "bench" / "label_free.py"), "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0
    assert "skipped" in done.stderr
    assert "--data" in done.stderr
