"""Descriptors of sound: how loud, how bright, how much silence."""

from typing import Any

import numpy as np

from trimtab.sdk.describe.inputs import DescriptorError, Floats, finite_floats, named

SAMPLES_MAX = 2**25
"""Samples of one call, all channels: 33.5 million, 12 minutes at 48 kHz."""
RATE_HZ_MAX = 1_000_000
FRAME_S = 0.02
"""Silence is looked for in frames of this length."""
SILENCE_DBFS = -50.0
FLOOR_DBFS = -120.0
"""What is softer counts as this loud: digital silence has no level."""
CLIPPED_FROM = 0.999
OVERSHOOT = 2.0
"""Floats up to this size are taken for sound that was turned up too far, beyond it for another scale."""
_SPECTRUM_SAMPLES = 2_048


def describe_audio(
    samples: Any, rate_hz: float, *, silence_dbfs: float = SILENCE_DBFS, prefix: str = ""
) -> dict[str, float]:
    """Describe a sound of shape (n,) or (n, channels): floats from -1 to 1, or int16. Channels are averaged.

    The result has these names, each after `prefix`:

    level_dbfs: root mean square relative to full scale; a sine of full scale has -3.01 (AES17 adds 3 to that).
    peak: largest absolute value. clipped_share: share of samples at full scale.
    spectral_centroid_hz: mean frequency, weighted by the power spectrum (Welch 1967: frames of
        2,048 samples that overlap by half, Hann window); NaN without power.
    zero_crossing_rate: share of neighbouring samples of different sign (Kedem 1986).
    silence_share: share of frames of FRAME_S whose level is below `silence_dbfs`.
    duration_s: n / rate_hz.

    Raises:
        DescriptorError: another shape or type, no samples, NaN, values that are no sound from -1 to 1,
            a rate that is none, or more than SAMPLES_MAX samples.

    """
    sound = _sound(samples)
    if not 1 <= rate_hz <= RATE_HZ_MAX:
        raise DescriptorError(f"rate_hz {rate_hz}; give 1 to {RATE_HZ_MAX} samples per second.")
    n = sound.size
    signs = sound >= 0
    return named(
        prefix,
        {
            "level_dbfs": _level_dbfs(np.mean(sound**2)),
            "peak": np.abs(sound).max(),
            "clipped_share": np.mean(np.abs(sound) >= CLIPPED_FROM),
            "spectral_centroid_hz": _centroid_hz(sound, rate_hz),
            "zero_crossing_rate": np.mean(signs[1:] != signs[:-1]) if n > 1 else 0.0,
            "silence_share": _silence_share(sound, rate_hz, silence_dbfs),
            "duration_s": n / rate_hz,
        },
    )


def _sound(samples: Any) -> Floats:
    """Return the mean of the channels as floats, shape (n,)."""
    array = np.asarray(samples)
    if array.ndim not in (1, 2) or not array.size:
        raise DescriptorError(f"The sound has shape {array.shape}; give (n,) or (n, channels).")
    if array.size > SAMPLES_MAX:
        raise DescriptorError(
            f"{array.size} samples; the limit of one call is {SAMPLES_MAX}. Give a part of the sound."
        )
    if array.dtype == np.int16:
        values: Floats = array / 32_768
    elif array.dtype.kind == "f":
        values = finite_floats(array, "The sound")
        if np.abs(values).max() > OVERSHOOT:
            raise DescriptorError(
                f"Float samples up to {np.abs(values).max():g}; give int16, or floats from -1 to 1."
            )
    else:
        raise DescriptorError(f"Samples of type {array.dtype}; give int16, or floats from -1 to 1.")
    if values.ndim == 2:
        if values.shape[1] > values.shape[0]:
            raise DescriptorError(
                f"{values.shape[1]} channels of {values.shape[0]} samples; give (n, channels), "
                "which may be the transpose of what you have."
            )
        values = values.mean(axis=1)
    return values


def _level_dbfs(power: Any) -> Floats:
    """Return the level of a mean square, or of many."""
    least = 10 ** (FLOOR_DBFS / 10)
    level: Floats = 10 * np.log10(np.maximum(power, least))
    return level


def _silence_share(sound: Floats, rate_hz: float, silence_dbfs: float) -> float:
    length = min(max(1, round(rate_hz * FRAME_S)), sound.size)
    frames = sound[: sound.size // length * length].reshape(-1, length)
    return float(np.mean(_level_dbfs((frames**2).mean(axis=1)) < silence_dbfs))


def _centroid_hz(sound: Floats, rate_hz: float) -> float:
    length = min(_SPECTRUM_SAMPLES, sound.size)
    window = np.hanning(length + 2)[1:-1]  # without its zeros: one sample has a spectrum, too
    step = max(1, length // 2)
    count = (sound.size - length) // step + 1
    power = np.zeros(length // 2 + 1)
    for first in range(0, count, 512):  # bounded memory, whatever the length
        starts = np.arange(first, min(first + 512, count)) * step
        frames = sound[starts[:, None] + np.arange(length)]
        power += (np.abs(np.fft.rfft(frames * window, axis=1)) ** 2).sum(axis=0)
    total = float(power.sum())
    if total <= 0:
        return float("nan")
    return float(power @ np.fft.rfftfreq(length, 1 / rate_hz)) / total
