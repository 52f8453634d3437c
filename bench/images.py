"""Whether a worse camera is found by the descriptors of its pictures, and two halves of the same are not.

    python bench/images.py [--quick] [--json] [--data FOLDER]

2,000 pictures of cats and dogs (`images_cat_dog` in FOLDER, by default `shared/data` beside the repository;
where there is none, the benchmark says so and measures nothing) are described by `describe_image`; nothing else
of them is used. They are split at random into two halves. The detector, as the monitor fits it, learns from
168 windows of 200 pictures drawn from the first half. Then come windows of the second half: unchanged ones, which must
raise no alarm, and for each change of the camera 24 unchanged ones followed by changed ones, until the
alarm. Five splits (--quick: one).

`false_alarms` counts those of unchanged windows, `allowed` what the budget allows in as many. Per change:
`found` of `splits`, `delay_windows` (median, from the first changed window to the alarm), `blamed` (the
descriptor named first, most often).

The halves differ by chance, as 1,000 pictures each do; the windows are drawn from them with replacement, so that this
difference is a real one. So `smallest_shift`, what counts as a change, is four standard errors of it: with the default, 0.05, the detector
finds it.
"""

import argparse
import math
import statistics
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rig

from trimtab.contracts.model import Contract
from trimtab.contracts.parse import parse_contract
from trimtab.detect.budget import FLEET, budget_of, parse_budget
from trimtab.detect.drift import Refused, fit_detector, sentence
from trimtab.detect.evidence import Detector, Moved, State
from trimtab.detect.observed import Observed
from trimtab.detect.sources import bounds_of
from trimtab.sdk.describe import describe_image, feature_lines
from trimtab.stats.aggregate import Column, observe_pane
from trimtab.stats.cuts import ModelCuts
from trimtab.store.baselines import build_cuts

ARCHIVE = Path("images_cat_dog") / "kaggle_train_128px.tar"
ROWS, REFERENCE_WINDOWS, BEFORE, MOST = 200, 168, 24, 48
"""Pictures a window; windows of the reference, before a change, and after it until it counts as missed."""
SPLITS, QUIET_WINDOWS, QUICK_QUIET_WINDOWS = 5, 720, 240
Image = npt.NDArray[np.uint8]
Table = dict[str, npt.NDArray[np.float64]]
"""Descriptors by name, one value a picture."""


# --- pictures -----------------------------------------------------------------------------------------


def load(archive: Path) -> list[Image]:
    """Return the pictures of a tar of JPEGs, (height, width, 3), in the order of their names."""
    import tensorflow as tf

    with tarfile.open(archive) as tar:
        members = sorted(
            (m for m in tar.getmembers() if m.name.endswith(".jpg")), key=lambda m: m.name
        )
        files = [tar.extractfile(member) for member in members]
        return [tf.io.decode_jpeg(f.read(), channels=3).numpy() for f in files if f is not None]


def blurred(image: Image, sigma: float) -> Image:
    """A lens out of focus: Gaussian blur, sigma in pixels."""
    from scipy.ndimage import gaussian_filter

    return bytes_of(gaussian_filter(image.astype(np.float64), (sigma, sigma, 0)))


def lit(image: Image, red: float, green: float, blue: float) -> Image:
    """Other light: factors on the channels."""
    return bytes_of(image * np.array([red, green, blue]))


def noisy(image: Image, sigma: float) -> Image:
    """A sensor's noise, sigma in 256ths of the range; the same for the same picture."""
    rng = np.random.default_rng(int(image.sum()))
    return bytes_of(image + rng.normal(0, sigma, image.shape))


def halved(image: Image) -> Image:
    """Half the resolution: means of two by two pixels."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return bytes_of(blocks.mean(axis=(1, 3)))


def compressed(image: Image, quality: int) -> Image:
    """Saved as a JPEG of this quality."""
    import tensorflow as tf

    made: Image = tf.image.adjust_jpeg_quality(image, quality).numpy()
    return made


def bytes_of(values: npt.NDArray[np.float64]) -> Image:
    """Values from 0 to 255 as the bytes of a picture."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[Image], Image]] = {
    "blur, sigma 0.5 px": lambda image: blurred(image, 0.5),
    "blur, sigma 1 px": lambda image: blurred(image, 1.0),
    "a tenth darker": lambda image: lit(image, 0.9, 0.9, 0.9),
    "three tenths darker": lambda image: lit(image, 0.7, 0.7, 0.7),
    "warm cast, blue x 0.9": lambda image: lit(image, 1.0, 1.0, 0.9),
    "noise, sigma 5 of 255": lambda image: noisy(image, 5.0),
    "half the resolution": halved,
}
SAVED = {"JPEG of quality 30": lambda image: compressed(image, 30)}
"""What only TensorFlow does."""


def described(images: Sequence[Image]) -> Table:
    """Describe pictures."""
    rows = [describe_image(image) for image in images]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


# --- the detector -------------------------------------------------------------------------------------


class World:
    """A model that is sent pictures, under a contract of their descriptors."""

    def __init__(self, reference: Table, others: int, seed: int) -> None:
        """`reference`: descriptors of the pictures that the reference is drawn from; `others`: how many the rest are."""
        count = len(reference["brightness"])
        shift = 4 * math.sqrt(1 / count + 1 / others)
        rows = [{name: column[i] for name, column in reference.items()} for i in range(count)]
        self.contract: Contract = parse_contract(
            'name = "camera"\ntask = "binary"\n[features]\n'
            + feature_lines(rows)
            + f'\n[windows]\nlength = "1h"\n[alarms]\nsmallest_shift = {shift:.3f}\n',
            "camera.toml",
        )
        self.rng = np.random.default_rng(seed)
        self.cuts: ModelCuts = build_cuts(
            self.contract, {name: column.tolist() for name, column in reference.items()}
        )
        self.length_ms = self.contract.windows.length_ms
        budget = budget_of(self.contract, parse_budget(FLEET), 1)
        self.windows_per_alarm = budget.windows_per_alarm(self.length_ms)
        windows = [(self.start_ms(at), self.window(reference)) for at in range(REFERENCE_WINDOWS)]
        fitted = fit_detector(
            self.cuts,
            windows,
            self.contract,
            self.windows_per_alarm,
            bounded=bounds_of(self.contract),
        )
        if isinstance(fitted, Refused):
            raise SystemExit(fitted.reason)
        self.detector: Detector = fitted.detector(self.windows_per_alarm, self.length_ms)

    def start_ms(self, at: int) -> int:
        """Start of a window by its number."""
        return rig.START_MS // self.length_ms * self.length_ms + at * self.length_ms

    def window(self, table: Table) -> Observed:
        """Count a window of pictures that are drawn from a table, with replacement."""
        chosen = self.rng.integers(0, len(table["brightness"]), ROWS)
        numeric = {
            name: Column(
                column[chosen],
                0,
                (self.contract.features[name].min, self.contract.features[name].max),
            )
            for name, column in table.items()
        }
        state = observe_pane(
            self.cuts, ROWS, numeric=numeric, categories={}, statuses={"ok": ROWS}, rules={}
        )
        return Observed(state=state)

    def follow(
        self, tables: Sequence[Table], state: State | None = None, first: int = REFERENCE_WINDOWS
    ) -> tuple[list[int], list[Moved]]:
        """Send a window of each table; return the places of alarms, and what the last one named first."""
        state = self.detector.start() if state is None else state
        alarms: list[int] = []
        moved: list[Moved] = []
        for place, table in enumerate(tables):
            measured = self.detector.contrasts.measure(self.window(table), self.cuts)
            state, said = self.detector.update(state, measured, self.start_ms(first + place))
            if said.alarm:
                alarms.append(place)
                moved = list(said.moved)
                if place >= BEFORE and len(tables) == BEFORE + MOST:
                    break
        return alarms, moved

    def sentence(self, moved: Moved) -> str:
        """What the product says of it."""
        sources = {source.name: source for source in self.detector.contrasts.sources}
        return sentence(moved, sources[moved.source])


def at(table: Table, places: npt.NDArray[np.int64]) -> Table:
    """Some pictures of a table."""
    return {name: column[places] for name, column in table.items()}


def measure(
    plain: Table, changed: Mapping[str, Table], *, splits: int, quiet_windows: int
) -> dict[str, Any]:
    """Return the figures for descriptors of the same pictures, unchanged and changed."""
    count = len(plain["brightness"])
    false_alarms, allowed = 0, 0.0
    delays: dict[str, list[int]] = {name: [] for name in changed}
    blamed: dict[str, Counter[str]] = {name: Counter() for name in changed}
    said: dict[str, str] = {}
    for split in range(splits):
        order = np.random.default_rng(split).permutation(count)
        first, second = order[: count // 2], order[count // 2 :]
        world = World(at(plain, first), len(second), split)
        other = at(plain, second)
        alarms, _ = world.follow([other] * quiet_windows)
        false_alarms += len(alarms)
        allowed += quiet_windows / world.windows_per_alarm
        for name, table in changed.items():
            sent = [other] * BEFORE + [at(table, second)] * MOST
            alarms, moved = world.follow(sent)
            before = [place for place in alarms if place < BEFORE]
            false_alarms += len(before)
            allowed += BEFORE / world.windows_per_alarm
            if len(alarms) > len(before):
                delays[name].append(alarms[-1] - BEFORE + 1)
                blamed[name][moved[0].source] += 1
                said[name] = world.sentence(moved[0])
    return {
        "splits": splits,
        "false_alarms": false_alarms,
        "allowed": round(allowed, 2),
        "changes": {
            name: {
                "found": len(delays[name]),
                "delay_windows": statistics.median(delays[name]) if delays[name] else None,
                "blamed": blamed[name].most_common(1)[0][0] if blamed[name] else None,
                "said": said.get(name),
            }
            for name in changed
        },
    }


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = rig.options(__doc__, "one split")
    parser.add_argument(
        "--data",
        type=Path,
        default=rig.ROOT.parent / "shared" / "data",
        help="folder with images_cat_dog (default: shared/data beside the repository)",
    )
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    asked = arguments()
    archive = asked.data / ARCHIVE
    if not archive.is_file():
        rig.show({"skipped": f"no {archive}; give --data"}, as_json=asked.json)
        return
    images = load(archive)
    changes = CHANGES | SAVED
    found = measure(
        described(images),
        {name: described([change(image) for image in images]) for name, change in changes.items()},
        splits=1 if asked.quick else SPLITS,
        quiet_windows=QUICK_QUIET_WINDOWS if asked.quick else QUIET_WINDOWS,
    )
    found = {"images": len(images), **found}
    if asked.json:
        rig.show(found, as_json=True)
        return
    rig.show({k: v for k, v in found.items() if k != "changes"}, as_json=False)
    print(f"\n{'change':24} {'found':>7} {'delay':>6}  blamed")
    for name, one in found["changes"].items():
        delay = "–" if one["delay_windows"] is None else f"{one['delay_windows']:g}"
        print(f"{name:24} {one['found']:>3} of {found['splits']} {delay:>5}  {one['blamed']}")
        print(f"{'':24} {one['said']}")


if __name__ == "__main__":
    main()
