"""trimtab: an event-driven drift monitor for production models, and an agent that steers them back.

`from trimtab import InferenceStream` is what a model server needs; it is imported only when asked
for, so that the other processes do not pay for it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.sdk.stream import InferenceStream

__version__ = "0.1.0"
__all__ = ["InferenceStream", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "InferenceStream":
        from trimtab.sdk.stream import InferenceStream

        return InferenceStream
    raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
