"""MOS, model surgery: each world has an adapter, kept when it is over, and found again by what it says.

    h = W x + c + s · U relu(V x)          at each hidden layer; V [r, in] and U [out, r], U from zero
    loss = cross-entropy over this world's classes + λ L_orth             f: the features, into the head
    L_orth = cross-entropy of M Mᵀ/τ to the identity        M: means of older classes, then f of the batch
    after each update of world b ≥ 1:  θ ← (1−m) θ + m · mean_{j<b} θ_j   θ: all V and U

    consolidate():  θ_b ← θ, from which θ goes on; from the second time on, the head, and nothing else, is
    fitted to draws of N(μ_k, Σ_k + ε I) of each class: mean and covariance of its f, under its own adapter

    predicted:  a₀ = adapter of the class whose mean under adapter 0 has the largest cosine with f
                a  = adapter of the class that the head says under the last a; until it is the last one
                p  = 1/2 softmax(head under a) + 1/2 softmax(adapters · cosines)

Worlds have to bring classes of their own: a class belongs to the adapter of the world that it first came in.

Departures from the published code. It begins with a large network; here, unless there is one, the trunk is
trained until the first `consolidate`, and adapter 0 is the trunk alone. The merge is done once for an update,
never in a prediction. Means and covariances are running ones, of features as they were when a sample was
learned from; nothing is looked at twice. If four rounds do not settle on an adapter, a₀ stays: what was found
is then found again from itself. The head is fitted a little after each update, too: otherwise a new class
hardly ever wins against older ones before its world is over (split digits, one hidden layer of 256: 34% right
before they were learned, and 90% so). No momentum and no decay in that, no dropout in adapters.

Measured on split digits, one pass: what is gained comes from the means and covariances and from the width of
the last hidden layer. Adapters add nothing there; a trunk that is not trained at all does as well.

Source: Sun et al. (2025), "MOS: model surgery for pre-trained model-based class-incremental learning",
arXiv:2412.09441.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from streamwise.memory.continual.draws import generator_of
from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["Adapter", "ModelSurgery", "Surgery", "orthogonality_loss", "refined"]

_NEVER = torch.finfo(torch.float32).min  # the log-odds of a class that is not known
_RIDGE = 1e-4  # ε, of the largest variance if that is above 1


def refined(starts: Tensor, leads: Tensor, rounds: int = 4) -> Tensor:
    """Return the adapter that each sample settles on, [n]; where it starts if it does not, in so many rounds.

    starts: adapters, [n]. leads: the adapter of the class that is said under each adapter, [adapters, n].
    """
    last = found = starts
    for _ in range(rounds):
        last, found = found, leads.gather(0, found[None])[0]
    return torch.where(found == last, found, starts)


def orthogonality_loss(means: Tensor, features: Tensor, temperature: float) -> Tensor:
    """Return how much rows resemble one another and not themselves, a scalar.

    means: [classes, width]. features: [n, width]. temperature: τ.
    """
    rows = torch.cat([means, features])
    return nn.functional.cross_entropy(rows @ rows.T / temperature, torch.arange(len(rows)))


class Adapter(nn.Module):
    """What is added to a hidden layer in this world, and was in those that are over.

    rank: r. kept: places for those that are over. scale: s.
    """

    kept_down: Tensor
    kept_up: Tensor

    def __init__(self, layer: nn.Linear, rank: int, kept: int, scale: float, generator: torch.Generator):
        super().__init__()
        outputs, inputs = layer.weight.shape
        down = (2.0 / inputs) ** 0.5 * torch.randn(rank, inputs, generator=generator)
        self.down = nn.Parameter(down, requires_grad=False)  # V
        self.up = nn.Parameter(torch.zeros(outputs, rank), requires_grad=False)  # U
        self.register_buffer("kept_down", torch.zeros(kept, rank, inputs))
        self.register_buffer("kept_up", torch.zeros(kept, outputs, rank))
        self.scale = scale

    def forward(self, inputs: Tensor, over: int | None = None) -> Tensor:
        """Return what is added for inputs [n, in], now, [n, out]; or in worlds up to now, [over + 1, n, out].

        over: how many worlds to begin with, before the present one. Inputs may be of each world, too.
        """
        down: Tensor = self.down
        up: Tensor = self.up
        if over is not None:
            down = torch.cat([self.kept_down[:over], down[None]])
            up = torch.cat([self.kept_up[:over], up[None]])
        added: Tensor = self.scale * (inputs @ down.mT).relu() @ up.mT
        return added

    @torch.no_grad()
    def keep(self, place: int) -> None:
        """Keep a copy of the present adapter."""
        self.kept_down[place], self.kept_up[place] = self.down, self.up

    @torch.no_grad()
    def merge(self, over: int, momentum: float) -> None:
        """Pull the present adapter towards the mean of those of the worlds that are over."""
        self.down.lerp_(self.kept_down[:over].mean(0), momentum)
        self.up.lerp_(self.kept_up[:over].mean(0), momentum)


class Surgery(nn.Module):
    """A trunk with adapters, a head, and what is known of each class.

    trunk: linear layers, and functions of single numbers between them. The rest: see `ModelSurgery`.
    In training, what the head says under the present adapter; otherwise log p.
    """

    means: Tensor
    covariances: Tensor
    prototypes: Tensor
    counts: Tensor
    world_of: Tensor

    def __init__(
        self, trunk: nn.Sequential, head: nn.Linear, *, rank: int, most: int, scale: float, seed: int
    ) -> None:
        super().__init__()
        self.trunk, self.head, self.most = trunk, head, most
        generator = torch.Generator().manual_seed(seed)
        self.adapters = nn.ModuleList(
            Adapter(layer, rank, most - 1, scale, generator)
            for layer in trunk
            if isinstance(layer, nn.Linear)
        )
        classes, width = head.weight.shape
        self.register_buffer("means", torch.zeros(classes, width))  # μ
        self.register_buffer("covariances", torch.zeros(classes, width, width))  # Σ
        self.register_buffer("prototypes", torch.zeros(classes, width))  # means under adapter 0
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("world_of", torch.zeros(classes, dtype=torch.int64))  # each first came in
        self.world = 0  # b

    @property
    def over(self) -> int:
        """How many adapters are finished; the present one's number, too."""
        return min(self.world, self.most - 1)

    def features(self, inputs: Tensor, over: int | None = None) -> Tensor:
        """Return f, [n, width], under the present adapter, or under several; see `Adapter.forward`."""
        found, adapters = inputs, iter(self.adapters)
        for module in self.trunk:
            added = next(adapters)(found, over) if isinstance(module, nn.Linear) else 0.0
            found = module(found) + added
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the log-odds of the classes, [n, classes], for inputs [n, ...]."""
        if self.training:
            said: Tensor = self.head(self.features(inputs))
            return said
        known = self.counts > 0
        features = self.features(inputs, self.over)
        logits = self.head(features).masked_fill(~known, _NEVER)  # [adapters, n, classes]
        directions = nn.functional.normalize(self.prototypes, dim=1)
        cosines = (nn.functional.normalize(features[0], dim=1) @ directions.T).masked_fill(~known, -1.0)
        adapter_of = self.world_of.clamp(max=self.over)
        chosen = refined(adapter_of[cosines.argmax(1)], adapter_of[logits.argmax(2)])
        said = logits[chosen, torch.arange(len(inputs))]
        return (0.5 * said.softmax(1) + 0.5 * ((self.over + 1) * cosines).softmax(1)).log()

    @torch.no_grad()
    def observe(self, inputs: Tensor, targets: Tensor) -> None:
        """Let the classes of a batch be known, each under its own adapter."""
        self.world_of[targets[self.counts[targets] == 0]] = self.world
        features = self.features(inputs, self.over)
        for row, label in enumerate(targets.tolist()):
            self.counts[label] += 1
            share = 1.0 / int(self.counts[label])
            own = features[min(int(self.world_of[label]), self.over), row]
            off = own - self.means[label]
            self.prototypes[label] += share * (features[0, row] - self.prototypes[label])
            self.means[label] += share * off
            self.covariances[label] += share * torch.outer(off, off)
            self.covariances[label] *= 1.0 - share

    def align(self, steps: int, draws: int, step_size: float, generator: torch.Generator) -> None:
        """Fit the head to so many draws of each known class a step, with steps that shrink to nothing."""
        known = torch.nonzero(self.counts)[:, 0]
        means, covariances = self.means[known], self.covariances[known].double()
        ridges = _RIDGE * covariances.diagonal(dim1=1, dim2=2).amax(1).clamp(min=1.0)
        identity = torch.eye(means.shape[1], dtype=torch.float64)
        roots = torch.linalg.cholesky(covariances + ridges[:, None, None] * identity).to(means.dtype)
        labels = torch.arange(len(known)).repeat_interleave(draws)
        weights = list(self.head.parameters())
        for step in range(steps):
            noise = torch.randn(len(known), draws, means.shape[1], generator=generator)
            drawn = (means[:, None] + noise @ roots.mT).flatten(0, 1)
            loss = nn.functional.cross_entropy(self.head(drawn)[:, known], labels)
            size = step_size * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.data.sub_(size * gradient)


class ModelSurgery(Wrapped):
    """Gives the learner's network an adapter for each world, and a memory of what its classes look like.

    The network has to be a sequence that ends with a linear layer, the head. rank, scale: r and s, of
    adapters. momentum: m. orthogonality, temperature: λ and τ. adapter_scale: of adapters, times the
    learner's step size. most: adapters, the trunk alone or that of the first world included; when there are
    as many, the last one is trained no more, and what comes is learned under it by the head and the means and
    covariances. steps, draws, step_size: of the fit at `consolidate`, draws of each class a step.
    steps_between: of the fit after an update; 0: none. warm_up: whether the trunk is to be trained until the
    first `consolidate`; if not, adapters are from the first update on.
    """

    name = "surgery"

    def __init__(
        self,
        learner: Trainable,
        *,
        rank: int = 4,
        scale: float = 0.1,
        momentum: float = 0.1,
        orthogonality: float = 0.1,
        temperature: float = 0.8,
        adapter_scale: float = 10.0,
        most: int = 10,
        steps: int = 300,
        steps_between: int = 5,
        draws: int = 20,
        step_size: float = 1.0,
        warm_up: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        for name, number in (("rank", rank), ("most", most), ("draws", draws)):
            if number < 1:
                raise ValueError(f"{name} is {number}; use 1 or more.")
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"momentum is {momentum}; use 0 to 1.")
        network = self.network
        if not isinstance(network, nn.Sequential) or not isinstance(head := network[-1], nn.Linear):
            raise ValueError("the network is no sequence that ends with a linear layer, the head.")
        trunk = nn.Sequential(*list(network)[:-1])
        if not any(isinstance(layer, nn.Linear) for layer in trunk):
            raise ValueError("the network has no hidden layer to put adapters at; use one or more.")
        self.model = Surgery(trunk, head, rank=rank, most=most, scale=scale, seed=seed)
        self.network = self.model
        self.momentum, self.warm_up = momentum, warm_up
        self.step_scales["adapters."] = adapter_scale
        self.orthogonality, self.temperature = orthogonality, temperature
        self.steps, self.steps_between, self.draws, self.step_size = steps, steps_between, draws, step_size
        self.seed, self.fits = seed, 0
        self.began = 0  # how many updates there had been before this world
        self.objective = self.losses
        self._choose_what_is_trained()

    def losses(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, whose classes are known from now on."""
        model = self.model
        older = (model.counts > 0) & (model.world_of < model.world)
        model.observe(inputs, targets)
        these = (model.counts > 0) & (model.world_of == model.world)
        these[targets] = True  # also those that have come back
        features = model.features(inputs)
        logits = model.head(features).masked_fill(~these, -torch.inf)
        loss = nn.functional.cross_entropy(logits, targets)
        return loss + self.orthogonality * orthogonality_loss(model.means[older], features, self.temperature)

    def learn_one(self, sample: object, /) -> Mapping[str, float]:
        """Score a sample and learn from it; after an update, merge, and fit the head a little."""
        before = self.updates
        metrics = super().learn_one(sample)
        if self.updates > before and self.model.world:
            if self.model.world < self.model.most:
                for adapter in self._adapters():
                    adapter.merge(self.model.over, self.momentum)
            if self.steps_between:
                self._align(self.steps_between)
        return metrics

    def consolidate(self) -> None:
        """Finish this world's adapter and fit the head, if anything was learned in this world."""
        super().consolidate()
        if self.updates == self.began:
            return
        if self.model.world < self.model.most - 1:
            for adapter in self._adapters():
                adapter.keep(self.model.world)
        self.model.world += 1
        self.began = self.updates
        self._choose_what_is_trained()
        if self.model.world > 1:
            self._align(self.steps)

    def _adapters(self) -> list[Adapter]:
        return [adapter for adapter in self.model.adapters if isinstance(adapter, Adapter)]

    def _align(self, steps: int) -> None:
        self.fits += 1
        generator = generator_of(self.seed, self.fits)
        self.model.align(steps, self.draws, self.step_size, generator)

    def _choose_what_is_trained(self) -> None:
        """Train the trunk while it warms up, then adapters as long as there is room for another."""
        warming_up = self.warm_up and not self.model.world
        self.model.trunk.requires_grad_(warming_up)
        self.model.adapters.requires_grad_(not warming_up and self.model.world < self.model.most)

    def own_state(self) -> dict[str, Tensor]:
        """Return which world this is; adapters and classes are in the network."""
        return {"counts": torch.tensor([self.model.world, self.began, self.fits])}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self.model.world, self.began, self.fits = (int(count) for count in state["counts"])
        self._choose_what_is_trained()
