"""The demo's camera: blur, loss of contrast and noise applied to small grey images.

Notation: images are float arrays (n, height, width) with values from 0 (black) to 1 (white).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]


@dataclass(frozen=True)
class Lens:
    """A state of the camera.

    Attributes:
        blur_sigma: standard deviation of the Gaussian blur, in pixels.
        contrast: factor on the values' distance from their image's mean; 1 keeps them.
        noise: standard deviation of additive Gaussian noise, in units of the full range.

    """

    blur_sigma: float = 0.0
    contrast: float = 1.0
    noise: float = 0.02


CLEAN = Lens()
# Inputs clearly move, the classifier does not suffer; then it does; then badly.
STEPS = (
    Lens(blur_sigma=0.4, contrast=0.85),
    Lens(blur_sigma=0.65, contrast=0.65),
    Lens(blur_sigma=0.8, contrast=0.5),
)


def degrade(
    images01: NDArray[np.floating],
    blur_sigma: float,
    contrast: float,
    noise: float,
    rng: np.random.Generator,
) -> Images:
    """Return the images as a worse camera sees them, float32 (n, height, width) within [0, 1].

    Blur first (the lens; black beyond the frame), then contrast about each image's own mean (stray
    light: dark parts rise, bright parts fall), then noise, then the sensor's limits. The argument
    is not changed.

    Raises:
        ValueError: the images are not (n, height, width), or a parameter is negative.

    """
    if images01.ndim != 3:
        raise ValueError(f"images have shape {images01.shape}; give (n, height, width)")
    if min(blur_sigma, contrast, noise) < 0:
        raise ValueError("blur, contrast and noise cannot be negative; give 0 to switch one off")
    from scipy.ndimage import gaussian_filter

    seen = np.asarray(images01, dtype=np.float32)
    if blur_sigma > 0:
        seen = gaussian_filter(seen, sigma=(0.0, blur_sigma, blur_sigma), mode="constant")
    mean = seen.mean(axis=(1, 2), keepdims=True)
    seen = mean + (seen - mean) * np.float32(contrast)
    if noise > 0:
        seen = seen + rng.normal(0.0, noise, size=seen.shape).astype(np.float32)
    clipped: Images = np.clip(seen, 0.0, 1.0).astype(np.float32, copy=False)
    return clipped


def see(images01: NDArray[np.floating], lens: Lens, rng: np.random.Generator) -> Images:
    """Apply `degrade` with the lens's parameters."""
    return degrade(images01, lens.blur_sigma, lens.contrast, lens.noise, rng)
