"""Descriptors of images: what a camera does to a picture, as a few numbers.

They are computed where the image is, and stream as ordinary features, so that pixels never enter
Kafka. Notation: `images` is a float array (n, height, width) or (n, height, width, channels) with
values from 0 to 1.
"""

from typing import Any

DESCRIPTORS = ("brightness", "contrast", "sharpness")


def describe_images(images: Any) -> dict[str, list[float]]:
    """Brightness, contrast and sharpness of each image; lists of n floats.

    brightness: mean grey value. contrast: standard deviation of the grey values (RMS contrast,
    Peli 1990, eq. 3). sharpness: mean absolute difference of neighbouring grey values, relative
    to the contrast, so that a darker picture is not called blurred.

    Raises:
        ValueError: the array is not (n, height, width) or (n, height, width, channels).

    """
    import numpy as np

    grey = np.asarray(images, dtype=np.float64)
    if grey.ndim == 4:
        grey = grey.mean(axis=3)
    if grey.ndim != 3:
        raise ValueError(
            f"images have shape {np.shape(images)}; give (n, height, width) or "
            "(n, height, width, channels)"
        )
    contrast = grey.std(axis=(1, 2))
    across = np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
    down = np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2))
    sharpness = np.divide(
        (across + down) / 2, contrast, out=np.zeros_like(contrast), where=contrast > 0
    )
    return {
        "brightness": grey.mean(axis=(1, 2)).tolist(),
        "contrast": contrast.tolist(),
        "sharpness": sharpness.tolist(),
    }
