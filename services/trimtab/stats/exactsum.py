"""Exact sums of float64 values of any size, without a grid: nothing is rounded and nothing is clamped.

Notation
    x      finite float64; every one is a whole multiple of 2**-UNIT_BITS, and its square of 2**-2 UNIT_BITS
    m, k   |x| = m 2**(k - 53) with a whole m < 2**53, as `frexp` gives them; k >= -1073
    a b c  m = a 2**36 + b 2**18 + c, each below 2**18, so that products of two are below 2**36

Values of one exponent and sign are added piece by piece in float64, which is exact below 2**53; the few
totals are put together as Python integers. CPU: 0.02 microseconds per value at 20,000 values, 2 at 20.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

UNIT_BITS = 1_074
"""The least float64 above 0 is 2**-1074."""

_MANTISSA_BITS = 53
_LEAST_EXPONENT = -1_073
_PIECE_BITS = 18
_BLOCK = 2**15
"""Rows in one pass: 2 a c + b b is below 2**37, and 2**15 of them below 2**53."""
_ROOT_BITS = 64


def exact_moments(values: Floats) -> tuple[int, int, int]:
    """Return (sum of x, of |x|, of x²) of finite values, shape (n,), in any order.

    The first two are in units of 2**-UNIT_BITS, the last in units of 2**-(2 UNIT_BITS).
    """
    total = absolute = squares = 0
    for start in range(0, values.size, _BLOCK):
        for sign, shift, whole, square in _groups(values[start : start + _BLOCK]):
            total += sign * whole << shift
            absolute += whole << shift
            squares += square << 2 * shift
    below = _MANTISSA_BITS - _LEAST_EXPONENT - UNIT_BITS
    return total >> below, absolute >> below, squares >> 2 * below  # these bits are all 0


def _groups(values: Floats) -> Iterator[tuple[int, int, int, int]]:
    """Yield (sign, exponent above the least, sum of m, sum of m²) per exponent and sign."""
    fraction, exponent = np.frexp(values)
    m = np.abs(fraction) * 2.0**_MANTISSA_BITS
    a = np.floor(m * 2.0 ** (-2 * _PIECE_BITS))
    m -= a * 2.0 ** (2 * _PIECE_BITS)
    b = np.floor(m * 2.0**-_PIECE_BITS)
    c = m - b * 2.0**_PIECE_BITS
    least = int(exponent.min())
    key = (exponent - least) * 2 + (fraction < 0)
    present = np.flatnonzero(np.bincount(key))
    pieces = (c, b, a, c * c, b * c, 2 * (a * c) + b * b, a * b, a * a)
    table = [
        np.bincount(key, weights=piece).take(present).astype(np.int64).tolist() for piece in pieces
    ]
    for place, *sums in zip(present.tolist(), *table, strict=True):
        one, two, three, cc, bc, middle, ab, aa = sums
        whole = one + (two << 18) + (three << 36)
        square = cc + (bc << 19) + (middle << 36) + (ab << 55) + (aa << 72)
        yield -1 if place & 1 else 1, place // 2 + least - _LEAST_EXPONENT, whole, square


def root_of_quotient(numerator: int, denominator: int) -> float:
    """Return the float64 nearest to sqrt(numerator / denominator), for numerator >= 0, denominator > 0.

    The true root is rounded once. Raises OverflowError when it is beyond float64.
    """
    # The root of the quotient times 4**bits has some 64 bits; one more says whether anything is left.
    bits = _ROOT_BITS - (numerator.bit_length() - denominator.bit_length()) // 2
    above, below = (
        (numerator << 2 * bits, denominator) if bits >= 0 else (numerator, denominator << -2 * bits)
    )
    root = math.isqrt(above // below)
    root = 2 * root + (root * root * below != above)
    return root / (1 << (bits + 1)) if bits >= -1 else float(root << (-bits - 1))
