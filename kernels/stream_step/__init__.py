"""One streaming update as one native call: forward, backward into the traces, step-size rule, normalizers.

The definition is the torch back end of the learners in `agents`, which also describes networks to this
engine; tests hold the two against each other. `learners.inl` holds the learners, `network.inl` their
networks, `rules.inl` the step-size rules, all compiled once per instruction set; `native.cpp` checks what
Python hands over.
"""

from __future__ import annotations

from typing import Any

from streamwise.kernels import native_info

__all__ = ["INSTRUCTION_SETS", "make_stream_step"]

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
"""Compiled variants, narrowest first; which of them this processor runs, `streamwise doctor` says."""


def make_stream_step(spec: dict[str, Any], instruction_set: str | None = None) -> Any:
    """Return the native step for a learner described by `spec`, or None where the extension is not built.

    instruction_set: a variant no wider than this processor's own, to compare them; by default the widest.
    Raises ValueError or TypeError, naming the entry, for an array of the wrong dtype, shape, device or
    layout, and ValueError for a network whose layers do not fit together.
    """
    info = native_info()
    if info is None:
        return None
    widest = info.instruction_set if info.instruction_set in INSTRUCTION_SETS else "baseline"
    chosen = instruction_set or widest
    if chosen not in INSTRUCTION_SETS or INSTRUCTION_SETS.index(chosen) > INSTRUCTION_SETS.index(widest):
        raise ValueError(f"instruction set {chosen!r} cannot be used here; the widest is {widest!r}.")
    from streamwise.kernels import _native

    return _native.StreamStep(spec, chosen)
