"""Hot operations: one folder each, with a readable reference beside its native or GPU version.

The references of `stream_step` and `event_models` are the learners themselves, in `agents`. Nothing here
imports the rest of streamwise.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NativeInfo", "native_info"]


@dataclass(frozen=True)
class NativeInfo:
    """What the native extension says of itself: version, instruction set in use, compiler."""

    version: str
    instruction_set: str
    compiler: str


def native_info() -> NativeInfo | None:
    """Return what the native extension reports, or None where streamwise was built without it."""
    try:
        from streamwise.kernels import _native
    except ImportError:
        return None
    return NativeInfo(_native.version(), _native.instruction_set(), _native.compiler())
