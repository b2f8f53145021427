"""A point process that learns from windows of events, one after the other, as a classifier from examples.

    loss = − mean over scored events of [ log λ_{k_i}(t_i) − Λ_i ]        Λ_i = ∫ λ from t_{i−1} to t_i
    m ← m + (1−β₁)(g − m)    v ← v + (1−β₂)(g² − v)    w ← w − step size · m̂ / (√v̂ + ε)

A window is an `Example`: its features are the gap before each event, in seconds, and the event's type, as
[length, 2]; its label is the type of the last. The first `context` events are seen and not scored. So methods
of memory/continual can be put around an event model as around a classifier, and keep windows as they keep
examples. The label is what they balance by; what `network` says of a window is the logarithm of the intensity
of each type at the last event's own time, given what came before it.

In training Λ is by Gauss and Legendre's rule of two points in each decade of a gap, down to a thousandth: a
pure function of window and weights, exact where the intensity is constant. Of models that had learned 300
windows, of Hawkes and renewal processes and of a shopping log, it was off by 3% at most, and the mean
log-likelihood by 0.011 nats an event. Scores are by SCORING, the finer rule that scores everything else; that
was off by 0.004 nats.

Departures from Adam: a number whose gradient is zero stays where it is, and so do its moments, which count
their own steps. A type that does not occur is not moved by what it was in before, nor is a value of a
bottleneck that is not looked up. Gradients above a norm are shortened.

Sources: Daley and Vere-Jones (2003), "An introduction to the theory of point processes", chapter 7; Kingma
and Ba (2015), "Adam: a method for stochastic optimization", arXiv:1412.6980.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streamwise.agents.attnhp import AttNHP, AttNHPSettings
from streamwise.agents.learner import Metrics, State
from streamwise.agents.neural_tpp import Nodes, Sequences, gauss_legendre, log_spaced
from streamwise.agents.nhp import NHP, NHPSettings
from streamwise.agents.tpp_training import SCORING, Batch, EventScores, event_scores
from streamwise.memory.continual.wrapped import Objective
from streamwise.streams import Example, NonFiniteSampleError, UsageError

__all__ = ["TRAINING", "WindowNetwork", "WindowTPP", "WindowTPPConfig"]

TRAINING = log_spaced(gauss_legendre(2), 3)  # eight points, from a thousandth of a gap on
_BETAS = 0.9, 0.999  # of Adam: β₁, β₂
_EPSILON = 1e-8
_LEAST = 1e-30  # of an intensity, before its logarithm


@dataclass(frozen=True)
class WindowTPPConfig:
    """What the model is, and how it learns."""

    base: Literal["nhp", "attnhp"] = "nhp"
    """nhp: a recurrent state that decays. attnhp: attention to the events before."""
    width: int = 16
    """Of the states of the model."""
    layers: int = 1
    """Layers of attention, of attnhp."""
    heads: int = 1
    """Heads of attention, of attnhp."""
    unit: float = 1.0
    """Seconds in the unit of time: about a usual gap, as a stream of windows says."""
    length: int = 32
    """Events in a window."""
    context: int = 1
    """How many of them, the first, are not scored."""
    step_size: float = 0.01
    """Of Adam."""
    batch_size: int = 4
    """Windows that an update is made of; each is scored when it comes."""
    largest_gradient: float = 1.0
    """Norm above which a gradient is shortened."""

    def __post_init__(self) -> None:
        if self.base not in ("nhp", "attnhp"):
            raise UsageError(f"base is {self.base!r}; use nhp or attnhp.")
        for name in ("width", "layers", "heads", "context", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; use 1 or more.")
        if self.length <= self.context:
            raise UsageError(f"length is {self.length}, context {self.context}; use a length above it.")
        for name in ("unit", "step_size", "largest_gradient"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}; use a number above 0.")


class WindowNetwork(nn.Module):
    """An intensity model that is asked about windows. model: an `IntensityModel`, which may be replaced."""

    def __init__(self, model: nn.Module, context: int) -> None:
        super().__init__()
        self.model: Any = model
        self.context = context

    @staticmethod
    def sequences(inputs: Tensor) -> Sequences:
        """Return windows, float [n, length, 2], as sequences whose times begin at 0."""
        times = inputs[..., 0].double().cumsum(1)
        lengths = torch.full((len(times),), times.shape[1])
        zero = torch.zeros(len(times), dtype=torch.float64)
        return Sequences(times, inputs[..., 1].long(), lengths, zero, times[:, -1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log intensities at the time of the last event, [n, types], of windows [n, length, 2]."""
        sequences = self.sequences(inputs)
        count, length = sequences.times.shape
        memory = self.model.remember(sequences)
        before = torch.full((count, 1), length - 1)
        rates: Tensor = self.model.intensities(memory, sequences.times[:, -1:], before)[:, 0]
        return rates.clamp(min=_LEAST).log()

    def event_scores(self, inputs: Tensor, nodes: Nodes) -> EventScores:
        """Return the scores of the events after the context, [n, length - context] each."""
        sequences = self.sequences(inputs)
        first = torch.full((len(inputs),), self.context)
        return event_scores(self.model, Batch(sequences, first), nodes)


class WindowTPP:
    """A neural point process that learns from windows. types: how many there are. seed: of the first weights.

    A parameter's step size is that of the configuration times its entry of `step_scales`, by the beginning of
    its name.

    >>> import numpy as np
    >>> model = WindowTPP(2, WindowTPPConfig(width=4, length=5, batch_size=1), seed=0)
    >>> for number in range(200):  # an event a second, of the two types in turn
    ...     types = (number + np.arange(5)) % 2
    ...     gaps = np.array([0, 1, 1, 1, 1])
    ...     window = np.stack([gaps, types], axis=1).astype(np.float32)
    ...     metrics = model.learn_one(Example(window, int(types[-1])))
    >>> metrics["correct"], round(metrics["log_likelihood"], 1)
    (1.0, -0.1)
    """

    def __init__(self, types: int, config: WindowTPPConfig | None = None, *, seed: int = 0) -> None:
        self.config = c = config or WindowTPPConfig()
        self.types = types
        generator = torch.Generator().manual_seed(seed)
        model: NHP | AttNHP
        if c.base == "nhp":
            model = NHP(types, NHPSettings(c.width, c.unit), generator=generator)
        else:
            attention = AttNHPSettings(width=c.width, layers=c.layers, heads=c.heads, unit=c.unit)
            model = AttNHP(types, attention, generator=generator)
        self.network: Any = WindowNetwork(model, c.context)
        self.objective: Objective = self.loss
        self.step_scales: dict[str, float] = {}
        self._moments: dict[str, Tensor] = {}  # m, v and how often they moved, [3, ...], of each parameter
        self._inputs: list[Tensor] = []  # of the batch that is not full
        self._targets: list[int] = []
        self._updates = 0

    @property
    def updates(self) -> int:
        """How many updates there have been."""
        return self._updates

    def scores(self, inputs: Tensor) -> Tensor:
        """Return log intensities at the time of the last event, [n, types], changing nothing."""
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad():
            found: Tensor = self.network(inputs)
        self.network.train(was_training)
        return found

    def event_scores(self, inputs: Tensor) -> EventScores:
        """Return the scores of the events of windows [n, length, 2], by SCORING, changing nothing."""
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad():
            found: EventScores = self.network.event_scores(inputs, SCORING)
        self.network.train(was_training)
        return found

    def log_likelihood(self, inputs: Tensor) -> float:
        """Return the mean log-likelihood of a scored event, in nats, of windows [n, length, 2]."""
        return float(self.event_scores(inputs).log_likelihood)

    def learn_one(self, example: Example, /) -> Metrics:
        """Score one window, then learn from it once a batch is full.

        Returns the mean log-likelihood of its scored events, in nats, of times in seconds ("log_likelihood"),
        and the share of them whose type was the likeliest at their time ("correct"). Raises
        NonFiniteSampleError for NaN and infinities, ValueError for what is no window of these types.
        """
        inputs = self._checked(example)
        scores = self.event_scores(inputs[None])
        own = inputs[self.config.context :, 1].long()
        metrics = {
            "log_likelihood": float(scores.log_likelihood),
            "correct": float((scores.likeliest[0] == own).double().mean()),
        }
        self._inputs.append(inputs)
        self._targets.append(example.label)
        if len(self._inputs) == self.config.batch_size:
            batch = torch.stack(self._inputs), torch.tensor(self._targets)
            self._inputs, self._targets = [], []
            self.update(*batch)
        return metrics

    def _checked(self, example: Example) -> Tensor:
        inputs = torch.from_numpy(example.features).to(torch.float32)
        if inputs.shape != (self.config.length, 2):
            raise ValueError(
                f"a window has shape {list(inputs.shape)}; use [{self.config.length}, 2], or another length."
            )
        if not torch.isfinite(inputs).all():
            raise NonFiniteSampleError(f"a window before type {example.label} holds what is not finite.")
        gaps, types = inputs.unbind(1)
        if (gaps < 0.0).any():
            raise ValueError(f"a gap is {float(gaps.min())} seconds; sort the events of a key by time.")
        wrong = types[(types < 0.0) | (types >= self.types) | (types != types.round())]
        if len(wrong):
            raise ValueError(f"a type is {float(wrong[0]):g}, and there are {self.types}, from 0.")
        if example.label != int(types[-1]):
            raise ValueError(f"the label is {example.label}, and the last type {int(types[-1])}; use that.")
        return inputs

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """Make one step down the gradient of the objective."""
        named = [(name, weight) for name, weight in self.network.named_parameters() if weight.requires_grad]
        loss = self.objective(inputs, targets)
        gradients = torch.autograd.grad(loss, [weight for _, weight in named], allow_unused=True)
        norm = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
        shrink = (self.config.largest_gradient / norm.clamp(min=_EPSILON)).clamp(max=1.0)
        for (name, weight), gradient in zip(named, gradients, strict=True):
            if gradient is not None:
                step_size = self.config.step_size * self._scale(name)
                weight.data.sub_(step_size * self._way(name, shrink * gradient))
        self._updates += 1

    def _way(self, name: str, gradient: Tensor) -> Tensor:
        """Return what a parameter moves by for a step size of 1, and move its moments."""
        if name not in self._moments:
            self._moments[name] = torch.zeros(3, *gradient.shape)
        mean, square, steps = self._moments[name]
        moved = (gradient != 0.0).to(gradient.dtype)
        steps += moved
        mean += moved * (1.0 - _BETAS[0]) * (gradient - mean)
        square += moved * (1.0 - _BETAS[1]) * (gradient.square() - square)
        first, second = (1.0 - beta ** steps.clamp(min=1.0) for beta in _BETAS)
        way: Tensor = moved * (mean / first) / ((square / second).sqrt() + _EPSILON)
        return way

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return minus the mean log-likelihood of a scored event; windows hold what targets say."""
        scores: EventScores = self.network.event_scores(inputs, TRAINING)
        return -scores.log_likelihood

    def consolidate(self) -> None:
        """Do nothing: by itself it does not look back."""

    def _scale(self, name: str) -> float:
        return next((scale for start, scale in self.step_scales.items() if name.startswith(start)), 1.0)

    def state_dict(self) -> State:
        """Return weights, buffers, moments, the batch that is not full, and how many updates there were."""
        state = {f"network.{name}": x.detach().clone() for name, x in self.network.state_dict().items()}
        moments = {f"moments.{name}": x.clone() for name, x in self._moments.items()}
        inputs = torch.stack(self._inputs) if self._inputs else torch.zeros(0, self.config.length, 2)
        return {
            **state,
            **moments,
            "batch.inputs": inputs,
            "batch.targets": torch.tensor(self._targets, dtype=torch.int64),
            "updates": torch.tensor(self._updates),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        parts: dict[str, dict[str, Tensor]] = {"network.": {}, "moments.": {}}
        for start, found in parts.items():
            found.update({key.removeprefix(start): x for key, x in state.items() if key.startswith(start)})
        self.network.load_state_dict(parts["network."])
        self._moments = {name: x.clone() for name, x in parts["moments."].items()}
        self._inputs = list(state["batch.inputs"].clone())
        self._targets = state["batch.targets"].tolist()
        self._updates = int(state["updates"])
