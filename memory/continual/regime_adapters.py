"""MOS on event models: each regime has an adapter, and those that are kept are mixed by their likelihoods.

    W_b = W + U_b V_b,  c_b = c + a_b    of matrices that multiply states, and their biases; θ_b: all U, V, a
    p_b(i) = λ_{k_i}(t_i) exp(−Λ_i)      of event i, under adapter b
    w_b(i) ∝ Π_{j≤i} p_b(j)              after events 1..i of a window; alike before them
    p(i)   = Σ_b w_b(i−1) p_b(i)         what is predicted; of a window, mean_b Π_i p_b(i)
    after each update of a world b ≥ 1:  θ ← (1−m) θ + m · mean over kept θ_j

Nobody says which regime a window is of. A classifier has to guess from what its classes look like; a point
process has a likelihood, and the posterior it gives is exact and causal: an event is predicted by those that
have explained the events before it in its window. Not to know costs at most log(adapters) nats a window.

The model is trained until the first `consolidate`, then never again; adapter 0 is nothing. In later worlds
one adapter is trained, alone, by its own likelihood. It starts as a copy of its parent, the kept one under
which the world's first batch is likeliest: a regime that comes back is taken up where it was. At the end, if
it was better than the parent by less than `same` nats an event, measured on each batch before learning from
it, the world was the parent's own, seen further, and it takes the parent's place; so it does when there is no
other place. Otherwise it gets a place of its own.

Departures from the published method: all of retrieval; an adapter is a change of weights, not a path beside
layers, because event models are not made of layers; biases have one too, for a regime's rate is in them; no
head, prototypes or alignment. The table of types is shared by all. The pull, m = 0.1 there, is once for an
update, and left out if not asked for: for five regimes of Hawkes processes 0.1 cost 0.07 nats an event, and
0.01 changed nothing.

Source: Sun et al. (2025), "MOS: model surgery for pre-trained model-based class-incremental learning",
arXiv:2412.09441. Its use on event models is ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["RegimeAdapters", "RegimeNetwork"]

_LEAST = 1e-30  # of an intensity, before its logarithm
_DECADES = 6  # of a gap, of the rule for the time since the last event but one


class _Nodes(NamedTuple):
    at: Tensor
    weights: Tensor


def _rule() -> _Nodes:
    """Return Gauss and Legendre's rule of three points in each decade, by which events are scored, too."""
    points, shares = (torch.from_numpy(of) / 2.0 for of in np.polynomial.legendre.leggauss(3))
    bounds = torch.cat([torch.zeros(1), 10.0 ** torch.arange(-_DECADES, 1)]).double()
    widths = bounds.diff()[:, None]
    return _Nodes((bounds[:-1, None] + widths * (points + 0.5)).flatten(), (widths * shares).flatten())


class _Asked(nn.Module):
    """A network that is asked by a function: `functional_call` knows of `forward` alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ask: Callable[[Any], Any]) -> Any:
        """Return what the function finds."""
        return ask(self.network)


class RegimeNetwork(nn.Module):
    """A network of events with adapters. The rest: see `RegimeAdapters`.

    In training, what the present adapter says, or the one that is `worn`; otherwise the mixture of those that
    are kept and, if it has begun to learn, the present one. An adapter is one vector of numbers.
    """

    kept: Tensor

    def __init__(self, network: Any, *, rank: int, most: int, seed: int) -> None:
        super().__init__()
        self.context, network.context = network.context, 1  # events of the context tell of the regime, too
        self.events = _Asked(network)
        self.shapes = {
            name: weight.shape
            for name, weight in self.events.named_parameters()
            if name.rpartition(".")[2] in ("weight", "bias") and weight.requires_grad
        }
        self.rank, self.rule = rank, _rule()
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for up, down in self._sizes():  # U and a from zero, so that an adapter starts as nothing
            parts += [torch.zeros(up), torch.randn(down, generator=generator) / math.sqrt(rank)]
        self.present = nn.Parameter(torch.cat(parts), requires_grad=False)  # θ
        self.register_buffer("kept", torch.zeros(most, len(self.present)))
        self.count = 0  # of those that are kept
        self.begun = True  # whether the present one is of this world already
        self.worn: int | None = None

    def _sizes(self) -> list[tuple[int, int]]:
        """Return how many numbers U and V have of each matrix, a and nothing of each bias."""
        return [
            (shape.numel() // shape[-1] * self.rank, shape.numel() // shape[-2] * self.rank)
            if len(shape) > 1
            else (shape.numel(), 0)
            for shape in self.shapes.values()
        ]

    def additions(self, adapter: Tensor) -> dict[str, Tensor]:
        """Return what an adapter, [numbers], adds to the parameters of the network, by name."""
        parts = iter(torch.split(adapter, [size for sizes in self._sizes() for size in sizes]))
        found = {}
        for name, shape in self.shapes.items():
            up, down = next(parts), next(parts)
            if len(shape) > 1:
                up = up.view(*shape[:-1], self.rank) @ down.view(*shape[:-2], self.rank, shape[-1])
            found[name] = up
        return found

    def under(self, adapter: Tensor, ask: Callable[[Any], Any]) -> Any:
        """Return what a function finds that asks the network, under an adapter, [numbers]."""
        own = dict(self.events.named_parameters())
        weights = {name: own[name] + added for name, added in self.additions(adapter).items()}
        return torch.func.functional_call(self.events, weights, (ask,))

    def adapters(self) -> Tensor:
        """Return the adapters that are asked now, [adapters, numbers]."""
        if self.training:
            return (self.present if self.worn is None else self.kept[self.worn])[None]
        kept = self.kept[: self.count]
        return torch.cat([kept, self.present[None]]) if self.begun else kept

    def event_scores(self, inputs: Tensor, nodes: Any) -> Any:
        """Return the scores of the events after the context, [n, length - context] each, of the mixture."""
        adapters = self.adapters()
        if len(adapters) == 1:
            found = self.under(adapters[0], lambda network: network.event_scores(inputs, nodes))
        else:
            each, rates = self._each(adapters, inputs, nodes)
            before = log_posteriors(each.time + each.type)
            both = (before + each.time + each.type).logsumexp(0)
            time = (before + each.time).logsumexp(0)
            at_events = ((before - each.compensator).softmax(0)[..., None] * rates).sum(0)
            kind = each.time.dtype
            found = each._replace(
                time=time.to(kind),
                type=(both - time).to(kind),
                compensator=-(before - each.compensator).logsumexp(0).to(kind),
                likeliest=at_events.argmax(2),
                mask=each.mask[0],
            )
        return type(found)(*(part[:, self.context - 1 :] for part in found))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log intensities at the time of the last event, [n, types], of windows [n, length, 2]."""
        adapters = self.adapters()
        found: Tensor
        if len(adapters) == 1:
            found = self.under(adapters[0], lambda network: network(inputs))
            return found
        each, rates = self._each(adapters, inputs, self.rule)
        before = log_posteriors(each.time + each.type) - each.compensator
        found = (before[..., -1:].softmax(0) * rates[:, :, -1]).sum(0).clamp(min=_LEAST).log()
        return found.to(inputs.dtype)

    def _each(self, adapters: Tensor, inputs: Tensor, nodes: Any) -> tuple[Any, Tensor]:
        """Return the scores under each adapter, and the intensities of all types at the events' own times.

        Scores are [adapters, n, length - 1], of all events but the first; intensities have types, too.
        """

        def ask(network: Any) -> tuple[Any, Tensor]:
            sequences = network.sequences(inputs)
            seen = torch.arange(1, inputs.shape[1]).expand(len(inputs), -1)
            memory = network.model.remember(sequences)
            return network.event_scores(inputs, nodes), network.model.intensities(
                memory, sequences.times[:, 1:], seen
            )

        with warnings.catch_warnings():  # of a few operations of attention that torch then does one by one
            warnings.filterwarnings("ignore", message="There is a performance drop")
            found: tuple[Any, Tensor] = torch.func.vmap(lambda adapter: self.under(adapter, ask))(adapters)
        return found


def log_posteriors(logs: Tensor) -> Tensor:
    """Return the logarithms of w_b before each event, float64 [adapters, n, events].

    logs: log p_b of the events, of the same shape. Before the first event all adapters are alike.
    """
    exact = logs.double()
    return (exact.cumsum(2) - exact).log_softmax(0)


class RegimeAdapters(Wrapped):
    """Gives an event model an adapter for each regime, and mixes them by what they explain.

    The learner's network has to be one of windows of events, as that of a `WindowTPP`. rank: of what is added
    to a matrix. momentum: m. adapter_scale: of adapters, times the learner's step size. most: adapters that
    are kept, the first included, which is the model alone. same: nats an event by which a world has to be
    another than its parent's to get an adapter of its own; 0 gives one to nearly all.
    """

    name = "regimes"

    def __init__(
        self,
        learner: Trainable,
        *,
        rank: int = 8,
        momentum: float = 0.0,
        adapter_scale: float = 2.0,
        most: int = 10,
        same: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        for name, number in (("rank", rank), ("most", most)):
            if number < 1:
                raise ValueError(f"{name} is {number}; use 1 or more.")
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum is {momentum}; use 0 to 1.")
        if not hasattr(learner.network, "sequences"):
            raise ValueError("the network takes no windows of events; put this around an event model.")
        self.model = RegimeNetwork(learner.network, rank=rank, most=most, seed=seed)
        self.network = self.model
        self.momentum, self.most, self.same = momentum, most, same
        self.step_scales["present"] = adapter_scale
        self.parent = 0
        self.began = 0  # how many updates there had been before this world
        self.gain, self.batches = 0.0, 0  # on the parent: the sum over batches, and how many
        self.plain = learner.objective
        self.objective = self._of_the_present

    def _of_the_present(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of the present adapter; start it at the likeliest one, or see what it gained."""
        model = self.model
        if not model.begun:
            losses = [self._loss_under(place, inputs, targets) for place in range(model.count)]
            self.parent = int(np.argmin(losses))
            model.present.data.copy_(model.kept[self.parent])
            model.begun = True
        elif model.count:
            losses = [self._loss_under(place, inputs, targets) for place in (self.parent, None)]
            self.gain += losses[0] - losses[1]
            self.batches += 1
        return self.plain(inputs, targets)

    def _loss_under(self, place: int | None, inputs: Tensor, targets: Tensor) -> float:
        self.model.worn = place
        with torch.no_grad():
            found = float(self.loss(inputs, targets))
        self.model.worn = None
        return found

    def learn_one(self, sample: Any, /) -> Mapping[str, float]:
        """Score a window and learn from it; after an update, merge."""
        before = self.updates
        metrics = super().learn_one(sample)
        if self.updates > before and self.model.count:
            with torch.no_grad():
                self.model.present.lerp_(self.model.kept[: self.model.count].mean(0), self.momentum)
        return metrics

    def consolidate(self) -> None:
        """Keep the present adapter, in its parent's place or in one of its own, if anything was learned."""
        super().consolidate()
        if self.updates == self.began:
            return
        model = self.model
        known = model.count > 0 and self.gain < self.same * self.batches
        place = self.parent if known or model.count == self.most else model.count
        model.kept[place] = model.present.detach()
        model.count = max(model.count, place + 1)
        model.begun, self.began = False, self.updates
        self.gain, self.batches = 0.0, 0
        self._choose_what_is_trained()

    def _choose_what_is_trained(self) -> None:
        """Train the model in the first world, and adapters after it."""
        first = not self.model.count
        self.model.events.requires_grad_(first)
        self.model.present.requires_grad_(not first)

    def own_state(self) -> dict[str, Tensor]:
        """Return how far it is and what this world's adapter gained; adapters are in the network."""
        counts = [self.model.count, self.model.begun, self.parent, self.began, self.batches]
        return {"counts": torch.tensor(counts), "gain": torch.tensor(self.gain, dtype=torch.float64)}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        count, begun, self.parent, self.began, self.batches = state["counts"].tolist()
        self.model.count, self.model.begun = count, bool(begun)
        self.gain = float(state["gain"])
        self._choose_what_is_trained()
