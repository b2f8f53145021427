"""Training an intensity model on batches of sequences, its base at every step and its pool of prompts slower.

    minimise  - (1/n) Σ [ log λ_{k_i}(t_i) - Λ_i ]  +  α (1 - mean cosine of what was retrieved)

over the n events of a batch that are scored. Λ_i runs from the event before, whether or not that one is
scored, so that the parts of a divided stream add up to the whole. It is estimated at random points, evenly in
every decade of the gap, without bias.

Refreshing the pool: the base moves at every step, the pool at every C-th by the gradient accumulated since.
C = 1 is the synchronous refresh. Each has an optimizer of its own; nothing else tells them apart.

Departures from the published code: the loss is per event, so that α means the same for every batch; gradients
of the pool are kept between its steps, not thrown away. Source: Xue et al. (2023), "Prompt-augmented temporal
point process for streaming event sequence", arXiv:2310.04993.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from streamwise.agents.neural_tpp import (
    IntensityModel,
    Nodes,
    Sequences,
    gauss_legendre,
    log_spaced,
    stratified,
)
from streamwise.memory.prompt_pool import PromptPool, Retrieved
from streamwise.streams import UsageError

__all__ = [
    "SCORING",
    "Batch",
    "EventScores",
    "Fit",
    "TrainableModel",
    "Trainer",
    "TrainingSettings",
    "event_scores",
    "fit",
    "intensities_of_intervals",
]

SCORING = log_spaced(gauss_legendre(3), 6)  # the rule that scores: 21 points, from a millionth of a gap on
_DECADES = 3  # of a gap that training looks at one by one
_FLOOR = 1e-30  # of an intensity, before its logarithm; float32 ends at 1e-38
_BLOCK = 16384  # times that are asked about at once, which bounds the memory of attention


class TrainableModel(IntensityModel, Protocol):
    """An intensity model with parameters, and a pool of prompts or None."""

    pool: PromptPool | None

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return all parameters, those of the pool among them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all tensors by name."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Put them back."""
        ...


@dataclass(frozen=True)
class TrainingSettings:
    """How an intensity model is trained."""

    step_size: float = 1e-2
    """Of AdamW, for the base."""
    weight_decay: float = 0.01
    """Of AdamW, for the base; the pool has none, for it would move prompts that nobody selected."""
    pool_step_size: float = 1e-2
    """Of Adam, for the pool; 0 leaves it as it is."""
    refresh_every: int = 2
    """Steps of the base for each of the pool, which takes the gradient accumulated meanwhile."""
    matching: float = 0.1
    """Weight of the loss that draws the keys of prompts to the queries that found them."""
    samples: int = 2
    """Random points at which a compensator is looked at, in each of four parts of a gap."""
    largest_gradient: float = 1.0
    """Norm above which a gradient is shortened."""

    def __post_init__(self) -> None:
        for name, low in (("refresh_every", 1), ("samples", 1), ("weight_decay", 0.0), ("matching", 0.0),
                          ("pool_step_size", 0.0)):  # fmt: skip
            if not low <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; use {low} or more.")
        for name in ("step_size", "largest_gradient"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; use a number above 0.")


@dataclass(frozen=True)
class Batch:
    """Sequences of which the events from number `first` on are scored; those before are context.

    first: int64 [sequences], 1 or more, for the interval of a scored event begins with the event before it.
    """

    sequences: Sequences
    first: Tensor

    @property
    def scored(self) -> tuple[Tensor, Tensor]:
        """Return the places of scored events, int64 [sequences, scored], and which of these are real."""
        lengths = self.sequences.lengths[:, None]
        places = self.first[:, None] + torch.arange(int((lengths[:, 0] - self.first).max()))
        return places.clamp(max=lengths - 1), places < lengths


class EventScores(NamedTuple):
    """What a model says of the scored events of a batch, float [sequences, scored]; zero where none is real.

    time: log λ(t_i) - Λ_i, in nats, of times in seconds. type: log(λ_{k_i}(t_i) / λ(t_i)), in nats.
    likeliest: int64, the type of the largest intensity at the event's own time. mask: which are real.
    """

    time: Tensor
    type: Tensor
    compensator: Tensor
    likeliest: Tensor
    mask: Tensor

    @property
    def log_likelihood(self) -> Tensor:
        """The mean over the events, in nats."""
        return (self.time + self.type).sum() / self.mask.sum()


def intensities_of_intervals(model: IntensityModel, memory: Any, times: Tensor, visible: Tensor) -> Tensor:
    """Return λ_k, float [sequences, intervals, times, types], asking about a bounded number at once.

    times: float64 [sequences, intervals, times]. visible: int64 [sequences, intervals], the events before.
    """
    together = max(_BLOCK // (len(times) * times.shape[2]), 1)  # intervals
    blocks = zip(torch.split(times, together, 1), torch.split(visible, together, 1), strict=True)
    return torch.cat([model.intensities(memory, *block) for block in blocks], 1)


def event_scores(model: IntensityModel, batch: Batch, nodes: Nodes, memory: Any = None) -> EventScores:
    """Return the scores of a batch. nodes: [nodes], or [sequences, scored, nodes].

    memory: what `model.remember` gave for these sequences; made here if it is not given.
    """
    sequences = batch.sequences
    memory = model.remember(sequences) if memory is None else memory
    places, mask = batch.scored
    now, before = sequences.times.gather(1, places), sequences.times.gather(1, places - 1)
    gaps = torch.where(mask, now - before, 0.0)
    inside = before[..., None] + nodes.at * gaps[..., None]  # [sequences, scored, nodes]
    visible = torch.where(mask, places, 0)  # what is not real sees nothing, which takes the least time
    rates = intensities_of_intervals(model, memory, torch.cat([inside, now[..., None]], 2), visible)

    at_nodes, at_events = rates[:, :, :-1].sum(3), rates[:, :, -1]
    compensator = (at_nodes * nodes.weights.to(rates.dtype)).sum(2) * gaps.to(rates.dtype)
    own = at_events.gather(2, sequences.types.gather(1, places)[..., None])[..., 0]
    log_total, log_own = (x.clamp(min=_FLOOR).log() for x in (at_events.sum(2), own))
    zero = torch.zeros((), dtype=rates.dtype)
    return EventScores(
        time=torch.where(mask, log_total - compensator, zero),
        type=torch.where(mask, log_own - log_total, zero),
        compensator=torch.where(mask, compensator, zero),
        likeliest=at_events.argmax(2),
        mask=mask,
    )


class Trainer:
    """Takes steps on batches: the base by AdamW at each, the pool by Adam at every `refresh_every`-th.

    generator: draws where compensators are looked at.
    """

    def __init__(self, model: TrainableModel, settings: TrainingSettings, generator: torch.Generator) -> None:
        self.model, self.settings, self.generator = model, settings, generator
        self.pool_parameters = [] if model.pool is None else list(model.pool.parameters())
        in_pool = {id(parameter) for parameter in self.pool_parameters}
        self.base_parameters = [p for p in model.parameters() if id(p) not in in_pool]
        self.base = torch.optim.AdamW(
            self.base_parameters, settings.step_size, weight_decay=settings.weight_decay
        )
        self.pool = (
            torch.optim.Adam(self.pool_parameters, settings.pool_step_size) if self.pool_parameters else None
        )
        self.steps = 0

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, in nats an event."""
        places, mask = batch.scored
        nodes = log_spaced(stratified(tuple(places.shape), self.settings.samples, self.generator), _DECADES)
        memory = self.model.remember(batch.sequences)
        loss = -event_scores(self.model, batch, nodes, memory).log_likelihood
        if self.model.pool is None:
            return loss
        found = memory.retrieved  # by how many events were seen, which is an event's place
        rows = torch.arange(len(places))[:, None].expand_as(places)[mask], places[mask]
        matched = self.model.pool.matching_loss(Retrieved(found.ids[rows], found.cosines[rows]))
        return loss + self.settings.matching * matched

    def step(self, batch: Batch, penalty: Callable[[], Tensor] | None = None, pace: float = 1.0) -> float:
        """Take one step; return the loss before it, without the penalty, which is added to it.

        pace: what the step sizes of the settings are multiplied with.
        """
        loss = self.loss(batch)
        self.base.zero_grad()
        (loss if penalty is None else loss + penalty()).backward()  # type: ignore[no-untyped-call]  # torch says no types
        self._apply(self.base, self.base_parameters, pace * self.settings.step_size)
        self.steps += 1
        if self.pool is not None and self.steps % self.settings.refresh_every == 0:
            self._apply(self.pool, self.pool_parameters, pace * self.settings.pool_step_size)
            self.pool.zero_grad()
        return loss.item()

    def _apply(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], step_size: float
    ) -> None:
        nn.utils.clip_grad_norm_(parameters, self.settings.largest_gradient)
        for group in optimizer.param_groups:
            group["lr"] = step_size
        optimizer.step()


class Fit(NamedTuple):
    """How a training went. epoch: after which the weights that were kept were met; 0 is before the first."""

    steps: int
    epochs: int
    epoch: int
    validation: float


def fit(
    trainer: Trainer,
    batches: Callable[[], Iterable[Batch]],
    validate: Callable[[], float],
    *,
    steps: int,
    penalty: Callable[[], Tensor] | None = None,
) -> Fit:
    """Train with step sizes that fall to zero in a line, and leave the model at its best epoch.

    A step size that is good to learn a task with is too large to stay at what was learned, and one epoch's
    validation says little of the next while it is large. So all steps are made.

    batches: gives those of one epoch, at least one. validate: a score, higher is better; it is asked before
    the first epoch too, so that a model is never left worse than it was.
    """
    model = trainer.model
    best, kept, epoch = validate(), _copy(model), 0
    made = 0
    while trainer.steps < steps:
        for batch in batches():
            if trainer.steps == steps:
                break
            trainer.step(batch, penalty, pace=1.0 - trainer.steps / steps)
        made += 1
        score = validate()
        if score > best:  # a NaN is no improvement
            best, kept, epoch = score, _copy(model), made
    model.load_state_dict(kept)
    return Fit(trainer.steps, made, epoch, best)


def _copy(model: TrainableModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
