"""The recurrence of the neural Hawkes process, as the formulas are: what other implementations are held to.

Symbols: B sequences, N steps of the longest, D width, G groups of S times that see the same steps.

    c(t) = c̄ + (c - c̄) exp(-δ t),    h(t) = o ⊙ tanh(c(t)),    t since the step before, from zeros on

    the seven gates of a step are  x + W h(t),  and set
    c ← σ(f) ⊙ c(t) + σ(i) ⊙ tanh(z),    c̄ ← σ(f̄) ⊙ c̄ + σ(ī) ⊙ tanh(z),    o ← σ(o),    δ ← log(1 + exp(d))

in the order f, f̄, i, ī, o, z, d. Source: Mei and Eisner (2017), "The neural Hawkes process",
arXiv:1612.09328.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["GATES", "Recurrence", "recur", "states"]

GATES = 7


class Recurrence(NamedTuple):
    """What each step left behind, [B, N, D] each; zeros at pads."""

    cells: Tensor
    targets: Tensor
    decays: Tensor
    outputs: Tensor


def recur(inputs: Tensor, weight: Tensor, gaps: Tensor, lengths: Tensor) -> Recurrence:
    """Take the steps of some sequences, one after the other.

    inputs: [B, N, 7 D], of the gates. weight: [7 D, D]. gaps: [B, N], from the step before. lengths: int64
    [B]; the steps of a sequence beyond its length are pads.
    """
    cell = target = decay = output = inputs.new_zeros(len(inputs), weight.shape[1])
    steps = []
    for of_input, gap in zip(inputs.unbind(1), gaps.unbind(1), strict=True):
        cell = decayed(cell, target, decay, gap[:, None])
        gates = of_input + (output * cell.tanh()) @ weight.T
        keep, keep_target, add, add_target, output, update, decay = gates.chunk(GATES, -1)
        update, output = update.tanh(), output.sigmoid()
        cell = keep.sigmoid() * cell + add.sigmoid() * update
        target = keep_target.sigmoid() * target + add_target.sigmoid() * update
        decay = nn.functional.softplus(decay)
        steps.append((cell, target, decay, output))
    pads = torch.arange(inputs.shape[1], device=lengths.device) >= lengths[:, None]
    parts = (torch.stack(part, 1).masked_fill(pads[..., None], 0.0) for part in zip(*steps, strict=True))
    return Recurrence(*parts)


def states(recurrence: Recurrence, seen: Tensor, gaps: Tensor) -> Tensor:
    """Return h at some times, [B, G, S, D].

    seen: int64 [B, G], which step is the last before the times of a group. gaps: [B, G, S], since it.
    """
    sequence = torch.arange(len(seen), device=seen.device)[:, None]
    cell, target, decay, output = (part[sequence, seen][:, :, None] for part in recurrence)
    return output * decayed(cell, target, decay, gaps[..., None]).tanh()


def decayed(cell: Tensor, target: Tensor, decay: Tensor, gap: Tensor) -> Tensor:
    """Return c(t), a gap after the step that set the rest."""
    return target + (cell - target) * torch.exp(-decay * gap)
