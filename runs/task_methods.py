"""What learns one task after the other: neural intensities under several regimes, and statistics by name.

A method learns the training part of a task, choosing by its validation part when to stop, and then scores
test parts as it is. It knows the number of types ahead, and nothing of which task it is in.

Sources: Xue et al. (2023), arXiv:2310.04993, for the regimes and the pool; Kirkpatrick et al. (2017),
arXiv:1612.00796, and Schwarz et al. (2018), arXiv:1805.06370, for elastic weight consolidation and doing it
online; Vitter (1985), "Random sampling with a reservoir", for what is replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from streamwise.agents.attnhp import AttNHP, AttNHPSettings
from streamwise.agents.neural_tpp import gauss_legendre, log_spaced
from streamwise.agents.nhp import NHP, NHPSettings
from streamwise.agents.tpp_training import (
    SCORING,
    Batch,
    Fit,
    Trainer,
    event_scores,
    fit,
    intensities_of_intervals,
)
from streamwise.memory.prompt_pool import PromptPool, Retrieved
from streamwise.runs.task_scores import (
    Cell,
    MethodSettings,
    TaskMethod,
    cell,
    prediction,
    refuse_unmatched,
)
from streamwise.runs.task_split import Array, Integers, Part, Split
from streamwise.runs.task_statistics import statistical_method

__all__ = ["BASES", "NEURAL", "make_method"]

BASES = ("attnhp", "nhp")

_VALIDATION = log_spaced(gauss_legendre(2), 5)
_SCORED_TOGETHER = 64  # sequences
_TRAINING, _MODEL, _RETRIEVAL, _FISHER, _RESERVOIR = range(5)  # what a draw is for


@dataclass(frozen=True)
class Regime:
    """How a neural intensity meets one task after the other.

    learns: from every task on from where it is; from the first alone; or from the beginning on all so far.
    pool: of prompts, and how they are retrieved or learned.
    """

    about: str
    learns: Literal["every", "first", "afresh"] = "every"
    pool: Literal["learned", "frozen", "random", "leaky"] | None = None
    consolidates: bool = False
    replays: bool = False


NEURAL = {
    "pretrained": Regime("fitted to the first task, then left as it is", learns="first"),
    "retrained": Regime("fitted afresh to all tasks so far, at every task", learns="afresh"),
    "online": Regime("fine-tuned on every task; prompt-tpp without a pool"),
    "ewc": Regime("fine-tuned, held where earlier tasks need its weights", consolidates=True),
    "replay": Regime("fine-tuned on sequences of earlier tasks, too", replays=True),
    "prompt-tpp": Regime("fine-tuned with a pool of prompts, which moves more slowly", pool="learned"),
    "random-retrieval": Regime("prompt-tpp that takes prompts at random", pool="random"),
    "frozen-pool": Regime("prompt-tpp whose prompts stay as they were made", pool="frozen"),
    "leaky-retrieval": Regime(
        "prompt-tpp that retrieves by the whole sequence, future included: no fair likelihood", pool="leaky"
    ),
}


def make_method(name: str, base: str | None, settings: MethodSettings, split: Split, seed: int) -> TaskMethod:
    """Make a method of NEURAL on a base, or of STATISTICAL, where base is None."""
    if name in NEURAL:
        return NeuralMethod(NEURAL[name], str(base), settings, split, seed)
    return statistical_method(name, settings, split)


def _generator(seed: int, task: int, purpose: int) -> torch.Generator:
    """Return a generator for one purpose in one task, so that nothing of it has to be saved."""
    entropy = np.random.SeedSequence([seed, task, purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))


class RandomPool(PromptPool):
    """A pool that takes prompts at random, whatever the query: an ablation. generator: draws them."""

    generator: torch.Generator

    def retrieve(self, query: Tensor) -> Retrieved:
        """Take prompts at random, each once."""
        draws = torch.rand(*query.shape[:-1], len(self.keys), generator=self.generator)
        ids = draws.argsort(dim=-1)[..., : self.selected]
        query = nn.functional.normalize(query.detach(), dim=-1, eps=1e-12)
        keys = nn.functional.normalize(self.keys, dim=-1, eps=1e-12)
        return Retrieved(ids, (query @ keys.T).gather(-1, ids))


class LeakyPool(PromptPool):
    """A pool that is asked by a whole sequence from its first event on, as published code does.

    What is to be predicted is part of the query, and so are pads, which share its mean.
    """

    def retrieve(self, query: Tensor) -> Retrieved:
        """Retrieve for every place what the last place would find."""
        return super().retrieve(query[..., -1:, :].expand_as(query))


_POOLS = {"learned": PromptPool, "frozen": PromptPool, "random": RandomPool, "leaky": LeakyPool}


class NeuralMethod:
    """A neural intensity on a base, AttNHP or NHP, under a regime."""

    def __init__(self, regime: Regime, base: str, settings: MethodSettings, split: Split, seed: int) -> None:
        self.regime, self.base, self.settings, self.split, self.seed = regime, base, settings, split, seed
        self.model = self._new_model(0)
        self.longest_wait = split.unit
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        if regime.consolidates:
            self.fisher = {name: torch.zeros_like(p) for name, p in self.model.named_parameters()}
            self.anchor = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.reservoir = np.zeros((0, 3), np.int64)  # chunks
        self.offered = 0  # to the reservoir, so far

    @property
    def parameters(self) -> int:
        """How many numbers the model learns."""
        return sum(p.numel() for p in self.model.parameters())

    def _new_model(self, task: int) -> AttNHP | NHP:
        s, generator = self.settings, _generator(self.seed, task, _MODEL)
        types, unit = len(self.split.events.type_names), self.split.unit
        attention = AttNHPSettings(width=s.width, layers=s.layers, heads=s.heads, unit=unit)
        pool = None
        if self.regime.pool is not None:
            tokens = s.width + (attention.time_width if self.base == "attnhp" else 0)
            pool = _POOLS[self.regime.pool](
                tokens, s.width, prompts=s.prompts, selected=s.selected, rows=s.rows, generator=generator
            )
        if self.base == "attnhp":
            return AttNHP(types, attention, pool=pool, generator=generator)
        return NHP(types, NHPSettings(width=s.width, unit=unit), pool=pool, generator=generator)

    def learn(self, task: int) -> Fit | None:
        """Learn the training part of a task."""
        regime, s, split = self.regime, self.settings, self.split
        if regime.learns == "first" and task:
            return None
        afresh = regime.learns == "afresh"
        if afresh:
            self.model = self._new_model(0)
        parts = split.train[: task + 1] if afresh else split.train[task : task + 1]
        chunks = np.concatenate([part.chunks for part in parts])
        training = replace(s.training, pool_step_size=0.0) if regime.pool == "frozen" else s.training
        generator = _generator(self.seed, task, _TRAINING)
        self._draw_prompts(task)
        epoch = -(-len(chunks) // s.batch)  # steps
        found = fit(
            Trainer(self.model, training, generator),
            lambda: map(split.batch, self._with_replayed(chunks, generator)),
            lambda: self._validation(split.validation[task]),
            steps=min(s.steps * len(parts), s.epochs * epoch),
            penalty=self._penalty if regime.consolidates and task else None,
        )
        self.longest_wait = split.longest_wait(task)
        if regime.consolidates:
            self._consolidate(task)
        if regime.replays:
            self._remember(chunks, _generator(self.seed, task, _RESERVOIR))
        return found

    def _draw_prompts(self, task: int) -> None:
        if isinstance(self.model.pool, RandomPool):
            self.model.pool.generator = _generator(self.seed, task, _RETRIEVAL)

    def _validation(self, part: Part) -> float:
        total = count = 0.0
        with torch.no_grad():
            for chunks in self.split.batches(part.chunks, _SCORED_TOGETHER):
                found = event_scores(self.model, self.split.batch(chunks), _VALIDATION)
                total += float((found.time + found.type).sum())
                count += int(found.mask.sum())
        return total / count

    # Elastic weight consolidation: a weight is held by its Fisher information, that of an event.

    def _penalty(self) -> Tensor:
        held = [
            (self.fisher[name] * (p - self.anchor[name]).square()).sum()
            for name, p in self.model.named_parameters()
        ]
        return 0.5 * self.settings.consolidation * torch.stack(held).sum()

    def _consolidate(self, task: int) -> None:
        """Add the information of a task to that of the tasks before, and hold the weights where they are."""
        generator, events = _generator(self.seed, task, _FISHER), 0
        chunks = self.split.train[task].chunks
        chosen = torch.randperm(len(chunks), generator=generator)[: 2 * self.settings.batch].numpy()
        parameters = dict(self.model.named_parameters())
        squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for chunk in chunks[chosen]:
            found = event_scores(self.model, self.split.batch(chunk[None]), _VALIDATION)
            gradients = torch.autograd.grad((found.time + found.type).sum(), list(parameters.values()))
            events += int(found.mask.sum())
            for name, gradient in zip(squares, gradients, strict=True):
                squares[name] += gradient.square()
        for name, square in squares.items():
            self.fisher[name] += square / events
            self.anchor[name] = parameters[name].detach().clone()

    # Replay: a reservoir in which every sequence so far is with equal probability.

    def _with_replayed(self, chunks: Integers, generator: torch.Generator) -> Any:
        """Yield the chunks of batches, each with half as many of the reservoir, if there are any."""
        size = self.settings.batch
        for new in self.split.batches(chunks, size, generator):
            if not len(self.reservoir):
                yield new
                continue
            old = torch.randint(len(self.reservoir), (max(1, size // 2),), generator=generator).numpy()
            yield np.concatenate([new, self.reservoir[old]])

    def _remember(self, chunks: Integers, generator: torch.Generator) -> None:
        kept, room = list(self.reservoir), self.settings.replayed
        for chunk in chunks[torch.randperm(len(chunks), generator=generator).numpy()]:
            self.offered += 1
            if len(kept) < room:
                kept.append(chunk)
                continue
            place = int(torch.randint(self.offered, (1,), generator=generator))
            if place < room:
                kept[place] = chunk
        self.reservoir = np.stack(kept)

    # Scores.

    def scores(self, tasks: int) -> list[Cell]:
        """Score the test parts of the first tasks."""
        self._draw_prompts(0)
        with torch.no_grad():
            return [self._score(part) for part in self.split.test[:tasks]]

    def _score(self, part: Part) -> Cell:
        time, types, wrong = 0.0, 0.0, 0
        for chunks in self.split.batches(part.chunks, _SCORED_TOGETHER):
            batch = self.split.batch(chunks)
            found = event_scores(self.model, batch, SCORING)
            time += float(found.time.double().sum())
            types += float(found.type.double().sum())
            own = batch.sequences.types.gather(1, batch.scored[0])
            wrong += int(((found.likeliest != own) & found.mask).sum())
        predicted = [
            self._predictions(self.split.batch(chunks))
            for chunks in self.split.batches(part.predicted, _SCORED_TOGETHER)
        ]
        events = len(part.scored)
        unit = self.settings.time_unit
        return cell(time / events, types / events, wrong / events, np.concatenate(predicted), unit)

    def _predictions(self, batch: Batch) -> Array:
        """Predict the one scored event of each sequence; return float64 [sequences, 4], see `prediction`."""
        sequences, first = batch.sequences, batch.first[:, None]
        memory = self.model.remember(sequences)
        last, now = sequences.times.gather(1, first - 1), sequences.times.gather(1, first)

        def rates(offsets: Tensor) -> Tensor:
            times = (last + offsets)[:, None]
            return intensities_of_intervals(self.model, memory, times, first)[:, 0]

        return prediction(
            rates, self.longest_wait, sequences.types.gather(1, first)[:, 0], (now - last)[:, 0]
        )

    def silence(self, task: int) -> float:
        """Return the mean over keys of Λ from their last event, or the start of the part, to its end."""
        split, part, total, keys = self.split, self.split.test[task], 0.0, 0
        with torch.no_grad():
            for chunks in split.batches(split.tails(part), _SCORED_TOGETHER):
                sequences = split.batch(chunks).sequences
                memory = self.model.remember(sequences)
                last = sequences.end[:, None]
                for until, sign in ((part.end, 1.0), (part.start, -1.0)):
                    length = (until - last).clamp(min=0.0)
                    times = (last + length * SCORING.at)[:, None]
                    rates = intensities_of_intervals(self.model, memory, times, sequences.lengths[:, None])
                    means = (rates.sum(3).double() * SCORING.weights).sum(2)
                    total += sign * float((means * length).sum())
                keys += len(chunks)
        return total / keys

    # State.

    def state_dict(self) -> dict[str, Tensor]:
        """Return weights, what holds them, the reservoir, and how far predictions look ahead."""
        return {
            **{f"model.{name}": tensor for name, tensor in self.model.state_dict().items()},
            **{f"fisher.{name}": tensor for name, tensor in self.fisher.items()},
            **{f"anchor.{name}": tensor for name, tensor in self.anchor.items()},
            "reservoir": torch.from_numpy(self.reservoir),
            "offered": torch.tensor(self.offered),
            "longest_wait": torch.tensor(self.longest_wait, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> int:
        """Go on from a state; return how many tensors it had. Raises CheckpointError for other names."""
        refuse_unmatched(set(state), set(self.state_dict()))

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        self.fisher, self.anchor = under("fisher."), under("anchor.")
        self.reservoir, self.offered = state["reservoir"].numpy(), int(state["offered"])
        self.longest_wait = float(state["longest_wait"])
        return len(state)
