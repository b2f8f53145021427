"""A value that is refreshed now and then, on a few transitions of the learner's whole life.

    every τ updates, n times:        (s, a, r, s') ~ the reservoir, a batch of them
        δ = r + γ v(s') − q(s, a)
        θ ← θ + α mean δ ∇q(s, a)        the target is a constant
    all traces are cleared afterwards

v(s') is max q(s', ·) for stream-Q and what acting is worth, (1 − ε) max q + ε mean q, for stream-SARSA; for
stream-AC and stream-TD it is the value, and q(s, a) is v(s).

θ is the last layer, or all of the value's network; nothing else moves, of the policy neither. Transitions
are kept as they came and normalized by the statistics of the moment, which they do not change. This is
forgetting prioritized finetuning (memory/continual/prioritized_finetuning.py) without classes to balance. A
streaming learner keeps no sample otherwise, so it is off by default.

What stream-AC keeps was done by its policy of then, and its critic is refreshed as if it were done today.
Where the policy has changed much, short refreshes of the last layer do less harm than long ones of all.

Source: Zhao et al. (2023), "Does continual learning equally forget all parameters?", arXiv:2304.04158, for
classes; for values it is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from streamwise.agents.generator import CounterGenerator
from streamwise.agents.native import NativeStep
from streamwise.agents.networks import FlatNetwork
from streamwise.agents.settings import StreamSettings
from streamwise.agents.statistics import TransitionNormalizer
from streamwise.agents.step_sizes import Rule
from streamwise.streams import Transition

__all__ = ["TransitionReservoir", "ValueFinetuning", "head"]


class TransitionReservoir:
    """At most `capacity` transitions, each of all that were added with the same chance to be among them.

    In arrays that are made once: what is let go costs a draw, what is kept a copy. Sample n, from 0, takes a
    place that is drawn from 0 to n, if that is one of the capacity.

    Source: Vitter (1985), "Random sampling with a reservoir", algorithm R.

    >>> reservoir = TransitionReservoir(2, (3,), np.dtype(np.float32), seed=0)
    >>> for _ in range(100):
    ...     reservoir.add(Transition(np.zeros(3), 1, 0.5, np.ones(3), False, False), 1, False)
    >>> len(reservoir), reservoir.seen
    (2, 100)
    """

    def __init__(self, capacity: int, shape: tuple[int, ...], dtype: np.dtype[Any], seed: int) -> None:
        self.observations: NDArray[Any] = np.zeros((capacity, 2, *shape), dtype)  # each, and the next
        self.outcomes = np.zeros((capacity, 3))  # reward, action (0 where it has no value), value ends
        self.seen = 0
        self.generator = CounterGenerator(~seed)  # not the draws that the agent explores by

    def __len__(self) -> int:
        return min(self.seen, len(self.outcomes))

    def add(self, transition: Transition, action: int, value_ends: bool) -> None:
        """Keep a transition, or let it go."""
        is_full = self.seen >= len(self.outcomes)
        place = self.generator.integer(self.seen + 1) if is_full else self.seen
        self.seen += 1
        if place < len(self.outcomes):
            self.observations[place, 0] = transition.observation
            self.observations[place, 1] = transition.next_observation
            self.outcomes[place] = transition.reward, action, value_ends

    def draw(self, count: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Return observations [count, 2, *shape] and outcomes [count, 3]; some may be there twice."""
        rows = [self.generator.integer(len(self)) for _ in range(count)]
        return self.observations[rows], self.outcomes[rows]

    def state_dict(self, prefix: str) -> dict[str, Tensor]:
        """Return what is kept, and the counts, under `prefix`."""
        return {
            f"{prefix}.observations": torch.from_numpy(self.observations[: len(self)].copy()),
            f"{prefix}.outcomes": torch.from_numpy(self.outcomes[: len(self)].copy()),
            f"{prefix}.seen": torch.tensor(self.seen),
            **{f"{prefix}.{name}": value for name, value in self.generator.state_dict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """Go on from a state that `state_dict` gave. Raises ValueError if capacity or shape are others."""
        observations, outcomes = (state[f"{prefix}.{name}"].numpy() for name in ("observations", "outcomes"))
        seen = int(state[f"{prefix}.seen"])
        there = min(seen, len(self.outcomes))
        if observations.shape != (there, *self.observations.shape[1:]) or outcomes.shape != (there, 3):
            raise ValueError(
                f"the state keeps transitions of shape {observations.shape} after {seen}, and there is room "
                f"for {self.observations.shape}."
            )
        self.observations[:there], self.outcomes[:there], self.seen = observations, outcomes, seen
        self.generator.load_state_dict({"random": state[f"{prefix}.random"]})


def head(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the last module that learns any of its own."""
    learned = [
        [weight for weight in part.parameters(recurse=False) if weight.requires_grad]
        for part in module.modules()
    ]
    return [weights for weights in learned if weights][-1]


def largest(values: Tensor) -> Tensor:
    """Return what the best action is worth, [n], where actions have these values, [n, actions]."""
    return values.amax(1)


class ValueFinetuning:
    """Keeps transitions that a learner learns from, and refreshes its value on them, if settings say so.

    network: the value's. rules: those whose traces are cleared. samples: the learner's normalizer.
    native: its native step, which has to know when its arrays were written to. of_actions: outputs are values
    of actions. worth: what follows is worth this much, [n], by the values of its actions, [n, actions].
    """

    def __init__(
        self,
        config: StreamSettings,
        space: spaces.Space[Any],
        network: FlatNetwork,
        rules: Sequence[Rule],
        samples: TransitionNormalizer,
        native: NativeStep | None,
        seed: int,
        *,
        of_actions: bool = False,
        worth: Callable[[Tensor], Tensor] = largest,
    ) -> None:
        self.config, self.every = config, config.finetune_every
        self.network, self.rules = network, rules
        self.samples, self.native, self.of_actions, self.worth = samples, native, of_actions, worth
        shape = samples.observations.shape
        kind = np.dtype(np.float64) if space.dtype is None else space.dtype
        self.reservoir = TransitionReservoir(config.finetune_capacity if self.every else 0, shape, kind, seed)
        learned = [weight for weight in network.module.parameters() if weight.requires_grad]
        self.moving = learned if config.finetune_modules == "all" else head(network.module)

    def learn_one(self, transition: Transition) -> None:
        """Take a transition that was learned from; now and then, refresh."""
        if not self.every:
            return
        action = int(transition.action) if self.of_actions else 0  # type: ignore[arg-type]  # of_actions: whole numbers
        self.reservoir.add(transition, action, self.config.value_ends(transition))
        if self.reservoir.seen % self.every == 0:
            self.finetune()

    def finetune(self) -> None:
        """Refresh the value."""
        next_action = None if self.native is None else self.native.pull()
        for _ in range(self.config.finetune_steps):
            self._step(*self.reservoir.draw(self.config.finetune_batch))
        for rule in self.rules:
            rule.trace.zero_()
        if self.native is not None:
            self.native.push(next_action)

    def _step(self, observations: NDArray[Any], outcomes: NDArray[np.float64]) -> None:
        c, samples = self.config, self.samples
        seen = samples.observations.normalize(observations, samples.dtype)
        rewards = torch.from_numpy(outcomes[:, 0] / samples.rewards.deviation).to(samples.dtype)
        actions, value_ends = torch.from_numpy(outcomes[:, 1]).long(), torch.from_numpy(outcomes[:, 2] > 0.0)
        with torch.no_grad():
            following = self.worth(self.network.module(seen[:, 1])).masked_fill(value_ends, 0.0)
        values = self.network.module(seen[:, 0]).gather(1, actions[:, None])[:, 0]
        td_errors = rewards + c.discount * following - values.detach()
        gradients = torch.autograd.grad((td_errors * values).mean(), self.moving, materialize_grads=True)
        for weight, gradient in zip(self.moving, gradients, strict=True):
            weight.data.add_(gradient, alpha=c.finetune_step_size)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is kept, and the counts; nothing where nothing is refreshed."""
        return self.reservoir.state_dict("finetuning") if self.every else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        if self.every:
            self.reservoir.load_state_dict(state, "finetuning")
