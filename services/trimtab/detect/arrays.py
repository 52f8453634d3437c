"""Values that hold arrays, as bytes: msgpack with each array as (type, shape, bytes), compressed.

Equal values give equal bytes, and the floats come back bit for bit, so that a replay from stored bytes goes
the way the first run went.
"""

import hashlib
import zlib
from typing import Any, TypeVar, get_origin

import msgspec
import numpy as np

from trimtab.errors import TrimtabError

T = TypeVar("T")
MOST_BYTES = 64 * 2**20
_KINDS = ("<f8", "<i8", "|b1")


class ArraysError(TrimtabError):
    """Bytes are no stored value of this kind."""


def to_bytes(value: Any) -> bytes:
    """Encode a Struct of arrays, numbers and text."""
    return zlib.compress(msgspec.msgpack.encode(value, enc_hook=_encode), 1)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value, whatever compresses it."""
    return hashlib.sha256(msgspec.msgpack.encode(value, enc_hook=_encode)).hexdigest()


def from_bytes(data: bytes, kind: type[T]) -> T:
    """Decode `to_bytes`. Raises ArraysError."""
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(data, MOST_BYTES)
        if not unpacker.eof:
            raise ArraysError(
                "The stored detector is cut short or too large. Fit the baseline again."
            )
        return msgspec.msgpack.decode(plain, type=kind, dec_hook=_decode)
    except (zlib.error, msgspec.MsgspecError, ValueError) as error:
        raise ArraysError(
            f"This is no stored detector: {error}. Fit the baseline again."
        ) from error


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = value.astype(value.dtype.newbyteorder("<"), copy=False)
        return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()
    raise TypeError(f"A {type(value).__name__} has no stored form; arrays, numbers and text have.")


def _decode(kind: Any, value: Any) -> Any:
    if get_origin(kind) is not np.ndarray:
        raise TypeError(f"{kind} has no stored form; arrays, numbers and text have.")
    dtype, shape, body = value
    if dtype not in _KINDS:
        raise ValueError(f"an array of {dtype!r}")
    return np.frombuffer(body, dtype).reshape(shape)
