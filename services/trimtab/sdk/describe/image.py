"""Descriptors of images: what a camera does to a picture, as a few numbers.

Notation: grey is the mean of the channels; values run from 0 (black) to 1 (white). A grey picture is
described as the colour picture of three equal channels, so that a camera that loses its colours is seen.
"""

from typing import Any

import numpy as np

from trimtab.sdk.describe.inputs import DescriptorError, Floats, as_columns, finite_floats

PIXELS_MAX = 2**24
"""Pixels of all images of one call: 16.8 million, a picture of 4,096 x 4,096."""
GREY = ("brightness", "contrast", "sharpness")
"""What `grey_descriptors` gives."""
DESCRIPTORS = (
    *GREY,
    *("focus", "saturation", "red", "green", "blue", "red_share", "blue_share"),
    *("width", "height", "aspect"),
)


def describe_image(image: Any, *, prefix: str = "") -> dict[str, float]:
    """Describe one image, shape (height, width) or (height, width, 1, 3 or 4 channels).

    Values are uint8, or floats from 0 to 1; channels are red, green, blue; a fourth (alpha) is not
    looked at. The result has the names of DESCRIPTORS, each after `prefix`:

    brightness, contrast, sharpness: see `grey_descriptors`.
    focus: variance of the Laplacian of the grey values over the four neighbours, without the frame
        (Pech-Pacheco et al. 2000). NaN where a side has less than 3 pixels.
    saturation: mean over the pixels of 1 - min / max of the channels (HSV); 0 for black.
    red, green, blue: means of the channels.
    red_share, blue_share: their parts of red + green + blue, which a dimmer light leaves as they are; a third
        each for black.
    width, height: pixels. aspect: width / height.

    Raises:
        DescriptorError: another shape or type, values outside 0 to 1, NaN, or more than PIXELS_MAX
            pixels.

    """
    array = np.asarray(image)
    if array.ndim not in (2, 3):
        raise DescriptorError(
            f"The image has shape {array.shape}; give (height, width) or (height, width, channels)."
        )
    return {name: column[0] for name, column in _columns(array[None], prefix).items()}


def describe_images(images: Any, *, prefix: str = "") -> dict[str, list[float]]:
    """Describe many images: an array (n, height, width) or (n, height, width, channels), or a list of images.

    Those of a list may differ in size. Returns columns of n floats; see `describe_image`.
    Raises DescriptorError.
    """
    if isinstance(images, list | tuple):
        return as_columns([describe_image(image, prefix=prefix) for image in images])
    array = np.asarray(images)
    if array.ndim not in (3, 4):
        raise DescriptorError(
            f"The images have shape {array.shape}; give (n, height, width), (n, height, width, channels) "
            "or a list of images."
        )
    return _columns(array, prefix)


def grey_descriptors(images: Any) -> dict[str, list[float]]:
    """Brightness, contrast and sharpness of images of any scale of values; lists of n floats.

    `images` has shape (n, height, width) or (n, height, width, channels). brightness: mean grey value.
    contrast: standard deviation of the grey values (RMS contrast, Peli 1990, eq. 3). sharpness: mean
    absolute difference of neighbouring grey values, relative to the contrast, so that a darker
    picture is not called blurred.

    Raises:
        DescriptorError: the array is not (n, height, width) or (n, height, width, channels).

    """
    grey = np.asarray(images, dtype=np.float64)
    if grey.ndim == 4:
        grey = grey.mean(axis=3)
    if grey.ndim != 3:
        raise DescriptorError(
            f"images have shape {np.shape(images)}; give (n, height, width) or "
            "(n, height, width, channels)"
        )
    contrast = grey.std(axis=(1, 2))
    across = _mean_step(grey, 2)
    down = _mean_step(grey, 1)
    sharpness = np.divide(
        (across + down) / 2, contrast, out=np.zeros_like(contrast), where=contrast > 0
    )
    return {
        "brightness": grey.mean(axis=(1, 2)).tolist(),
        "contrast": contrast.tolist(),
        "sharpness": sharpness.tolist(),
    }


def _mean_step(grey: Floats, axis: int) -> Floats:
    """Mean absolute difference of neighbours along an axis, shape (n,); 0 where there are none."""
    if grey.shape[axis] < 2:
        return np.zeros(grey.shape[0])
    steps: Floats = np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2))
    return steps


def _columns(images: Any, prefix: str) -> dict[str, list[float]]:
    # One array per channel: reductions over a last axis of three cost five times as much.
    channels = _channels(images)
    grey = channels[0]
    means = [channels[0].mean(axis=(1, 2))] * 3
    saturation = np.zeros(grey.shape[0])
    if len(channels) > 1:
        red, green, blue = channels
        grey = (red + green + blue) / 3
        most = np.maximum(np.maximum(red, green), blue)
        least = np.minimum(np.minimum(red, green), blue)
        saturated = np.divide(most - least, most, out=np.zeros_like(most), where=most > 0)
        saturation = saturated.mean(axis=(1, 2))
        means = [channel.mean(axis=(1, 2)) for channel in channels]
    total = means[0] + means[1] + means[2]
    shares = [
        np.divide(mean, total, out=np.full_like(mean, 1 / 3), where=total > 0) for mean in means
    ]
    n, height, width = grey.shape
    columns: dict[str, list[float]] = {
        **grey_descriptors(grey),
        "focus": _focus(grey).tolist(),
        "saturation": saturation.tolist(),
        "red": means[0].tolist(),
        "green": means[1].tolist(),
        "blue": means[2].tolist(),
        "red_share": shares[0].tolist(),
        "blue_share": shares[2].tolist(),
        "width": [float(width)] * n,
        "height": [float(height)] * n,
        "aspect": [width / height] * n,
    }
    return {f"{prefix}{name}": column for name, column in columns.items()}


def _channels(images: Any) -> list[Floats]:
    """Return the channels (1 or 3) of checked images as floats from 0 to 1, each (n, height, width)."""
    if images.ndim == 3:
        images = images[..., None]
    n, height, width, channels = images.shape
    if not height or not width:
        raise DescriptorError(f"An image of {height} x {width} pixels has nothing to describe.")
    if n * height * width > PIXELS_MAX:
        raise DescriptorError(
            f"{n} images of {height} x {width} pixels; the limit of one call is {PIXELS_MAX} pixels. "
            "Make them smaller, or give fewer at a time."
        )
    if channels not in (1, 3, 4):
        raise DescriptorError(
            f"{channels} channels; give 1 (grey), 3 (red, green, blue) or 4 (with alpha), as the last axis."
        )
    parts = [images[..., channel] for channel in range(min(channels, 3))]
    if images.dtype == np.uint8:
        return [part.astype(np.float64) / 255 for part in parts]
    if images.dtype.kind != "f":
        raise DescriptorError(
            f"Pixels of type {images.dtype}; give uint8, or floats from 0 to 1 "
            "(16-bit values divided by 65535)."
        )
    values = [finite_floats(part, "The image") for part in parts]
    least, most = (min(v.min() for v in values), max(v.max() for v in values)) if n else (0, 1)
    if least < 0 or most > 1:
        raise DescriptorError(
            f"Float values from {least:g} to {most:g}; give uint8, or floats from 0 to 1."
        )
    return values


def _focus(grey: Floats) -> Floats:
    """Variance of the Laplacian, shape (n,)."""
    if min(grey.shape[1:]) < 3:
        return np.full(grey.shape[0], np.nan)
    middle = grey[:, 1:-1, 1:-1]
    laplacian = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] - 4 * middle
    laplacian += grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    focus: Floats = laplacian.var(axis=(1, 2))
    return focus
