"""Exact sums: integers in place of floats, so that any order of adding gives the same bytes.

Floats do not form a monoid: (a + b) + c may differ from a + (b + c). A value x is therefore rounded
once, by itself, to q = rint((x - origin) * 2**exponent), and only integers are added.

Notation
    q      float64 array (n,), every element an integer with |q| <= CLAMP
    CLAMP  2**36: a value beyond it is counted as `clamped` and enters the sums as ±CLAMP
"""

import numpy as np
import numpy.typing as npt

CLAMP = float(2**36)
MAX_ROWS = 2**26
"""Rows in one call: beyond it the 64-bit partial sums below could overflow."""

_EXACT = float(2**53)  # every integer up to here is a float64
_LEAST_BLOCK = 256
_HALF_BITS = 18
_HALF = 2**_HALF_BITS


def quantise(
    values: npt.NDArray[np.float64], origin: float, exponent: int
) -> tuple[npt.NDArray[np.float64], int]:
    """Return (q, number of clamped values) for finite values, shape (n,)."""
    with np.errstate(over="ignore"):
        q = np.rint((values - origin) * 2.0**exponent)
    clamped = int(np.count_nonzero(np.abs(q) > CLAMP))
    if clamped:
        q = np.clip(q, -CLAMP, CLAMP)
    return q, clamped


def exact_sums(q: npt.NDArray[np.float64]) -> tuple[int, int]:
    """Return (sum of q, sum of q²) exactly, whatever the order of q.

    Raises ValueError beyond MAX_ROWS rows.
    """
    if q.size == 0:
        return 0, 0
    return _exact_sums(q, max(float(q.max()), -float(q.min())))


def moments(
    values: npt.NDArray[np.float64], low: float, high: float, origin: float, exponent: int
) -> tuple[int, int, int]:
    """Return (sum of q, sum of q², clamped values) of finite values, shape (n,), in any order.

    What `quantise` and `exact_sums` give, in fewer passes: the largest |q| is that of the least or the
    greatest value, `low` and `high`.
    """
    with np.errstate(over="ignore"):
        q = values - origin
        q *= 2.0**exponent
        ends = np.rint((np.array([low, high]) - origin) * 2.0**exponent)
    np.rint(q, out=q)
    largest = float(np.abs(ends).max())
    clamped = 0
    if largest > CLAMP:
        clamped = int(np.count_nonzero(np.abs(q) > CLAMP))
        np.clip(q, -CLAMP, CLAMP, out=q)
        largest = CLAMP
    return *_exact_sums(q, largest), clamped


def _exact_sums(q: npt.NDArray[np.float64], largest: float) -> tuple[int, int]:
    if q.size > MAX_ROWS:
        raise ValueError(f"{q.size} rows in one call, at most {MAX_ROWS}; split the batch.")
    # As long as every partial sum is an integer below 2**53, float64 addition is exact in any order.
    if largest * largest * q.size < _EXACT:
        return int(q.sum()), int(_squares(q))
    rows = int(_EXACT / (largest * largest)) - 1
    if rows >= _LEAST_BLOCK:
        blocks = [q[start : start + rows] for start in range(0, q.size, rows)]
        return sum(int(block.sum()) for block in blocks), sum(
            int(_squares(block)) for block in blocks
        )
    # q = high * 2**18 + low with 0 <= low < 2**18: each product stays below 2**36.
    whole = q.astype(np.int64)
    high, low = whole >> _HALF_BITS, whole & (_HALF - 1)
    squares = int(high @ high) * _HALF * _HALF + 2 * int(high @ low) * _HALF + int(low @ low)
    return int(whole.sum()), squares


def _squares(q: npt.NDArray[np.float64]) -> float:
    """Return the sum of q². Not `q @ q`: BLAS shares long products out to threads, which wait spinning."""
    return float(np.einsum("i,i", q, q))


def int_to_bytes(value: int) -> bytes:
    """Encode any integer, canonically: big-endian two's complement of the least length; 0 is b""."""
    return b"" if value == 0 else value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True)


def int_from_bytes(data: bytes) -> int:
    """Decode `int_to_bytes`."""
    return int.from_bytes(data, "big", signed=True)
