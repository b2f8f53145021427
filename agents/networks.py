"""Networks of stream-x, and how a network becomes flat tensors that an update can work on.

Every network normalizes each layer over all its features, without learned scale or shift, before the
non-linearity, and starts sparse. Source: Elsayed, Vasan and Mahmood (2024), arXiv:2410.14606, and the
published code for the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamwise.memory.bottleneck import BottleneckMemory
from streamwise.memory.episode import EpisodeMemory
from streamwise.memory.recurrent import RecurrentMemory
from streamwise.streams import UsageError

__all__ = [
    "AgentMemory",
    "FlatNetwork",
    "MemoryNetwork",
    "NetworkBuilder",
    "NoMemory",
    "published_network",
    "sparse_init_",
]

NetworkBuilder = Callable[[int], nn.Module]  # from the number of outputs to a module


class LayerNorm(nn.Module):
    """Normalize over every feature of one sample: all but the first axis. Eps 1e-5, nothing learned."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, ...]. Returns the same shape."""
        return functional.layer_norm(x, x.shape[1:])


def sparse_init_(module: nn.Module, generator: torch.Generator, sparsity: float = 0.9) -> None:
    """Initialize every Linear and Conv2d in place: weights of each output unit are drawn from
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)), then ceil(sparsity * fan_in) of its inputs are cut; biases are 0.
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        units, fan_in = layer.weight.shape[0], layer.weight[0].numel()
        bound = 1.0 / math.sqrt(fan_in)
        zeros = math.ceil(sparsity * fan_in)
        with torch.no_grad():
            weight = torch.empty(units, fan_in).uniform_(-bound, bound, generator=generator)
            for unit in weight:
                unit[torch.randperm(fan_in, generator=generator)[:zeros]] = 0.0
            layer.weight.copy_(weight.view_as(layer.weight))
            if layer.bias is not None:
                layer.bias.zero_()


def published_network(
    observation_shape: tuple[int, ...], hidden_size: int, seed: int, memory: AgentMemory | None = None
) -> NetworkBuilder:
    """Return a function from the number of outputs to the published network, sparsely initialized.

    [features]: two hidden layers. [10, 10, channels]: MinAtar's convolution and one hidden layer.
    [frames, 84, 84]: the Atari network, whose last hidden layer has 256 units whatever `hidden_size` says.
    With a memory, what it reads for the observation goes into the hidden layers too; each network reads for
    itself. A bottleneck is the whole network, of its own sizes and for any shape. Networks map
    [1, *observation_shape] to [1, outputs]. Raises UsageError for other shapes.
    """
    if isinstance(memory, BottleneckMemory):
        return memory.reader
    generator = torch.Generator().manual_seed(seed)
    read_width = 0 if memory is None else memory.features

    def build(outputs: int) -> nn.Module:
        encoder, body = _layers(observation_shape, outputs, hidden_size, read_width)
        network = nn.Sequential(*encoder, *body)
        sparse_init_(network, generator)
        if memory is None or isinstance(memory, NoMemory):
            return network
        return MemoryNetwork(nn.Sequential(*encoder), memory.reader(generator), nn.Sequential(*body))

    return build


def _layers(
    observation_shape: tuple[int, ...], outputs: int, hidden_size: int, read_width: int
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return what makes features of an observation, and what comes after, where a memory's read joins in."""
    if len(observation_shape) == 1:
        (features,) = observation_shape
        return [], [
            *(nn.Linear(features + read_width, hidden_size), LayerNorm(), nn.LeakyReLU()),
            *(nn.Linear(hidden_size, hidden_size), LayerNorm(), nn.LeakyReLU()),
            nn.Linear(hidden_size, outputs),
        ]
    if len(observation_shape) == 3 and observation_shape[:2] == (10, 10):
        return [
            ChannelsFirst(),  # [1, 10, 10, C] -> [1, C, 10, 10]
            *(nn.Conv2d(observation_shape[2], 16, kernel_size=3), LayerNorm(), nn.LeakyReLU()),
            nn.Flatten(),  # [1, 1024]
        ], [
            *(nn.Linear(1024 + read_width, hidden_size), LayerNorm(), nn.LeakyReLU()),
            nn.Linear(hidden_size, outputs),
        ]
    if len(observation_shape) == 3 and observation_shape[1:] == (84, 84):
        return [
            *(nn.Conv2d(observation_shape[0], 32, kernel_size=8, stride=5), LayerNorm(), nn.LeakyReLU()),
            *(nn.Conv2d(32, 64, kernel_size=4, stride=3), LayerNorm(), nn.LeakyReLU()),
            *(nn.Conv2d(64, 64, kernel_size=3, stride=2), LayerNorm(), nn.LeakyReLU()),
            nn.Flatten(),  # [1, 256]
        ], [
            *(nn.Linear(256 + read_width, 256), LayerNorm(), nn.LeakyReLU()),
            nn.Linear(256, outputs),
        ]
    raise UsageError(
        f"no network is built in for observations of shape {observation_shape}; "
        "pass your own torch module, or flatten the observation."
    )


class ChannelsFirst(nn.Module):
    """[1, height, width, channels] -> [1, channels, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, height, width, channels]."""
        return x.movedim(-1, 1)


class NoMemory:
    """What an agent without a memory has in its place."""

    features = 0  # numbers of a read

    def append(self, item: Tensor) -> None:
        """Remember nothing."""

    def clear(self) -> None:
        """Forget nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take nothing."""


AgentMemory = EpisodeMemory | RecurrentMemory | BottleneckMemory | NoMemory


class MemoryNetwork(nn.Module):
    """body([encoder(x), read(x)]): what is seen, and what a memory has for it.

    read: from a flat observation, [1, numbers], to [1, features].
    """

    def __init__(self, encoder: nn.Module, read: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.encoder, self.read, self.body = encoder, read, body

    def forward(self, x: Tensor) -> Tensor:
        """x: [1, *observation_shape]."""
        out: Tensor = self.body(torch.cat([self.encoder(x), self.read(x.flatten(1))], 1))
        return out


class FlatNetwork:
    """A module whose parameters and gradient are views into one contiguous tensor each.

    An update then is arithmetic on `parameters`, `gradient` and a trace of the same layout [size], whatever
    the architecture.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.module = module.to(dtype)
        weights = list(module.parameters())
        self.parameters = torch.cat([weight.detach().flatten() for weight in weights])
        self.gradient = torch.zeros_like(self.parameters)
        start = 0
        for weight in weights:
            end = start + weight.numel()
            weight.data = self.parameters[start:end].view_as(weight)
            weight.grad = self.gradient[start:end].view_as(weight)
            start = end

    def __call__(self, observation: Tensor) -> Tensor:
        """observation: [*shape]. Returns the outputs [outputs] with their graph."""
        output: Tensor = self.module(observation.unsqueeze(0))
        return output.squeeze(0)

    @torch.no_grad()
    def predict(self, observation: Tensor) -> Tensor:
        """Return the outputs [outputs] without a graph."""
        return self(observation)

    def differentiate(self, objective: Tensor) -> Tensor:
        """Return d objective / d parameters, [size]; the tensor is overwritten by the next call."""
        self.gradient.zero_()
        objective.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        return self.gradient
