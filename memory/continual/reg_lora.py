"""RegLoRA: what earlier worlds changed most is left alone by the low-rank update of the present one.

    W x + α/r · B A x          A [r, in], B [out, r] are trained, B from zero; W is not
    consolidate():  ΔW = α/r · B A;  S ← S ∪ the largest 2% of |ΔW|;  W ← W + ΔW;  A anew, B = 0
    loss + λ · mean over layers of mean over S of |(B A)_rc|

Only the entries of S are computed, |S| r multiplications in place of out · in · r. Departures from the
published code: an entry is in S once, not once for each world that chose it; S is at most 30% of a layer, the
entries that were changed least going first; and until the first `consolidate`, as nothing is there to be
kept, W itself is trained (published: a large network that is there already).

Source: Chen et al. (2025), "SEFE: superficial and essential forgetting eliminator for multimodal continual
instruction tuning", arXiv:2505.02486.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from streamwise.memory.continual.draws import generator_of
from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["LowRank", "RegLoRA"]


class LowRank(nn.Module):
    """A linear layer whose weights change by a product of two thin matrices. linear: what it begins as."""

    start: Tensor  # W, when this change began

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.weight = nn.Parameter(linear.weight.detach().clone())
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())
        self.down = nn.Parameter(torch.zeros(rank, inputs), requires_grad=False)  # A
        self.up = nn.Parameter(torch.zeros(outputs, rank), requires_grad=False)  # B
        self.scale = alpha / rank
        self.register_buffer("start", self.weight.detach().clone())
        self.protected = torch.zeros(0, dtype=torch.int64)  # S, places in W
        self.changed = torch.zeros(0)  # how much each of them was, when it was chosen

    def forward(self, inputs: Tensor) -> Tensor:
        """Return outputs [n, out] for inputs [n, in]."""
        return (
            nn.functional.linear(inputs, self.weight, self.bias)
            + self.scale * (inputs @ self.down.T) @ self.up.T
        )

    def penalty(self) -> Tensor:
        """Return the mean of |B A| over the protected entries, a scalar; zero if there are none."""
        if not len(self.protected):
            return self.up.new_zeros(())
        rows, columns = self.protected // self.down.shape[1], self.protected % self.down.shape[1]
        return (self.up[rows] * self.down[:, columns].T).sum(1).abs().mean()

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
        self.down.normal_(std=self.down.shape[1] ** -0.5, generator=generator)
        self.train_low_rank()

    def train_low_rank(self) -> None:
        """Leave the weights alone from now on, and train the two thin matrices."""
        self.weight.requires_grad_(False)
        self.up.requires_grad_(True)
        self.down.requires_grad_(True)


class RegLoRA(Wrapped):
    """Replaces every linear layer of the learner's network, and holds what earlier worlds changed most.

    rank: r. alpha: α; None for the rank. strength: λ. share, most: of a layer's entries, protected at each
    `consolidate`, and in all.
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
        self.layers = self._replace(rank, float(rank) if alpha is None else alpha)
        self.plain = learner.objective
        self.objective = self._held

    def _replace(self, rank: int, alpha: float) -> dict[str, LowRank]:
        layers = {}
        for path, module in list(self.network.named_modules()):
            if isinstance(module, nn.Linear):
                parent, _, name = path.rpartition(".")
                layers[path] = LowRank(module, rank, alpha)
                setattr(self.network.get_submodule(parent), name, layers[path])
        if not layers:
            raise ValueError("the network has no linear layer to change by low rank.")
        return layers

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
