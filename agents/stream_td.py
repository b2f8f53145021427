"""Stream-TD(λ): predicts the discounted sum of what is to come, from one transition at a time.

Source: Elsayed, Vasan and Mahmood (2024), arXiv:2410.14606.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from streamwise.agents.learner import Metrics, State
from streamwise.agents.native import Backend, native_step
from streamwise.agents.networks import FlatNetwork, NetworkBuilder, published_network
from streamwise.agents.settings import StreamSettings, observation_shape
from streamwise.agents.statistics import TransitionNormalizer
from streamwise.agents.value_finetuning import ValueFinetuning
from streamwise.streams import Transition

__all__ = ["StreamTD", "StreamTDConfig"]


@dataclass(frozen=True)
class StreamTDConfig(StreamSettings):
    """Settings of stream-TD."""


class StreamTD:
    """Value prediction; actions in the transitions are not looked at.

    observation_space: Box. network: a function from the number of outputs to a torch module, in place of the
    published network. Raises UsageError for other spaces.

    >>> import numpy as np
    >>> agent = StreamTD(spaces.Box(-1.0, 1.0, (3,)))
    >>> isinstance(agent.predict_one(np.zeros(3, np.float32)), float)
    True
    """

    Config = StreamTDConfig

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any] | None = None,
        config: StreamTDConfig | None = None,
        *,
        seed: int = 0,
        network: NetworkBuilder | None = None,
        backend: Backend = "auto",
    ) -> None:
        self.config = c = config or StreamTDConfig()
        self.observation_space, self.action_space = observation_space, action_space
        shape = observation_shape(observation_space, c.time_feature, "stream-td")
        self.memory = c.memory_for(shape, network, seed)
        build = network or published_network(shape, c.hidden_size, seed, self.memory)
        self.network = FlatNetwork(build(1), c.torch_dtype)
        self.rule = c.rule_for(self.network)
        self.samples = TransitionNormalizer(shape, c.discount, c.torch_dtype, passthrough=int(c.time_feature))
        self.native = native_step(
            backend,
            "stream-td",
            c,
            self.samples,
            self.samples.check,
            {"value": (self.network, self.rule)},
            memory=self.memory,
        )
        self.finetuning = ValueFinetuning(
            c, observation_space, self.network, [self.rule], self.samples, self.native, seed
        )

    def predict_one(self, observation: NDArray[Any]) -> float:
        """Return the predicted discounted sum of the rewards after this observation, in reward units."""
        if self.native is not None:
            value = self.native.predict(observation)
            self.native.pull()
        else:
            value = self.network.predict(self.samples.observe(observation)).item()
        return value * self.samples.rewards.deviation

    def learn_one(self, transition: Transition) -> Metrics:
        """Update the prediction once; `prediction` in the metrics was made before.

        Raises NonFiniteSampleError for NaN or infinities, ValueError for an observation of the wrong shape;
        nothing has changed then.
        """
        if self.native is not None:
            metrics = self.native.learn_one(transition)
            self.finetuning.learn_one(transition)
            return metrics
        c = self.config
        deviation = self.samples.rewards.deviation
        value_ends = c.value_ends(transition)
        observation, reward, next_observation = self.samples.learn_one(transition, value_ends)

        value = self.network(observation)[0]
        self.memory.append(observation.flatten())
        next_value = 0.0 if value_ends else self.network.predict(next_observation).item()
        td_error = reward + c.discount * next_value - value.item()

        step = self.rule.update(
            self.network.parameters, self.network.differentiate(value), td_error, c.discount * c.trace_decay
        )
        if transition.terminated or transition.truncated:
            self.rule.trace.zero_()
            self.memory.clear()
        self.finetuning.learn_one(transition)
        return {
            "prediction": value.item() * deviation,
            "td_error_magnitude": abs(td_error),
            "step_size": step,
        }

    def remember(self, observation: NDArray[Any]) -> None:
        """Take an observation that was acted on into the memory, if there is one, learning nothing."""
        if self.native is not None:
            self.native.remember(observation)
        else:
            self.memory.append(self.samples.observe(observation).flatten())

    def forget(self) -> None:
        """Forget the episode, as at its end: traces, and what was remembered of it."""
        if self.native is not None:
            self.native.forget()
            return
        self.rule.trace.zero_()
        self.samples.episode_starts = True
        self.memory.clear()

    def state_dict(self) -> State:
        """Return everything: weights, trace, statistics, counters."""
        if self.native is not None:
            self.native.pull()
        return {
            "value.parameters": self.network.parameters.clone(),
            **self.rule.state_dict("value"),
            **self.samples.state_dict(),
            **self.memory.state_dict(),
            **self.finetuning.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        self.network.parameters.copy_(state["value.parameters"])
        self.rule.load_state_dict(state, "value")
        self.samples.load_state_dict(state)
        self.memory.load_state_dict(state)
        self.finetuning.load_state_dict(state)
        if self.native is not None:
            self.native.push()
