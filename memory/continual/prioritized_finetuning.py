"""Forgetting prioritized finetuning: a few modules forget most, so these few are refreshed, now and then.

    every τ updates, for n steps:        (x, y, z) ~ a balanced draw of the buffer
        loss = L(x, y) + μ/outputs |f(x) − z|²     z: what the network said of x when it came
        only parameters of sensitive modules move

τ = ∞ and one such round at the end is FPF, the other k-FPF, with μ > 0 k-FPF-KD. Between rounds nothing is
replayed. Which modules: normalisation and the last layer, if nothing else is said; in a small network without
normalisation, refreshing all is better (measured: docs/continual.md). How much each module moves at a change
is what `Sensitivity` measures.

No published code was found: how long, how often and how much are our choices. Buffers of modules, such as
running means, stay as they are in a round.

Source: Zhao et al. (2023), "Does continual learning equally forget all parameters?", arXiv:2304.04158.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from streamwise.memory.continual.reservoir import Reservoir
from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["PrioritizedFinetuning", "Sensitivity", "sensitive_modules"]


def sensitive_modules(network: nn.Module) -> tuple[str, ...]:
    """Return the names of normalisation modules and of the last module that has parameters of its own."""
    own = [name for name, module in network.named_modules() if any(True for _ in module.parameters(False))]
    modules = dict(network.named_modules())
    norms = [name for name in own if "Norm" in type(modules[name]).__name__]
    return tuple(dict.fromkeys([*norms, own[-1]]))


class PrioritizedFinetuning(Wrapped):
    """Refreshes sensitive modules on a reservoir of samples, every `every` updates, and at `consolidate`.

    capacity: samples that are kept. every: τ, updates between rounds; 0: only at `consolidate`. steps,
    final_steps: n of a round, and of one at `consolidate`. batch_size: of a step. modules: names of those
    that are refreshed; None: see `sensitive_modules`; ("",): all. step_size: of a step. distillation: μ.
    """

    name = "finetuning"

    def __init__(
        self,
        learner: Trainable,
        *,
        capacity: int = 200,
        every: int = 20,
        steps: int = 50,
        final_steps: int = 300,
        batch_size: int = 32,
        modules: Sequence[str] | None = None,
        step_size: float = 0.1,
        distillation: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        for name, number, least in (("every", every, 0), ("steps", steps, 1), ("batch_size", batch_size, 1)):
            if number < least:
                raise ValueError(f"{name} is {number}; use {least} or more.")
        self.reservoir = Reservoir(capacity, seed)
        self.every, self.steps, self.final_steps, self.batch_size = every, steps, final_steps, batch_size
        self.modules = sensitive_modules(self.network) if modules is None else tuple(modules)
        self.step_size, self.distillation = step_size, distillation
        self.said = torch.zeros(0)  # z, [samples, outputs], in the places of the reservoir
        self.rounds = 0
        self.plain = learner.objective
        self.objective = self._remembering
        known = dict(self.network.named_modules())
        for module in self.modules:
            if module not in known:
                raise ValueError(
                    f"the network has no module {module!r}; it has {', '.join(filter(None, known))}."
                )

    def _remembering(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = self.plain(inputs, targets)
        said = self.scores(inputs)
        for input, target, output in zip(inputs, targets, said, strict=True):
            place = self.reservoir.add(input, target)
            if place is None:
                continue
            if place == len(self.said):
                self.said = torch.cat([self.said, output[None]]) if place else output[None].clone()
            else:
                self.said[place] = output
        return loss

    def learn_one(self, sample: object, /) -> Mapping[str, float]:
        """Score a sample and learn from it; now and then, refresh."""
        before = self.updates
        metrics = super().learn_one(sample)
        if self.every and self.updates > before and self.updates % self.every == 0:
            self.finetune(self.steps)
        return metrics

    def consolidate(self) -> None:
        """Refresh for longer."""
        super().consolidate()
        self.finetune(self.final_steps)

    def finetune(self, steps: int) -> None:
        """Make one round of so many steps."""
        was_training = self.network.training
        self.network.eval()
        starts = tuple(f"{name}." if name else "" for name in self.modules)
        moving = [
            weight
            for name, weight in self.network.named_parameters()
            if name.startswith(starts) and weight.requires_grad
        ]
        for _ in range(steps if len(self.reservoir) else 0):
            rows = self.reservoir.balanced_rows(self.batch_size)
            loss = self.loss(self.reservoir.inputs[rows], self.reservoir.targets[rows])
            if self.distillation:
                outputs = self.network(self.reservoir.inputs[rows])
                loss = loss + self.distillation * (outputs - self.said[rows]).square().mean()
            if not loss.requires_grad:  # nothing that is asked now is trained
                break
            gradients = torch.autograd.grad(loss, moving, allow_unused=True)
            for weight, gradient in zip(moving, gradients, strict=True):
                if gradient is not None:
                    weight.data.sub_(self.step_size * gradient)
        self.network.train(was_training)
        self.rounds += 1

    def own_state(self) -> dict[str, Tensor]:
        """Return the reservoir, what was said of it, and how many rounds there were."""
        return {
            **self.reservoir.state_dict(),
            "said": self.said.clone(),
            "rounds": torch.tensor(self.rounds),
        }

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self.reservoir.load_state_dict(state)
        self.said, self.rounds = state["said"].clone(), int(state["rounds"])


class Sensitivity:
    """How much more each module of a network moves lately than it usually does.

    Δ = |θ − θ before|₁ / |θ|        S = EMA(0.9)[Δ] / EMA(0.999)[Δ], both without the bias of their start

    At a change of the world, what has to follow it has S well above the median of the modules. The score is
    ours; the paper's was not found.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.steps = 0
        self._before = self._now()
        self._fast = dict.fromkeys(self._before, 0.0)
        self._slow = dict.fromkeys(self._before, 0.0)

    def _now(self) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for name, weight in self.network.named_parameters():
            found.setdefault(name.rpartition(".")[0], []).append(weight.detach().flatten())
        return {name: torch.cat(weights) for name, weights in found.items()}

    def step(self) -> None:
        """Look at what an update has changed."""
        now = self._now()
        self.steps += 1
        for name, weights in now.items():
            change = float((weights - self._before[name]).abs().mean())
            self._fast[name] += 0.1 * (change - self._fast[name])
            self._slow[name] += 0.001 * (change - self._slow[name])
        self._before = now

    def scores(self) -> dict[str, float]:
        """Return S of each module; 1 where nothing has moved."""
        fast, slow = 1.0 - 0.9**self.steps, 1.0 - 0.999**self.steps
        return {
            name: (self._fast[name] / fast) / (self._slow[name] / slow) if self._slow[name] else 1.0
            for name in self._before
        }

    def sensitive(self, ratio: float = 1.5) -> tuple[str, ...]:
        """Return the modules whose S is above `ratio` times the median."""
        scores = self.scores()
        median = sorted(scores.values())[len(scores) // 2]
        return tuple(name for name, score in scores.items() if score > ratio * median)
