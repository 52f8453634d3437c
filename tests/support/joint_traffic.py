"""Seeded windows of sampled rows whose columns go together in known ways, for tests of pairs."""

import numpy as np
from sources_traffic import HOUR, NORMAL, starts

from trimtab.detect.calibration import calibrate
from trimtab.detect.contrasts import Contrasts
from trimtab.detect.evidence import Detector
from trimtab.detect.observed import Observed
from trimtab.stats.aggregate import FeatureState, PaneState
from trimtab.stats.cuts import SPECIAL_BINS, model_cuts
from trimtab.stats.joint import JointColumn, JointState

BINS = NORMAL.size - SPECIAL_BINS


class Columns:
    """A model of `count` numbers, whose own counts never change: only their relations are news."""

    def __init__(self, count=10, rows=500, seed=0):
        self.names = [f"f{i}" for i in range(count)]
        self.rows, self.rng = rows, np.random.default_rng(seed)
        self.cuts = model_cuts([(name, NORMAL) for name in self.names])
        counts = FeatureState(NORMAL.cuts_id, (100,) * BINS + (0,) * SPECIAL_BINS)
        self.state = PaneState(
            self.cuts.cuts_id, 100 * BINS, features=dict.fromkeys(self.names, counts)
        )

    def values(self, common=0.0, pair=0.0, level=0.0):
        """Normal columns: all pairs correlate by `common`; `f0` and `f1` by `pair` instead, where it is given."""
        shape = (self.rows, len(self.names))
        shared = self.rng.normal(size=(self.rows, 1))
        x = np.sqrt(common) * shared + np.sqrt(1 - common) * self.rng.normal(size=shape)
        if pair:
            x[:, 1] = pair * x[:, 0] + np.sqrt(1 - pair**2) * self.rng.normal(size=self.rows)
        return x + level

    def observed(self, x):
        columns = [JointColumn(name) for name in self.names]
        given = {name: x[:, i].tolist() for i, name in enumerate(self.names)}
        return Observed(state=self.state, joint=JointState.observe(columns, given))

    def windows(self, count, **how):
        return [self.observed(self.values(**how)) for _ in range(count)]

    def detector(self, reference, windows_per_alarm=720):
        whole = reference[0]
        for one in reference[1:]:
            whole = whole.merge(one)
        contrasts = Contrasts.of(self.cuts, whole, windows=len(reference), min_rows=200)
        fitted = calibrate(
            contrasts,
            [contrasts.measure(one, self.cuts) for one in reference],
            starts(len(reference)),
            HOUR,
            delta=0.05,
            time_zone="UTC",
            min_rows=200,
        )
        return Detector(contrasts, fitted, windows_per_alarm, HOUR)
