"""The drift detector on real streams with known changes, and on real streams without one.

    python bench/streams.py [--quick] [--json] [--data FOLDER]

The first part of a stream is the reference: cuts, contrasts and calibration; the rest is judged window after
window, as a monitor does, and an alarm mutes its sources until they are as they were. Labels are left out.
Streams are read from FOLDER, by default `shared/data` beside the repository, and skipped by name where they are
not there; they are not part of trimtab. Where the data has no times, windows of fixed row counts begin an hour
(`elec2`, `noaa_weather`: days) after each other.

`digits08`      no change is known: no alarm is right. 15 rows a window, half of what the monitor would read
`elec2`         three columns, constant until row 17,424, begin to vary there; prices and demand have seasons
                of a year all the while, and a reference of less than that cannot know them
`car_loan`      NannyML's synthetic loans: drift planted at row 25,000 of the analysis part
`noaa_weather`  50 years of daily weather: no change is known, a season of a year that no calendar of ours has
`nab_*`         Numenta's series with known causes, one number each: labelled windows in which an alarm was raised,
                those with none, alarms outside. An alarm stays open, and raises no other, until the series is as
                it was: `open_windows` counts these.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import rig

from trimtab.detect.calibration import REFUSED_WINDOWS, calibrate
from trimtab.detect.certificate import certify
from trimtab.detect.contrasts import Contrasts
from trimtab.detect.drift import LEAST_ROWS, merged
from trimtab.detect.evidence import Detector, Said
from trimtab.detect.observed import Observed
from trimtab.stats.aggregate import Column, observe_pane
from trimtab.stats.cuts import ModelCuts, build_category_cuts, build_numeric_cuts, model_cuts

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
START_MS = 1_700_006_400_000
DELTA = 0.05
Measurement = Callable[[Path], Any]
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
    min_rows: int = LEAST_ROWS


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


def judge(stream: Stream) -> Run | str:
    """Fit a detector on the reference and show it the rest; or say why there is none."""
    if stream.reference < REFUSED_WINDOWS:
        return f"refused: {stream.reference} reference windows; a detector needs {REFUSED_WINDOWS}"
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
    observed = [count(cuts, window, stream.categories) for window in stream.windows]
    baseline = merged(observed[: stream.reference])
    contrasts = Contrasts.of(cuts, baseline, windows=stream.reference, min_rows=stream.min_rows)
    measured = [contrasts.measure(one, cuts) for one in observed]
    known = measured[: stream.reference], stream.starts_ms[: stream.reference]
    fitted = calibrate(
        contrasts,
        *known,
        stream.length_ms,
        delta=DELTA,
        time_zone="UTC",
        min_rows=stream.min_rows,
    )
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
    run = Run(said, stream.starts_ms[stream.reference :], {})
    summary = {
        "rows_per_window": round(float(np.mean([len(w) for w in stream.windows])), 1),
        "reference_windows": stream.reference,
        "windows": len(said),
        "windows_per_alarm": stream.windows_per_alarm,
        "season": kept.season,
        "floor_median": round(float(np.median(kept.floor)), 3),
        "certificate_factor": certificate.factor,
        "alarms": [f"window {at}: {run.names(at)}" for at in run.alarms],
        "open_windows": sum(bool(one.open) for one in said),
    }
    return Run(said, run.starts_ms, summary)


def count(cuts: ModelCuts, rows: pd.DataFrame, categories: Sequence[str]) -> Observed:
    """Count a window's rows."""
    state = observe_pane(
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
    return Observed(state=state)


def read(path: Path, **more: Any) -> pd.DataFrame:
    """Read a CSV file, packed or not."""
    return pd.read_csv(path, **more)


def summary(run: Run | str) -> Any:
    """Return what is printed of a stream without a known change."""
    return run if isinstance(run, str) else run.summary


def since(run: Run | str, change: int) -> Any:
    """Add alarms before a change at window `change` (from 0 after the reference), and the delay of the first since."""
    if isinstance(run, str):
        return run
    found = [at for at in run.alarms if at >= change]
    return run.summary | {
        "alarms_before": sum(at < change for at in run.alarms),
        "delay_windows": found[0] - change + 1 if found else None,
        "named": run.names(found[0]) if found else "",
    }


# --- the streams --------------------------------------------------------------------------------------


def digits08(data: Path) -> Any:
    """15 rows a window, the first half is the reference."""
    frame = read(data / "digits08" / "stream.csv.gz").drop(columns="class")
    windows = by_rows(frame, 15)
    made = starts(len(windows), HOUR_MS)
    return summary(judge(Stream(windows, made, HOUR_MS, 50, 720, min_rows=15)))


def elec2(data: Path) -> Any:
    """A day a window, 300 days of reference."""
    frame = read(data / "elec2" / "stream.csv.gz").drop(columns=["class", "date", "day", "period"])
    windows = by_rows(frame, 48)
    reference = 300
    run = judge(Stream(windows, starts(len(windows), DAY_MS), DAY_MS, reference, 365))
    return since(run, 17_424 // 48 - reference)


def car_loan(data: Path) -> Any:
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
    return since(run, 25_000 // 200)


def noaa_weather(data: Path) -> Any:
    """30 days a window, ten years of reference."""
    frame = read(data / "noaa_weather" / "stream.csv.gz").drop(columns="target")
    windows, length_ms = by_rows(frame, 30), 30 * DAY_MS
    run = judge(Stream(windows, starts(len(windows), length_ms), length_ms, 122, 720))
    return summary(run)


def nab(name: str, length_ms: int) -> Measurement:
    """Return the measurement of one series; the reference ends where its first labelled window begins."""

    def measured(data: Path) -> Any:
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
        if isinstance(run, str):
            return run
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


STREAMS: Mapping[str, tuple[str, Measurement]] = {
    "digits08": ("digits08", digits08),
    "elec2": ("elec2", elec2),
    "car_loan": ("nannyml_car_loan", car_loan),
    "noaa_weather": ("noaa_weather", noaa_weather),
    "nab_ambient_temperature": (NAB, nab("ambient_temperature_system_failure", 2 * DAY_MS)),
    "nab_cpu_utilization": (NAB, nab("cpu_utilization_asg_misconfiguration", 3 * HOUR_MS)),
    "nab_ec2_latency": (NAB, nab("ec2_request_latency_system_failure", 3 * HOUR_MS)),
    "nab_machine_temperature": (NAB, nab("machine_temperature_system_failure", 3 * HOUR_MS)),
    "nab_nyc_taxi": (NAB, nab("nyc_taxi", DAY_MS)),
    "nab_rogue_agent_hold": (NAB, nab("rogue_agent_key_hold", 3 * HOUR_MS)),
    "nab_rogue_agent_updown": (NAB, nab("rogue_agent_key_updown", 3 * HOUR_MS)),
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
