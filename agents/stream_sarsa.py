"""Stream-SARSA(λ): on-policy action values; the target is the action that will be taken next.

Source: Elsayed, Vasan and Mahmood (2024), arXiv:2410.14606. The next action is chosen while learning,
with the weights from before the update, and kept for the following `act`.

Departure from the published code: the first action of an episode is chosen before the observation it sees has
entered the running statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from streamwise.agents.exploration import ExplorationSettings, actions_of, greedy_action
from streamwise.agents.generator import CounterGenerator
from streamwise.agents.learner import Metrics, State
from streamwise.agents.native import Backend, native_step
from streamwise.agents.networks import FlatNetwork, NetworkBuilder, published_network
from streamwise.agents.policies import check_discrete
from streamwise.agents.settings import observation_shape
from streamwise.agents.statistics import TransitionNormalizer
from streamwise.agents.value_finetuning import ValueFinetuning
from streamwise.streams import Transition

__all__ = ["StreamSARSA", "StreamSARSAConfig"]


@dataclass(frozen=True)
class StreamSARSAConfig(ExplorationSettings):
    """Settings of stream-SARSA."""


class StreamSARSA:
    """SARSA for Discrete actions, exploring epsilon-greedily.

    observation_space: Box. action_space: Discrete. network: a function from the number of outputs to a torch
    module, in place of the published network. Raises UsageError for other spaces.

    >>> import numpy as np
    >>> agent = StreamSARSA(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(2))
    >>> agent.act(np.zeros(3, np.float32), explore=False) in (0, 1)
    True
    """

    Config = StreamSARSAConfig

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        config: StreamSARSAConfig | None = None,
        *,
        seed: int = 0,
        network: NetworkBuilder | None = None,
        backend: Backend = "auto",
    ) -> None:
        self.config = c = config or StreamSARSAConfig()
        self.observation_space, self.action_space = observation_space, action_space
        shape = observation_shape(observation_space, c.time_feature, "stream-sarsa")
        self.actions = actions_of(action_space, "stream-sarsa")
        self.memory = c.memory_for(shape, network, seed)
        build = network or published_network(shape, c.hidden_size, seed, self.memory)
        self.network = FlatNetwork(build(self.actions), c.torch_dtype)
        self.rule = c.rule_for(self.network)
        self.samples = TransitionNormalizer(shape, c.discount, c.torch_dtype, passthrough=int(c.time_feature))
        self.generator = CounterGenerator(seed)
        self.native = native_step(
            backend,
            "stream-sarsa",
            c,
            self.samples,
            self._check,
            {"value": (self.network, self.rule)},
            self.generator,
            self.memory,
            actions=self.actions,
            **c.native_settings(),
        )
        self.finetuning = ValueFinetuning(
            c,
            observation_space,
            self.network,
            [self.rule],
            self.samples,
            self.native,
            seed,
            of_actions=True,
            worth=self._expected,
        )
        self.next_action: int | None = None  # chosen by learn_one, for act to take

    def act(self, observation: NDArray[Any], *, explore: bool = True) -> int:
        """Take the action that learning chose for this observation, or choose one at an episode's start.

        With `explore=False` the chosen action stays pending: the last update's target was its value.
        """
        if self.native is not None:
            chosen: int = self.native.act(observation, explore)
            return chosen
        if explore and self.next_action is not None:
            action, self.next_action = self.next_action, None
            return action
        return self._choose(self.network.predict(self.samples.observe(observation)), explore)

    def _choose(self, values: Tensor, explore: bool = True) -> int:
        if explore and self.generator.uniform() < self.config.epsilon(self.samples.steps):
            return self.generator.integer(self.actions)
        return greedy_action(values)

    def _expected(self, values: Tensor) -> Tensor:
        """Return what acting is worth, [n], where actions have these values, [n, actions]."""
        epsilon = self.config.epsilon(self.samples.steps)
        return (1.0 - epsilon) * values.amax(1) + epsilon * values.mean(1)

    def learn_one(self, transition: Transition) -> Metrics:
        """Update the action values once.

        Raises NonFiniteSampleError for NaN or infinities, ValueError for a wrong action or observation;
        nothing has changed then.
        """
        if self.native is not None:
            metrics = self.native.learn_one(transition)
            self.finetuning.learn_one(transition)
            return metrics
        c = self.config
        action = self._check(transition)
        epsilon = c.epsilon(self.samples.steps)
        value_ends = c.value_ends(transition)
        observation, reward, next_observation = self.samples.learn_one(transition, value_ends)
        ended = transition.terminated or transition.truncated

        self.next_action = None  # a recorded stream never calls `act` to take it
        value = self.network(observation)[action]
        self.memory.append(observation.flatten())
        if value_ends:
            next_value = 0.0
        else:
            next_values = self.network.predict(next_observation)
            next_action = self._choose(next_values)
            next_value = next_values[next_action].item()
            self.next_action = None if ended else next_action
        td_error = reward + c.discount * next_value - value.item()

        step = self.rule.update(
            self.network.parameters, self.network.differentiate(value), td_error, c.discount * c.trace_decay
        )
        if ended:
            self.rule.trace.zero_()
            self.memory.clear()
        self.finetuning.learn_one(transition)
        return {
            "value": value.item(),
            "td_error_magnitude": abs(td_error),
            "step_size": step,
            "epsilon": epsilon,
        }

    def _check(self, transition: Transition) -> int:
        action = check_discrete(transition.action, self.actions, self.samples.steps + 1)
        self.samples.check(transition)
        return action

    def remember(self, observation: NDArray[Any]) -> None:
        """Take an observation that was acted on into the memory, if there is one, learning nothing."""
        if self.native is not None:
            self.native.remember(observation)
        else:
            self.memory.append(self.samples.observe(observation).flatten())

    def forget(self) -> None:
        """Forget the episode, as at its end: traces, what was remembered of it, the action to be taken."""
        self.next_action = None
        if self.native is not None:
            self.native.forget()
            return
        self.rule.trace.zero_()
        self.samples.episode_starts = True
        self.memory.clear()

    def state_dict(self) -> State:
        """Return everything: weights, trace, statistics, counters, generator."""
        if self.native is not None:
            self.next_action = self.native.pull()
        return {
            "value.parameters": self.network.parameters.clone(),
            **self.rule.state_dict("value"),
            **self.samples.state_dict(),
            **self.memory.state_dict(),
            **self.finetuning.state_dict(),
            **self.generator.state_dict(),
            "next_action": torch.tensor(-1 if self.next_action is None else self.next_action),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.network.parameters.copy_(state["value.parameters"])
        self.rule.load_state_dict(state, "value")
        self.samples.load_state_dict(state)
        self.memory.load_state_dict(state)
        self.finetuning.load_state_dict(state)
        self.generator.load_state_dict(state)
        next_action = int(state["next_action"])
        self.next_action = None if next_action < 0 else next_action
        if self.native is not None:
            self.native.push(self.next_action)
