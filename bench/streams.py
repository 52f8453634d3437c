"""The drift detector on real streams with known changes, and on real streams without one.

    python bench/streams.py [--quick] [--json] [--data FOLDER]

The first part of a stream is the reference: cuts, contrasts and calibration; the rest is judged window after
window, as a monitor does, and an alarm mutes its sources until they are as they were. Labels are left out.
Streams are read from FOLDER, by default `shared/data` beside the repository, and skipped by name where they are
not there; they are not part of trimtab. Where the data has no times, windows of fixed row counts begin an hour
(`noaa_weather`: as many days as rows) after each other.

`digits08`      no change is known: no alarm is right
`elec2`         three columns, constant until row 17,424, begin to vary there; prices and demand have seasons
                of a year all the while, and a reference of less than that cannot know them
`car_loan`      NannyML's synthetic loans: drift planted at row 25,000 of the analysis part
`noaa_weather`  50 years of daily weather: no change is known, a season of a year that no calendar of ours has
`nab_*`         Numenta's series with known causes: labelled windows that had an alarm, those that had none,
                alarms outside. A value or twelve an hour: far below the 200 rows that windows should have.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import rig

from trimtab.detect.calibration import fit
from trimtab.detect.certificate import certify
from trimtab.detect.contrasts import Contrasts
from trimtab.detect.evidence import Detector, Said
from trimtab.stats.aggregate import Column, PaneState, observe_pane
from trimtab.stats.cuts import ModelCuts, build_category_cuts, build_numeric_cuts, model_cuts

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START_MS = 1_700_006_400_000
DELTA = 0.05
NAB = "nab/data/realKnownCause"


class Stream(msgspec.Struct, frozen=True):
    """Windows of rows, and how many of them are the reference."""

    windows: list[pd.DataFrame]
    starts_ms: list[int]
    length_ms: int
    reference: int
    windows_per_alarm: float
    categories: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


class Run(msgspec.Struct, frozen=True):
    """What a detector said of the windows after the reference."""

    said: list[Said]
    starts_ms: list[int]
    summary: dict[str, Any]

    @property
    def alarms(self) -> list[int]:
        """Places of windows with an alarm, from 0 after the reference."""
        return [at for at, one in enumerate(self.said) if one.alarm]

    def names(self, at: int) -> str:
        """What an alarm names, strongest first."""
        return ", ".join(f"{one.source} {one.what}" for one in self.said[at].moved)


def by_rows(frame: pd.DataFrame, rows: int) -> list[pd.DataFrame]:
    """Cut into windows of so many rows; a rest is left out."""
    return [frame.iloc[a : a + rows] for a in range(0, len(frame) - rows + 1, rows)]


def starts(count: int, length_ms: int) -> list[int]:
    """Return starts one after the other, from a midnight."""
    return [START_MS + at * length_ms for at in range(count)]


def judge(stream: Stream) -> Run:
    """Fit a detector on the reference and show it the rest."""
    columns = list(stream.windows[0].columns)
    reference = pd.concat(stream.windows[: stream.reference])
    built = {
        name: build_category_cuts(reference[name].tolist())
        if name in stream.categories
        else build_numeric_cuts(reference[name].to_numpy())
        for name in columns
    }
    cuts = model_cuts(
        [(name, built[name]) for name in columns if name not in stream.outputs],
        [(name, built[name]) for name in stream.outputs],
    )
    panes = [count(cuts, window, stream.categories) for window in stream.windows]
    baseline = panes[0]
    for pane in panes[1 : stream.reference]:
        baseline = baseline.merge(pane)
    contrasts = Contrasts.of(cuts, baseline)
    measured = [contrasts.measure(pane, cuts) for pane in panes]
    known = measured[: stream.reference], stream.starts_ms[: stream.reference]
    fitted = fit(*known, stream.length_ms, delta=DELTA)
    kept, certificate = certify(
        contrasts, fitted, *known, stream.windows_per_alarm, stream.length_ms, 1
    )
    detector = Detector(contrasts, kept, stream.windows_per_alarm, stream.length_ms)
    state, said = detector.start(), []
    for window, start_ms in zip(
        measured[stream.reference :], stream.starts_ms[stream.reference :], strict=True
    ):
        state, one = detector.update(state, window, start_ms)
        said.append(one)
    summary = {
        "rows_per_window": round(float(np.mean([len(w) for w in stream.windows])), 1),
        "reference_windows": stream.reference,
        "windows": len(said),
        "windows_per_alarm": stream.windows_per_alarm,
        "season": kept.season,
        "floor_median": round(float(np.median(kept.floor)), 3),
        "certificate_factor": certificate.factor,
        "alarms": sum(one.alarm for one in said),
    }
    return Run(said, stream.starts_ms[stream.reference :], summary)


def count(cuts: ModelCuts, rows: pd.DataFrame, categories: Sequence[str]) -> PaneState:
    """Count a window's rows."""
    return observe_pane(
        cuts,
        len(rows),
        numeric={
            name: Column(rows[name].to_numpy(dtype=np.float64))
            for name in rows.columns
            if name not in categories
        },
        categories={name: rows[name].tolist() for name in categories},
        statuses={"ok": len(rows)},
        rules={},
    )


def read(path: Path, **more: Any) -> pd.DataFrame:
    """Read a CSV file, packed or not."""
    return pd.read_csv(path, **more)


def since(run: Run, change: int) -> dict[str, Any]:
    """Alarms before a change at window `change` (from 0 after the reference), and the delay of the first since."""
    found = [at for at in run.alarms if at >= change]
    return {
        "alarms_before": sum(at < change for at in run.alarms),
        "delay_windows": found[0] - change + 1 if found else None,
        "named": run.names(found[0]) if found else "",
    }


# --- the streams --------------------------------------------------------------------------------------


def digits08(data: Path) -> dict[str, Any]:
    """15 rows a window, the first half is the reference."""
    frame = read(data / "digits08" / "stream.csv.gz").drop(columns="class")
    windows = by_rows(frame, 15)
    run = judge(Stream(windows, starts(len(windows), HOUR_MS), HOUR_MS, 50, 720))
    return run.summary | {"named": [run.names(at) for at in run.alarms]}


def elec2(data: Path) -> dict[str, Any]:
    """A day a window, 300 days of reference."""
    frame = read(data / "elec2" / "stream.csv.gz").drop(columns=["class", "date", "day", "period"])
    windows = by_rows(frame, 48)
    reference = 300
    run = judge(Stream(windows, starts(len(windows), DAY_MS), DAY_MS, reference, 365))
    return run.summary | since(run, 17_424 // 48 - reference)


def car_loan(data: Path) -> dict[str, Any]:
    """200 rows a window."""
    folder = data / "nannyml_car_loan"
    left_out = ["id", "timestamp", "y_pred"]
    known = read(folder / "synthetic_car_loan_reference.csv.gz").drop(columns=[*left_out, "repaid"])
    later = read(folder / "synthetic_car_loan_analysis.csv.gz").drop(columns=left_out)
    reference = by_rows(known, 200)
    windows = [*reference, *by_rows(later[known.columns], 200)]
    run = judge(
        Stream(
            windows,
            starts(len(windows), HOUR_MS),
            HOUR_MS,
            len(reference),
            720,
            ("salary_range", "repaid_loan_on_prev_car", "size_of_downpayment"),
            ("y_pred_proba",),
        )
    )
    return run.summary | since(run, 25_000 // 200)


def noaa_weather(data: Path) -> dict[str, Any]:
    """28 days a window, ten years of reference."""
    frame = read(data / "noaa_weather" / "stream.csv.gz").drop(columns="target")
    windows, length_ms = by_rows(frame, 28), 28 * DAY_MS
    run = judge(Stream(windows, starts(len(windows), length_ms), length_ms, 130, 720))
    return run.summary | {"named": [run.names(at) for at in run.alarms]}


def nab(name: str, length_ms: int) -> Callable[[Path], dict[str, Any]]:
    """Return the measurement of one series; the reference ends where its first labelled window begins."""

    def measured(data: Path) -> dict[str, Any]:
        frame = read(data / NAB / f"{name}.csv", parse_dates=["timestamp"])
        times = frame["timestamp"].astype("datetime64[ms]").astype(np.int64)
        labels = json.loads((data / "nab" / "labels" / "combined_windows.json").read_text())
        labelled = [
            [int(pd.Timestamp(end).timestamp() * 1_000) for end in pair]
            for pair in labels[f"realKnownCause/{name}.csv"]
        ]
        groups = dict(list(frame[["value"]].groupby(times // length_ms * length_ms)))
        begins = sorted(groups)
        reference = sum(start + length_ms <= labelled[0][0] for start in begins)
        run = judge(
            Stream(
                [groups[k] for k in begins], begins, length_ms, reference, 30 * DAY_MS / length_ms
            )
        )
        inside = [
            {k for k, (a, b) in enumerate(labelled) if start < b and start + length_ms > a}
            for start in (run.starts_ms[at] for at in run.alarms)
        ]
        hit = set().union(*inside) if inside else set()
        return run.summary | {
            "labelled": len(labelled),
            "hit": len(hit),
            "alarms_outside": sum(not places for places in inside),
        }

    return measured


STREAMS: Mapping[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "digits08": ("digits08", digits08),
    "elec2": ("elec2", elec2),
    "car_loan": ("nannyml_car_loan", car_loan),
    "noaa_weather": ("noaa_weather", noaa_weather),
    "nab_ambient_temperature": (NAB, nab("ambient_temperature_system_failure", DAY_MS)),
    "nab_cpu_utilization": (NAB, nab("cpu_utilization_asg_misconfiguration", HOUR_MS)),
    "nab_ec2_latency": (NAB, nab("ec2_request_latency_system_failure", HOUR_MS)),
    "nab_machine_temperature": (NAB, nab("machine_temperature_system_failure", HOUR_MS)),
    "nab_nyc_taxi": (NAB, nab("nyc_taxi", HOUR_MS)),
    "nab_rogue_agent_hold": (NAB, nab("rogue_agent_key_hold", HOUR_MS)),
    "nab_rogue_agent_updown": (NAB, nab("rogue_agent_key_updown", HOUR_MS)),
}
QUICK = ("digits08", "car_loan", "nab_ec2_latency")


def main() -> None:
    """Measure and print."""
    parser = rig.options(__doc__, f"only {', '.join(QUICK)}")
    parser.add_argument(
        "--data", type=Path, default=rig.ROOT.parent / "shared" / "data", metavar="FOLDER"
    )
    asked = parser.parse_args()
    result: dict[str, Any] = {}
    for name, (folder, measured) in STREAMS.items():
        if asked.quick and name not in QUICK:
            continue
        if (asked.data / folder).is_dir():
            result[name] = measured(asked.data)
        else:
            result[name] = f"skipped: there is no {folder} in the data folder (--data FOLDER)"
    rig.show(result, as_json=asked.json)


if __name__ == "__main__":
    main()
