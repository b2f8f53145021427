"""The native back end of a learner: the same arrays, one C++ call for `act` and one for `learn_one`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import nn

from streamwise.agents.generator import CounterGenerator
from streamwise.agents.learner import Metrics
from streamwise.agents.networks import AgentMemory, ChannelsFirst, FlatNetwork, LayerNorm, MemoryNetwork
from streamwise.agents.settings import StreamSettings
from streamwise.agents.statistics import TransitionNormalizer
from streamwise.agents.step_sizes import AdaptiveObGD, Intentional, ObGD, Rule
from streamwise.kernels.stream_step import make_stream_step
from streamwise.memory.bottleneck import BottleneckMemory, BottleneckRead
from streamwise.memory.episode import EpisodeMemory, EpisodeRead
from streamwise.memory.hcam import ChunkAttention
from streamwise.memory.recurrent import RecurrentMemory, RecurrentRead
from streamwise.streams import Action, Transition, UsageError

__all__ = ["Backend", "NativeStep", "native_step"]

Backend = Literal["auto", "native", "torch"]
Layers = list[tuple[Any, ...]]

_MAX_LAYERS = 32  # kMaxLayers in kernels/stream_step/engine.h

_RULE_SCALARS = {  # what a rule remembers besides its arrays, and what it starts from
    "updates": 0,
    "gradient_norm": 0.0,
    "decay_product": 1.0,
    "td_error_square": 1.0,
    "td_error_magnitude": 0.0,
}


class NativeStep:
    """Runs one learner's `act`, `predict`, `learn_one`, `remember` and `forget` in C++.

    Parameters, traces, second moments and observation statistics are the learner's own, changed in place.
    Counters and other scalars live in C++ meanwhile: `pull` copies them to the learner's parts, as a
    checkpoint needs, and `push` copies them back. Who writes to parameters or statistics from outside calls
    `pull` before and `push` after, for the step keeps what it computed from them. Two threads may not run the
    same step at once (the second is refused); two steps they may.
    """

    def __init__(
        self,
        step: Any,
        check: Callable[[Transition], object],
        samples: TransitionNormalizer,
        rules: dict[str, Rule],
        generator: CounterGenerator | None,
    ) -> None:
        self._step = step
        self._check = check
        self._samples = samples
        self._rules = rules
        self._generator = generator
        self.push()

    def act(self, observation: NDArray[Any], explore: bool) -> Any:
        """Choose an action as the learner would. Raises what it would."""
        action = self._step.act(observation, explore)
        if action is not None:
            return action
        self.pull()
        self._samples.observe(observation)  # raises for what is wrong with it
        return self._step.act(_readable(observation), explore)

    def predict(self, observation: NDArray[Any]) -> float:
        """Return an observation's value, in units of the scaled reward. Raises what the learner would."""
        value: float | None = self._step.predict(observation)
        if value is None:
            self.pull()
            self._samples.observe(observation)
            value = self._step.predict(_readable(observation))
            assert value is not None
        return value

    def remember(self, observation: NDArray[Any]) -> None:
        """Take an observation into the memory as the learner would. Raises what it would."""
        if not self._step.remember(observation):
            self.pull()
            self._samples.observe(observation)
            self._step.remember(_readable(observation))

    def forget(self) -> None:
        """Forget the episode as the learner would."""
        self._step.forget()

    def learn_one(self, transition: Transition) -> Metrics:
        """Make one update as the learner would. Raises what it would, nothing having changed."""
        metrics: Metrics | None = self._step.learn_one(*transition)
        if metrics is None:
            self.pull()
            self._check(transition)  # raises for what is wrong with it
            # Nothing is: some array only has a dtype or a layout that the engine does not read.
            observation, action, reward, next_observation, terminated, truncated = transition
            metrics = self._step.learn_one(
                _readable(observation),
                _readable_action(action),
                float(reward),
                _readable(next_observation),
                terminated,
                truncated,
            )
            assert metrics is not None
        return metrics

    def pull(self) -> int | None:
        """Copy the scalars to the learner's parts; return the action that stream-SARSA has pending."""
        state = self._step.state()
        samples = self._samples
        samples.steps, samples.episode_starts = state["steps"], state["episode_starts"]
        samples.observations.statistics.count = state["observation_count"]
        rewards = samples.rewards
        rewards.discounted_return = state["discounted_return"]
        rewards.statistics.count = state["reward_count"]
        rewards.statistics.mean[...] = state["reward_mean"]
        rewards.statistics.squared_deviation[...] = state["reward_squared_deviation"]
        if self._generator is not None:
            self._generator.key, self._generator.counter = state["key"], state["counter"]
        for name, rule in self._rules.items():
            for scalar in _RULE_SCALARS:
                if hasattr(rule, scalar):
                    setattr(rule, scalar, state[name][scalar])
        next_action: int = state["next_action"]
        return None if next_action < 0 else next_action

    def push(self, next_action: int | None = None) -> None:
        """Copy the scalars from the learner's parts; also to be called after writing to its arrays."""
        samples, generator = self._samples, self._generator
        rewards = samples.rewards
        state: dict[str, Any] = {
            "steps": samples.steps,
            "episode_starts": samples.episode_starts,
            "observation_count": samples.observations.statistics.count,
            "discounted_return": float(rewards.discounted_return),
            "reward_count": rewards.statistics.count,
            "reward_mean": float(rewards.statistics.mean),
            "reward_squared_deviation": float(rewards.statistics.squared_deviation),
            "key": 0 if generator is None else generator.key,
            "counter": 0 if generator is None else generator.counter,
            "next_action": -1 if next_action is None else next_action,
        }
        for name in ("value", "policy"):
            rule = self._rules.get(name)
            state[name] = {scalar: getattr(rule, scalar, start) for scalar, start in _RULE_SCALARS.items()}
        self._step.set_state(state)


def native_step(
    backend: Backend,
    name: str,
    config: StreamSettings,
    samples: TransitionNormalizer,
    check: Callable[[Transition], object],
    networks: dict[str, tuple[FlatNetwork, Rule]],
    generator: CounterGenerator | None = None,
    memory: AgentMemory | None = None,
    **settings: Any,
) -> NativeStep | None:
    """Return the native step of a learner, or None where torch is to run it.

    backend: "torch" never takes it, "native" insists, "auto" takes it where network and extension allow.
    networks: by what they learn, "value" and "policy". settings: whatever else the learner's kind needs.
    Raises UsageError if "native" cannot be had, saying why.
    """
    if backend not in get_args(Backend):
        raise UsageError(f"backend is {backend!r}; choose one of: {', '.join(get_args(Backend))}.")
    if backend == "torch":
        return None
    statistics = samples.observations.statistics
    try:
        new_action = settings.get("new_action")
        if new_action is not None and new_action().dtype not in (np.float32, np.float64):
            raise UnsupportedError(f"actions are {new_action().dtype}, not float32 or float64")
        spec = {
            "learner": name,
            "dtype": config.dtype,
            "observation_shape": list(samples.observations.shape),
            "passthrough": int(config.time_feature),
            "discount": float(config.discount),
            "trace_decay": float(config.trace_decay),
            "bootstrap_on_truncation": config.bootstrap_on_truncation,
            "mean": statistics.mean.reshape(-1),
            "squared_deviation": statistics.squared_deviation.reshape(-1),
            "new_action": None,
            "memory": memory.native_settings() if isinstance(memory, EpisodeMemory) else None,
            "books": memory.native_settings() if isinstance(memory, BottleneckMemory) else None,
            **{what: _describe(network, rule, samples, memory) for what, (network, rule) in networks.items()},
            **settings,
        }
        step = make_stream_step(spec)
        if step is None:
            raise UnsupportedError("streamwise was built without native kernels")
        rules = {what: rule for what, (_, rule) in networks.items()}
        return NativeStep(step, check, samples, rules, generator)
    except UnsupportedError as error:
        if backend == "native":
            raise UsageError(f"{name} cannot run natively: {error}; use the torch back end.") from None
        return None


class UnsupportedError(ValueError):
    """What keeps a learner from running natively."""


def _describe(
    network: FlatNetwork, rule: Rule, samples: TransitionNormalizer, memory: AgentMemory | None
) -> dict[str, Any]:
    if type(rule) not in (ObGD, AdaptiveObGD, Intentional):  # a subclass may compute anything
        raise UnsupportedError(f"there is no native kernel for the rule {type(rule).__name__}")
    module = network.module
    description: dict[str, Any] = {
        "layers": [_table(module, memory)]
        if type(module) is BottleneckRead
        else _layers(module, samples.observations.shape),
        "parameters": network.parameters,
        "trace": rule.trace,
    }
    if type(module) is MemoryNetwork:
        description |= _arrays(module.read, memory)
    if isinstance(rule, Intentional):
        description |= {
            "rule": "intentional",
            "intended_change": float(rule.intended_change),
            "normalize_td_error": rule.normalize_td_error,
            "td_error_decay": rule.td_error_decay,
            "td_error_cap": rule.td_error_cap,
        }
    elif isinstance(rule, ObGD):
        description |= {
            "rule": "adaptive-obgd" if isinstance(rule, AdaptiveObGD) else "obgd",
            "step_size": float(rule.step_size),
            "overshoot_margin": float(rule.overshoot_margin),
        }
    if isinstance(rule, AdaptiveObGD | Intentional):
        description |= {
            "second_moment": rule.second_moment,
            "second_moment_decay": rule.second_moment_decay,
            "epsilon": rule.epsilon,
        }
    return description


def _table(read: BottleneckRead, memory: AgentMemory | None) -> tuple[Any, ...]:
    """Describe a network that is a bottleneck. Raises UnsupportedError if its books are not the learner's."""
    bottleneck = read.bottleneck
    if not isinstance(memory, BottleneckMemory) or bottleneck.keys is not memory.books.keys:
        raise UnsupportedError("a network looks up in other books than the learner's")
    return ("bottleneck", memory.width, bottleneck.values.shape[2])


def _arrays(read: nn.Module, memory: AgentMemory | None) -> dict[str, Any]:
    """What a read uses besides its weights. Raises UnsupportedError if it is not of the learner's memory."""
    if isinstance(read, RecurrentRead) and isinstance(memory, RecurrentMemory) and read in memory.reads:
        return {"hidden": read.hidden}
    if not isinstance(read, EpisodeRead) or read.memory is not memory:
        raise UnsupportedError("a network reads another memory than the learner's")
    positions = read.attention.positions
    return {"positions": None if positions is None else positions.reshape(-1)}


def _reading(module: MemoryNetwork, shape: tuple[int, ...]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Describe what a network reads before its body, and the shape of what comes out."""
    read = module.read
    if len(shape) != 1 or type(module.encoder) is not nn.Sequential or len(module.encoder):
        raise UnsupportedError("there is no native kernel for a memory beside a picture")
    if type(read) is RecurrentRead and type(read.cell) is nn.GRUCell:
        features = read.cell.hidden_size
        return ("recurrent", shape[0], features), (shape[0] + features,)
    if type(read) is not EpisodeRead or type(read.attention) is not ChunkAttention:
        raise UnsupportedError(f"there is no native kernel for a {type(read).__name__}")
    attention = read.attention
    if attention.pool_query is not None or attention.age_weight is not None:
        raise UnsupportedError("there is no native kernel for pooling by attention or an age term")
    features = attention.output.shape[1]
    described = ("read", shape[0], features, attention.heads, attention.k, attention.joint)
    return described, (shape[0] + features,)


def _layers(module: nn.Module, shape: tuple[int, ...]) -> Layers:
    """Describe a sequential network to the engine. Raises UnsupportedError where there is no kernel.

    Types are compared, for a subclass may compute something else: a parametrized layer is one.
    """
    layers: Layers = []
    if type(module) is MemoryNetwork:
        described, shape = _reading(module, shape)
        layers.append(described)
        module = module.body
    modules = list(module) if type(module) is nn.Sequential else [module]
    for layer in modules:
        if type(layer) is ChannelsFirst and not layers and len(shape) == 3:
            layers.append(("channels_last",))
            shape = (shape[2], shape[0], shape[1])
        elif type(layer) is nn.Linear and len(shape) == 1 and _learns_weight_and_bias(layer):
            layers.append(("linear", layer.in_features, layer.out_features))
            shape = (layer.out_features,)
        elif type(layer) is nn.Conv2d and len(shape) == 3 and _is_plain(layer):
            kernel, stride = layer.kernel_size[0], layer.stride[0]
            layers.append(("convolution", *shape, layer.out_channels, kernel, stride))
            shape = (layer.out_channels, *((side - kernel) // stride + 1 for side in shape[1:]))
        elif type(layer) is LayerNorm:
            layers.append(("layer_norm",))
        elif type(layer) is nn.LeakyReLU:
            layers.append(("leaky_relu", float(layer.negative_slope)))
        elif (
            type(layer) is nn.Flatten
            and len(shape) == 3
            and (layer.start_dim, layer.end_dim) in ((1, -1), (1, 3))
        ):
            layers.append(("flatten",))
            shape = (int(np.prod(shape)),)
        else:
            raise UnsupportedError(f"there is no native kernel for {layer} on an input of shape {shape}")
    kinds = [kind for kind, *_ in layers if kind not in ("channels_last", "read", "recurrent")]
    if not kinds or kinds[-1] != "linear" or kinds[0] not in ("linear", "convolution"):
        raise UnsupportedError(
            "the network must begin with a linear or convolutional layer and end with a linear"
        )
    if len(layers) > _MAX_LAYERS:
        raise UnsupportedError(f"the network has {len(layers)} layers, more than {_MAX_LAYERS}")
    weights = [id(weight) for layer in modules for weight in layer.parameters()]
    if len(set(weights)) < len(weights):
        raise UnsupportedError("two of its layers share their weights")
    return layers


def _learns_weight_and_bias(layer: nn.Module) -> bool:
    """Both of them, not frozen, and nothing else: spectral norm, for one, has its own parameters."""
    learned = [(name, weight.requires_grad) for name, weight in layer.named_parameters()]
    return learned == [("weight", True), ("bias", True)]


def _is_plain(layer: nn.Conv2d) -> bool:
    """Square, unpadded, undilated, ungrouped, with a bias."""
    return (
        _learns_weight_and_bias(layer)
        and layer.kernel_size[0] == layer.kernel_size[1]
        and layer.stride[0] == layer.stride[1]
        and layer.padding in ((0, 0), "valid")
        and layer.dilation == (1, 1)
        and layer.groups == 1
    )


def _readable(observation: NDArray[Any]) -> NDArray[np.float64]:
    return np.ascontiguousarray(observation, dtype=np.float64)


def _readable_action(action: Action) -> Any:
    if action is None or isinstance(action, int | np.integer):
        return action
    return np.ascontiguousarray(action, dtype=np.float64)
