"""Compression memory: blocks of samples are compressed into a bank, and read when a class is asked for.

    a document: B samples (x_i, y_i) of the stream       z_i = encoder(x_i), of length 1
    Compress: soft k-means into T vectors, in the space of z and of labels together, a few rounds of
        a_it = softmax_t(−β |z_i − m_t|² + b y_i · l_t)      n_t = Σ_i a_it      y_i: a one at its class
        m_t = Σ_i a_it z_i / n_t                             l_t = Σ_i a_it y_i / n_t
    keys: k_dt = normalise(m_t W)
    self-matching: a question is a document of one sample, so that q = normalise(z W);
        s_d = max_t q · k_dt;  the k documents with the largest are taken
    aggregation: w_dt = exp(z A · m_dt + log n_dt + log softmax_d(s/0.1))     w_0 = exp(z · u + c)
        answer = (w_0 softmax(base(x)) + Σ w_dt l_dt) / (w_0 + Σ w_dt)

    beforehand: L = CE(answer) + 0.1 InfoNCE(s_d⁺) + 0.5 max(0, CE(answer) − CE(base) + 0.1)

The encoder, where the vectors start, β, b, W, A, u and c are trained beforehand on many made-up episodes
(`train_on`), and are frozen then; the base is, too, if nothing else is said. From then on to learn is to
write: nothing that is kept changes by what comes later, and the order of documents means nothing.

No code was found, and the paper's formulas were not at hand: its three parts stand, how they are made for
classes is ours. Labels go around all weights: they are carried as shares beside each vector, and copied out
of it, so that if classes change their names, what is read changes them, too, and a class that no episode had
is read as well as any. A vector counts as often as there are samples in it. What is read and what the base
says are mixed as probabilities, by one attention in which the base has a place: with nothing to read, the
answer is the base's, and needs no training. In a fifth of the batches all documents that have the class are
hidden, so that it learns to leave alone what is irrelevant. Each vector has a key, where a document had one:
a block of samples is of several classes, and the mean of these is like none of them.

Sources: Li et al. (2024), "CMT: a memory compression method for continual knowledge learning of large
language models", arXiv:2412.07393; Locatello et al. (2020), arXiv:2006.15055, for rounds of attention that
compress a set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from streamwise.memory.continual.wrapped import Trainable, Wrapped
from streamwise.memory.splitmix import mix

__all__ = ["Bank", "CompressionMemory", "Compressor", "Memories"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 3
_SHARPNESS = 0.1  # the temperature of self-matching
_SMALLEST = 1e-6
_HIDDEN = -1e9
_IRRELEVANT = 0.2  # of batches
_DIRECTIONS = 16  # of inputs, in which made-up classes are near


class Memories(NamedTuple):
    """Compressed documents, each of T vectors, their keys, their shares of classes, and samples in them."""

    keys: Tensor  # k, [documents, T, width]
    vectors: Tensor  # m, [documents, T, width]
    labels: Tensor  # l, [documents, T, classes]
    sizes: Tensor  # n, [documents, T]


class Bank:
    """At most `capacity` memories. keep: the newest, or a uniform sample of all that were written.

    numbers: of the documents that are there, counted from 0 as they were written.
    """

    def __init__(self, capacity: int, keep: Literal["newest", "sample"], seed: int) -> None:
        if capacity < 1 or keep not in {"newest", "sample"}:
            raise ValueError(
                f"capacity is {capacity}, keep {keep!r}; use 1 or more, and 'newest' or 'sample'."
            )
        self.capacity, self.keep = capacity, keep
        self.memories: Memories | None = None
        self.numbers = torch.zeros(0, dtype=torch.int64)
        self.written = 0
        self._key = mix(seed & _MASK)

    def __len__(self) -> int:
        return len(self.numbers)

    def write(self, memory: Memories) -> int | None:
        """Take one memory, and return its number; None if it was let go."""
        number, self.written = self.written, self.written + 1
        if self.memories is None:
            self.memories = memory
            self.numbers = torch.tensor([number])
            return number
        stays = torch.ones(len(self), dtype=torch.bool)
        if len(self) == self.capacity:
            place = 0  # the oldest
            if self.keep == "sample":  # algorithm R
                place = (mix((self._key + self.written * _GOLDEN) & _MASK) * self.written) >> 64
            if place >= self.capacity:
                return None
            stays[place] = False
        self._take(stays)
        self.memories = Memories(*(torch.cat(pair) for pair in zip(self.memories, memory, strict=True)))
        self.numbers = torch.cat([self.numbers, torch.tensor([number])])
        return number

    def delete(self, number: int) -> None:
        """Let a document go, and with it all that it does."""
        stays = self.numbers != number
        if stays.all():
            raise ValueError(f"document {number} is not in the bank; it has {self.numbers.tolist()}.")
        self._take(stays)

    def _take(self, rows: Tensor) -> None:
        assert self.memories is not None
        self.memories = Memories(*(part[rows] for part in self.memories))
        self.numbers = self.numbers[rows]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the memories, their numbers, and how many there have been."""
        state = {"numbers": self.numbers.clone(), "written": torch.tensor(self.written)}
        parts = {} if self.memories is None else self.memories._asdict()
        return {**state, **{name: part.clone() for name, part in parts.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave. Raises ValueError if it holds more than the capacity."""
        if len(state["numbers"]) > self.capacity:
            raise ValueError(
                f"the state holds {len(state['numbers'])} documents, and the capacity is {self.capacity}; "
                "use the same."
            )
        self.numbers, self.written = state["numbers"].clone(), int(state["written"])
        self.memories = None
        if self.written:
            self.memories = Memories(*(state[name].clone() for name in Memories._fields))


class Compressor(nn.Module):
    """What is trained beforehand: the encoder, the compression of sets, self-matching and aggregation.

    inputs: features of a sample. width: of a vector. vectors: T.
    """

    centre: Tensor

    def __init__(self, inputs: int, width: int, vectors: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / shape[0] ** 0.5)

        self.register_buffer("centre", torch.zeros(inputs))  # of what it is trained on
        self.inner, self.outer, self.direct = drawn(inputs, width), drawn(width, width), drawn(inputs, width)
        self.starts = nn.Parameter(torch.randn(vectors, width, generator=generator) / width**0.5)
        self.log_tightness = nn.Parameter(torch.tensor(10.0).log())  # β
        self.log_purity = nn.Parameter(torch.tensor(5.0).log())  # b
        self.matching = nn.Parameter(torch.eye(width))  # W
        self.reading = nn.Parameter(10.0 * torch.eye(width))  # A
        self.base_direction = nn.Parameter(torch.zeros(width))  # u
        self.base_weight = nn.Parameter(torch.tensor(5.0))  # c

    def encode(self, inputs: Tensor) -> Tensor:
        """Return z, [..., width], of inputs [..., features]."""
        inputs = inputs - self.centre
        hidden = nn.functional.gelu(inputs @ self.inner)
        return nn.functional.normalize(inputs @ self.direct + hidden @ self.outer, dim=-1)

    def compress(self, inputs: Tensor, labels: Tensor) -> Memories:
        """Return memories of documents: inputs [d, n, features], labels [d, n, classes], a one in each."""
        samples = self.encode(inputs)
        vectors = samples.mean(1, keepdim=True) + self.starts
        shares = labels.mean(1, keepdim=True).expand(-1, len(self.starts), -1)
        for _ in range(_ROUNDS):
            near = -self.log_tightness.exp() * torch.cdist(samples, vectors).square()
            alike = self.log_purity.exp() * labels @ shares.transpose(1, 2)
            parts = (near + alike).softmax(2).transpose(1, 2)  # a, [d, T, n]
            sizes = parts.sum(2).clamp(min=_SMALLEST)
            vectors, shares = parts @ samples / sizes[:, :, None], parts @ labels / sizes[:, :, None]
        return Memories(self.keys(vectors), vectors, shares, sizes)

    def keys(self, vectors: Tensor) -> Tensor:
        """Return what is compared, k or q, for vectors [..., width]."""
        return nn.functional.normalize(vectors @ self.matching, dim=-1)

    def match(self, inputs: Tensor, memories: Memories) -> Tensor:
        """Return how well each document matches each question, s [n, documents], for inputs [n, features]."""
        of_vectors = self.keys(self.encode(inputs)) @ memories.keys.flatten(0, 1).T
        return of_vectors.view(len(inputs), *memories.keys.shape[:2]).amax(2)

    def answer(
        self,
        inputs: Tensor,
        base: Tensor,
        memories: Memories | None,
        top: int,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Return log-probabilities of classes, [n, classes], for inputs [n, features].

        base: what is answered without memory, log-probabilities [n, classes]. top: k. hidden: bool [n, d],
        documents that are not to be seen.
        """
        if memories is None or not len(memories.keys):
            return base
        encoded = self.encode(inputs)
        scores = self.match(inputs, memories) / _SHARPNESS  # [n, d]
        if hidden is not None:
            scores = scores.masked_fill(hidden, _HIDDEN)
        best, found = scores.topk(min(top, scores.shape[1]), dim=1)  # [n, k]
        near = (encoded @ self.reading)[:, None, None] @ memories.vectors[found].transpose(2, 3)
        weights = near[:, :, 0] + memories.sizes[found].log() + best.log_softmax(1)[:, :, None]  # [n, k, T]
        weights = weights.masked_fill((best == _HIDDEN)[:, :, None], -torch.inf).flatten(1)
        nothing = (encoded @ self.base_direction + self.base_weight)[:, None]
        shares = torch.cat([nothing, weights], dim=1).softmax(1)
        read = (shares[:, None, 1:] @ memories.labels[found].flatten(1, 2))[:, 0]
        mixed: Tensor = shares[:, :1] * base.exp() + read
        return mixed.clamp(min=1e-30).log()


class CompressionMemory(Wrapped):
    """Puts a bank of compressed documents beside the learner's network.

    features, outputs: of the learner's network. block: samples of a document; `consolidate` closes one that
    has fewer. vectors: T. width: of each. top: k, documents that are read for an answer. capacity: documents
    that are kept. keep: the newest of them, or a uniform sample of all there were. base_scale: what the step
    size of the base is multiplied by; 0: frozen.
    """

    name = "compression"

    def __init__(
        self,
        learner: Trainable,
        features: int,
        outputs: int,
        *,
        block: int = 16,
        vectors: int = 4,
        width: int = 32,
        top: int = 8,
        capacity: int = 256,
        keep: Literal["newest", "sample"] = "newest",
        base_scale: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(learner)
        for name, number in (("block", block), ("vectors", vectors), ("width", width), ("top", top)):
            if number < 1:
                raise ValueError(f"{name} is {number}; use 1 or more.")
        self.outputs, self.block, self.top = outputs, block, top
        self._key = mix(seed & _MASK)
        self.compressor = Compressor(features, width, vectors, seed).requires_grad_(False)
        self.bank = Bank(capacity, keep, seed)
        self.base = learner.network
        self.network = _Beside(self.base, self.compressor, self.bank, top)
        self.step_scales["base."] = base_scale
        self.episodes = 0
        self._inputs: list[Tensor] = []  # of the document that is open
        self._targets: list[Tensor] = []
        self.plain = learner.objective
        self.objective = self._then_write

    def _then_write(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = self.plain(inputs, targets)
        for input, target in zip(inputs, targets, strict=True):
            self._inputs.append(input)
            self._targets.append(target)
            if len(self._inputs) == self.block:
                self._close()
        return loss

    def _close(self) -> None:
        document = torch.stack(self._inputs), torch.stack(self._targets)
        self._inputs, self._targets = [], []
        self.write(*document)

    @torch.no_grad()
    def write(self, inputs: Tensor, targets: Tensor) -> int | None:
        """Put one document into the bank, inputs [n, features] and classes [n], and return its number."""
        labels = nn.functional.one_hot(targets, self.outputs).to(inputs.dtype)
        return self.bank.write(self.compressor.compress(inputs[None], labels[None]))

    def consolidate(self) -> None:
        """Close the document that is open."""
        super().consolidate()
        if self._inputs:
            self._close()

    def train_on(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        *,
        episodes: int = 400,
        documents: int = 16,
        questions: int = 64,
        step_size: float = 3e-3,
    ) -> Tensor:
        """Train what compresses and reads on made-up episodes, freeze it, and return each one's loss.

        inputs: [n, features]. targets: classes [n]; None: each episode divides the inputs into classes of its
        own (`made_up_classes`). In each, half of the samples are for documents, others are asked for, and
        names of classes are drawn anew, so that the base cannot know them.
        """
        if len(self.bank):
            raise ValueError(
                f"the bank has {len(self.bank)} documents, which other weights could not read; train before "
                "anything is learned."
            )
        if len(inputs) < 2:
            raise ValueError(f"there are {len(inputs)} inputs; use 2 or more, better hundreds.")
        self.compressor.centre.copy_(inputs.mean(0))
        optimizer = torch.optim.Adam(self.compressor.requires_grad_(True).parameters(), lr=step_size)
        losses = []
        for _ in range(episodes):
            generator = torch.Generator().manual_seed(mix((self._key + self.episodes * _GOLDEN) & _MASK))
            self.episodes += 1
            loss = self._episode(inputs, targets, documents, questions, generator)
            loss.backward()  # type: ignore[no-untyped-call]  # torch says no types
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        self.compressor.requires_grad_(False)
        return torch.stack(losses) if losses else torch.zeros(0)

    def _episode(
        self,
        inputs: Tensor,
        targets: Tensor | None,
        documents: int,
        questions: int,
        generator: torch.Generator,
    ) -> Tensor:
        if targets is None:
            targets = made_up_classes(inputs, self.outputs, generator)
        names = torch.randperm(self.outputs, generator=generator)
        labels = nn.functional.one_hot(names[targets], self.outputs).to(inputs.dtype)
        order = torch.randperm(len(inputs), generator=generator)
        told, asked = order[: len(order) // 2], order[len(order) // 2 :][:questions]
        present = torch.nonzero(labels[told].any(0))[:, 0]
        # Each document has some of the classes: one, all, or between; the logarithm of how many is even.
        most = len(present) ** torch.rand(documents, 1, generator=generator)
        chosen = torch.rand(documents, len(present), generator=generator).argsort(1) < most.round()
        likely = chosen.to(inputs.dtype) @ labels[told][:, present].T  # [documents, told]
        rows = told[torch.multinomial(likely, self.block, replacement=True, generator=generator)]
        memories = self.compressor.compress(inputs[rows], labels[rows])
        has = labels[asked] @ labels[rows].any(1).to(inputs.dtype).T > 0.0  # [asked, documents]
        irrelevant = float(torch.rand((), generator=generator)) < _IRRELEVANT
        with torch.no_grad():
            base = self.base(inputs[asked]).log_softmax(1)
        answer = self.compressor.answer(inputs[asked], base, memories, self.top, has if irrelevant else None)
        right = labels[asked].argmax(1)
        of_answer = nn.functional.nll_loss(answer, right, reduction="none")
        of_base = nn.functional.nll_loss(base, right, reduction="none")
        contrast = matching_loss(self.compressor.match(inputs[asked], memories) / _SHARPNESS, has)
        helps = (of_answer - of_base + 0.1).clamp(min=0.0)
        return of_answer.mean() + 0.1 * contrast + 0.5 * helps.mean()

    def own_state(self) -> dict[str, Tensor]:
        """Return the bank and the document that is open; what was trained is in the network."""
        inputs = torch.stack(self._inputs) if self._inputs else torch.zeros(0)
        targets = torch.stack(self._targets) if self._targets else torch.zeros(0, dtype=torch.int64)
        state = {f"bank.{name}": part for name, part in self.bank.state_dict().items()}
        return {**state, "inputs": inputs, "targets": targets, "episodes": torch.tensor(self.episodes)}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `own_state` gave."""
        start = "bank."
        self.bank.load_state_dict(
            {key.removeprefix(start): x for key, x in state.items() if key.startswith(start)}
        )
        self._inputs, self._targets = list(state["inputs"].clone()), list(state["targets"].clone())
        self.episodes = int(state["episodes"])


def made_up_classes(inputs: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Return classes [n] of inputs [n, features]: which of some of them, drawn, is nearest to each.

    Near in a few random directions of the inputs, which are drawn as well.
    """
    directions = torch.randn(inputs.shape[1], _DIRECTIONS, generator=generator)
    places = inputs @ directions
    centres = places[torch.randperm(len(inputs), generator=generator)[:classes]]
    return torch.cdist(places, centres).argmin(1)


def matching_loss(scores: Tensor, has: Tensor) -> Tensor:
    """Return the mean of −log of the chance that scores [questions, documents] give to documents that `has`.

    Questions to which no document has the answer do not count.
    """
    logs = scores.log_softmax(1).masked_fill(~has, _HIDDEN).logsumexp(1)
    counted = has.any(1)
    return -(logs * counted).sum() / counted.sum().clamp(min=1)


class _Beside(nn.Module):
    """A base network with a bank beside it, which is no part of what is trained."""

    def __init__(self, base: nn.Module, compressor: Compressor, bank: Bank, top: int) -> None:
        super().__init__()
        self.base, self.compressor, self._bank, self._top = base, compressor, bank, top

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log-probabilities of classes, [n, classes]."""
        base = self.base(inputs).log_softmax(1)
        return self.compressor.answer(inputs, base, self._bank.memories, self._top)
