"""A worse camera is found by the descriptors of its pictures; two halves of the same pictures are not."""

import importlib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("images")


def made(count, seed=3, size=24):
    """Pictures of coloured blobs under light that varies, as bytes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    images = []
    for _ in range(count):
        values = np.broadcast_to(rng.uniform(40, 160, 3), (size, size, 3)).copy()
        for _ in range(4):
            at_y, at_x, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.3)
            blob = (np.hypot(y - at_y, x - at_x) < radius)[..., None]
            values = np.where(blob, rng.uniform(0, 255, 3), values)
        grain = rng.normal(0, 2, values.shape)
        images.append(np.clip(values + grain, 0, 255).astype(np.uint8))
    return images


BLAMED = {
    "blur, sigma 1 px": {"focus", "sharpness"},
    "three tenths darker": {"brightness", "contrast", "red", "green", "blue", "focus"},
    "warm cast, blue x 0.9": {"blue_share", "blue", "red_share"},
    "half the resolution": {"width", "height"},
}


def test_changes_of_a_camera_are_found_in_made_pictures_and_blamed_on_what_they_change(bench):
    images = made(1_200)
    found = bench.measure(
        bench.described(images),
        {
            name: bench.described([bench.CHANGES[name](image) for image in images])
            for name in BLAMED
        },
        splits=1,
        quiet_windows=120,
    )
    assert found["false_alarms"] == 0
    for name, descriptors in BLAMED.items():
        change = found["changes"][name]
        assert change["found"] == 1, name
        assert change["delay_windows"] <= 12, name
        assert change["blamed"] in descriptors, name


@pytest.mark.slow
@pytest.mark.tensorflow
def test_changes_of_a_camera_are_found_in_pictures_of_cats_and_dogs(bench):
    archive = DATA / bench.ARCHIVE
    if not archive.is_file():
        pytest.skip("images_cat_dog is not beside this repository")
    images = bench.load(archive)
    assert len(images) == 2_000
    names = [*BLAMED, "blur, sigma 0.5 px", "a tenth darker"]
    changed = {
        name: bench.described([bench.CHANGES[name](image) for image in images]) for name in names
    }
    found = bench.measure(bench.described(images), changed, splits=1, quiet_windows=240)
    assert found["false_alarms"] <= 1  # at most 0.6 are expected
    assert {name: found["changes"][name]["found"] for name in names} == dict.fromkeys(names, 1)
    for name, descriptors in BLAMED.items():
        assert found["changes"][name]["blamed"] in descriptors, name
