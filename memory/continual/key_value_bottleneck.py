"""A discrete key-value bottleneck: what is learned is written where nothing else is kept.

    z_c = G_cᵀ e                      C heads of an encoding e [E], each of d_k numbers; G is fixed
    j_c = argmin_j |z_c − K_cj|²      the nearest of P keys
    output = 1/C Σ_c V_c,j_c          the values of those; they alone are trained, from zero

An update moves the C values that were fetched, and no other: what is far from it is not forgotten. Keys
follow the data, without labels, before anything is learned, and are frozen then:

    N ← γN + (1−γ)n      A ← γA + (1−γ)s      K ← A / Ñ      n, s: how many z fell to a key, and their sum
    a key with N < τ = 0.1 B/P is replaced by a z of the batch

Departure from the published code: a key that is replaced gets N = τ and A = τ z, too; otherwise the next
step undoes it. As there, a prediction passes over pairs that nothing has trained.

Source: Träuble et al. (2023), "Discrete key-value bottleneck", arXiv:2207.11240.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from streamwise.memory.continual.draws import generator_of
from streamwise.memory.continual.wrapped import Trainable, Wrapped

__all__ = ["Bottleneck", "KeyValueBottleneck"]

_EPSILON = 1e-5


class Bottleneck(nn.Module):
    """Heads, keys and values. width: E. outputs: d_v. books: C. pairs: P. key_width: d_k. decay: γ.

    forward: encodings [n, E] to outputs [n, d_v].
    """

    projection: Tensor
    keys: Tensor
    counts: Tensor
    sums: Tensor
    trained: Tensor

    def __init__(
        self, width: int, outputs: int, *, books: int, pairs: int, key_width: int, decay: float, seed: int
    ) -> None:
        super().__init__()
        self.decay = decay
        generator = torch.Generator().manual_seed(seed)
        heads = torch.randn(books, width, key_width, generator=generator)
        self.register_buffer("projection", heads / heads.norm(dim=1, keepdim=True))  # G
        keys = torch.randn(books, pairs, key_width, generator=generator)
        self.register_buffer("keys", keys)
        self.register_buffer("counts", torch.zeros(books, pairs))  # N
        self.register_buffer("sums", keys.clone())  # A
        self.register_buffer("trained", torch.zeros(books, pairs, dtype=torch.bool))
        self.values = nn.Parameter(torch.zeros(books, pairs, outputs))

    def heads(self, encodings: Tensor) -> Tensor:
        """Return z, [C, n, d_k]."""
        return torch.einsum("ne,cek->cnk", encodings, self.projection)

    def nearest(self, heads: Tensor, among: Tensor | None = None) -> Tensor:
        """Return j, [C, n]. among: bool [C, P], the keys that may be found; None: all."""
        distances = torch.cdist(heads, self.keys)
        if among is not None:
            distances = distances.masked_fill(~among[:, None], torch.inf)
        return distances.argmin(2)

    def fetched(self, encodings: Tensor) -> Tensor:
        """Return the pairs that are looked up, [C, n]: in training any, otherwise trained ones if any are."""
        any_trained = self.trained.any(1, keepdim=True)
        among = None if self.training else self.trained | ~any_trained
        return self.nearest(self.heads(encodings.detach()), among)

    def forward(self, encodings: Tensor) -> Tensor:
        """Return the mean of the values that are looked up, [n, d_v]."""
        found = self.fetched(encodings)
        mean: Tensor = self.values[torch.arange(len(found))[:, None], found].mean(0)
        return mean

    @torch.no_grad()
    def mark_trained(self, encodings: Tensor) -> None:
        """Take note that encodings [n, E] are learned from."""
        found = self.nearest(self.heads(encodings))
        self.trained[torch.arange(len(found))[:, None], found] = True

    @torch.no_grad()
    def move_keys(self, encodings: Tensor, generator: torch.Generator) -> None:
        """Make one step of the keys towards encodings [n, E]; those that few fall to are put elsewhere."""
        heads = self.heads(encodings)
        (books, count, _), pairs = heads.shape, self.keys.shape[1]
        hit = nn.functional.one_hot(self.nearest(heads), pairs).to(heads.dtype)  # [C, n, P]
        self.counts.lerp_(hit.sum(1), 1.0 - self.decay)
        self.sums.lerp_(hit.transpose(1, 2) @ heads, 1.0 - self.decay)
        whole = self.counts.sum(1, keepdim=True)
        smooth = (self.counts + _EPSILON) / (whole + pairs * _EPSILON) * whole  # Ñ
        self.keys.copy_(self.sums / smooth[:, :, None])
        least = 0.1 * count / pairs  # τ
        few = self.counts < least
        chosen = torch.randint(count, (books, pairs), generator=generator)
        drawn = heads.gather(1, chosen[:, :, None].expand_as(self.keys))
        self.keys[few] = drawn[few]
        self.counts[few] = least
        self.sums[few] = least * drawn[few]


class KeyValueBottleneck(Wrapped):
    """Replaces the learner's network by a bottleneck behind a frozen encoder.

    encoder: a frozen function from inputs [n, ...] to encodings [n, width]; None for the inputs. outputs: how
    many the learner's network has. warm_up: so many samples of the stream move the keys before anything else
    is learned from any; they are predicted, but their targets are not looked at. Or call `move_keys` with
    what there is beforehand. step_scale: of the values, times the learner's step size.
    """

    name = "bottleneck"

    def __init__(
        self,
        learner: Trainable,
        width: int,
        outputs: int,
        *,
        encoder: Callable[[Tensor], Tensor] | None = None,
        books: int = 64,
        pairs: int = 64,
        key_width: int = 8,
        decay: float = 0.95,
        warm_up: int = 0,
        key_batch: int = 64,
        step_scale: float = 3.0,
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        self.encoder = encoder or (lambda inputs: inputs)
        self.bottleneck = Bottleneck(
            width, outputs, books=books, pairs=pairs, key_width=key_width, decay=decay, seed=seed
        )
        self.network = _Behind(self.encoder, self.bottleneck)
        self.step_scales["bottleneck.values"] = step_scale
        self.warm_up, self.key_batch = warm_up, key_batch
        self.seed, self.moves, self.warmed = seed, 0, 0
        self._waiting: list[Tensor] = []
        self.plain = learner.objective
        self.objective = self._after_warming_up

    def move_keys(self, inputs: Tensor, epochs: int = 1) -> None:
        """Let the keys follow inputs [n, ...], whose targets nobody has to know, in batches."""
        for _ in range(epochs):
            order = torch.randperm(len(inputs), generator=self._generator())
            for start in range(0, len(order), self.key_batch):
                batch = order[start : start + self.key_batch]
                with torch.no_grad():
                    self.bottleneck.move_keys(self.encoder(inputs[batch]), self._generator())

    def _generator(self) -> torch.Generator:
        self.moves += 1
        return generator_of(self.seed, self.moves)

    def _after_warming_up(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.warmed >= self.warm_up:
            self.bottleneck.mark_trained(self.encoder(inputs))
            return self.plain(inputs, targets)
        self.warmed += len(inputs)
        self._waiting += list(inputs)
        if len(self._waiting) >= self.key_batch or self.warmed >= self.warm_up:
            self.move_keys(torch.stack(self._waiting))
            self._waiting = []
        return 0.0 * self.bottleneck.values.sum()

    def own_state(self) -> dict[str, Tensor]:
        """Return how far the keys are; they themselves are in the network."""
        waiting = torch.stack(self._waiting) if self._waiting else torch.zeros(0)
        return {"counts": torch.tensor([self.moves, self.warmed]), "waiting": waiting}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        self.moves, self.warmed = (int(count) for count in state["counts"])
        self._waiting = list(state["waiting"].clone())


class _Behind(nn.Module):
    """A bottleneck behind an encoder that is no part of what is trained or kept."""

    def __init__(self, encoder: Callable[[Tensor], Tensor], bottleneck: Bottleneck) -> None:
        super().__init__()
        self._encoder = encoder if not isinstance(encoder, nn.Module) else encoder.forward
        self.bottleneck = bottleneck

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            encodings = self._encoder(inputs)
        outputs: Tensor = self.bottleneck(encodings)
        return outputs
