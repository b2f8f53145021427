"""RegLoRA: what earlier worlds changed most is left alone by the low-rank update of the present one.

    (W + α/r · B A) x         A [r, in], B [out, r] are trained, B from zero; W is not
    consolidate():  ΔW = α/r · B A;  S ← S ∪ the largest 2% of |ΔW|;  W ← W + ΔW;  A anew, B = 0
    loss + λ · mean over matrices of mean over S of |(B A)_rc|

Of the penalty only the entries of S are computed, |S| r multiplications in place of out · in · r. Departures
from the published code: an entry is in S once, not once for each world that chose it; S is at most 30% of a
matrix, the entries that were changed least going first; and until the first `consolidate`, as nothing is
there to be kept, W itself is trained (published: a large network that is there already).

The matrices are those of linear layers, and in an event model those that multiply its states: of gates, or of
queries, keys and values, and of the head. A stack of matrices, one for each head of attention, has an A and a
B for each and one S. The table of what types of events are read as is none of them: a type moves its own row
and no other. It is trained as before, and so are biases.

Source: Chen et al. (2025), "SEFE: superficial and essential forgetting eliminator for multimodal continual
instruction tuning", arXiv:2505.02486.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamwise.memory.continual.draws import generator_of
from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["LowRank", "RegLoRA", "matrices"]


def matrices(network: nn.Module) -> dict[str, Any]:
    """Return the modules, by path, whose `weight` multiplies states, [..., rows, columns].

    These are linear layers and, if `network.model` is an intensity model with a head, its modules, too.
    """
    events: Any = getattr(network, "model", None)
    of_events = set(events.modules()) if hasattr(events, "head") and hasattr(events, "intensities") else set()

    def wanted(module: Any) -> bool:
        weight = getattr(module, "weight", None)
        stack = isinstance(weight, nn.Parameter) and weight.ndim >= 2
        return stack and (isinstance(module, nn.Linear) or module in of_events)

    return {path: module for path, module in network.named_modules() if wanted(module)}


class LowRank:
    """Makes the weight of a module, [..., rows, columns], change by a product of two thin matrices.

    The module's class becomes one whose `weight` is W + α/r · B A: whatever it multiplies, it need not know.
    W, A and B are parameters of its own, so that who goes through modules and their parameters finds them.
    """

    def __init__(self, module: Any, rank: int, alpha: float) -> None:
        self.weight: nn.Parameter = module.weight  # W
        *stack, rows, columns = self.weight.shape
        self.down = nn.Parameter(torch.zeros(*stack, rank, columns), requires_grad=False)  # A
        self.up = nn.Parameter(torch.zeros(*stack, rows, rank), requires_grad=False)  # B
        self.start = self.weight.detach().clone()  # W, when this change began
        self.scale = alpha / rank
        self.protected = torch.zeros(0, dtype=torch.int64)  # S, places in W
        self.changed = torch.zeros(0)  # how much each of them was, when it was chosen
        module.down, module.up = self.down, self.up
        module.register_buffer("start", self.start)
        module.__class__ = _with_low_rank(type(module), self.scale)

    def penalty(self) -> Tensor:
        """Return the mean of |B A| over the protected entries, a scalar; zero if there are none."""
        if not len(self.protected):
            return self.up.new_zeros(())
        rows, columns = self.weight.shape[-2:]
        row, column = self.protected // columns, self.protected % columns  # rows of all matrices, in a row
        above = self.up.flatten(0, -2)[row]
        below = self.down.mT.reshape(-1, above.shape[1])[row // rows * columns + column]
        return (above * below).sum(1).abs().mean()

    @torch.no_grad()
    def merge(self, share: float, most: float, generator: torch.Generator) -> None:
        """Protect what has changed most, make the change part of the weights, and begin another one."""
        change = self.weight - self.start + self.scale * self.up @ self.down
        size = change.abs().flatten()
        size, places = size.topk(max(1, round(share * len(size))))
        known = torch.isin(places, self.protected)
        self.protected = torch.cat([self.protected, places[~known]])
        self.changed = torch.cat([self.changed, size[~known]])
        kept = self.changed.argsort(descending=True, stable=True)[: int(most * self.weight.numel())]
        self.protected, self.changed = self.protected[kept], self.changed[kept]
        self.weight.copy_(self.start + change)
        self.start.copy_(self.weight)
        self.up.zero_()
        self.down.normal_(std=self.down.shape[-1] ** -0.5, generator=generator)
        self.train_low_rank()

    def train_low_rank(self) -> None:
        """Leave the weights alone from now on, and train the two thin matrices."""
        self.weight.requires_grad_(False)
        self.up.requires_grad_(True)
        self.down.requires_grad_(True)


def _with_low_rank(kind: type, scale: float) -> type:
    """Return a class of modules like `kind` whose weight has the product of two thin matrices added to it."""

    def weight(module: Any) -> Tensor:
        found: Tensor = module._parameters["weight"] + scale * module.up @ module.down
        return found

    return type(f"LowRank{kind.__name__}", (kind,), {"weight": property(weight)})


class RegLoRA(Wrapped):
    """Changes matrices of the learner's network by low rank, and holds what earlier worlds changed most.

    rank: r. alpha: α; None for the rank. strength: λ. share, most: of a matrix's entries, protected at each
    `consolidate`, and in all. Raises ValueError for a network without such matrices, see `matrices`.
    """

    name = "reg_lora"

    def __init__(
        self,
        learner: Trainable,
        *,
        rank: int = 8,
        alpha: float | None = None,
        strength: float = 10.0,
        share: float = 0.02,
        most: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        if rank < 1 or not 0.0 < share <= 1.0 or not 0.0 <= most <= 1.0:
            raise ValueError(f"rank is {rank}, share {share}, most {most}; use 1 or more, and shares.")
        self.strength, self.share, self.most, self.seed, self.merges = strength, share, most, seed, 0
        alpha = float(rank) if alpha is None else alpha
        self.layers = {path: LowRank(module, rank, alpha) for path, module in matrices(self.network).items()}
        if not self.layers:
            raise ValueError("the network has no linear layer to change by low rank, and is no event model.")
        self.plain = learner.objective
        self.objective = self._held

    def _held(self, inputs: Tensor, targets: Tensor) -> Tensor:
        penalties = [layer.penalty() for layer in self.layers.values()]
        return self.plain(inputs, targets) + self.strength * torch.stack(penalties).mean()

    def consolidate(self) -> None:
        """Keep what this world has changed, and begin another change."""
        super().consolidate()
        self.merges += 1
        generator = generator_of(self.seed, self.merges)
        for layer in self.layers.values():
            layer.merge(self.share, self.most, generator)

    def own_state(self) -> dict[str, Tensor]:
        """Return what is protected; the matrices are in the network."""
        state = {"merges": torch.tensor(self.merges)}
        for path, layer in self.layers.items():
            state[f"protected.{path}"], state[f"changed.{path}"] = (
                layer.protected.clone(),
                layer.changed.clone(),
            )
        return state

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self.merges = int(state["merges"])
        for path, layer in self.layers.items():
            layer.protected = state[f"protected.{path}"].clone()
            layer.changed = state[f"changed.{path}"].clone()
            if self.merges:
                layer.train_low_rank()
