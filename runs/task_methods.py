"""What learns one task after the other: neural intensities under several regimes, and statistics of events.

A method learns the training part of a task, choosing by its validation part when to stop, and then scores
test parts as it is. It knows the number of types ahead, and nothing of which task it is in.

Sources: Xue et al. (2023), arXiv:2310.04993, for the regimes and the pool; Kirkpatrick et al. (2017),
arXiv:1612.00796, and Schwarz et al. (2018), arXiv:1805.06370, for elastic weight consolidation and doing it
online; Vitter (1985), "Random sampling with a reservoir", for what is replayed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamwise.agents import event_model_class
from streamwise.agents.attnhp import AttNHP, AttNHPSettings
from streamwise.agents.event_model import EventModel
from streamwise.agents.neural_tpp import gauss_legendre, log_spaced
from streamwise.agents.next_event import Rates, next_events
from streamwise.agents.nhp import NHP, NHPSettings
from streamwise.agents.tpp_training import (
    SCORING,
    Batch,
    Fit,
    Trainer,
    TrainingSettings,
    event_scores,
    fit,
    intensities_of_intervals,
)
from streamwise.memory.prompt_pool import PromptPool, Retrieved
from streamwise.runs.checkpoint import CheckpointError
from streamwise.runs.task_split import Array, Integers, Part, Split

__all__ = ["BASES", "METRICS", "NEURAL", "STATISTICAL", "MethodSettings", "TaskMethod", "make_method"]

METRICS = {  # by name: whether higher is better
    "log_likelihood": True,
    "time_log_likelihood": True,
    "type_log_likelihood": True,
    "type_error_true_time": False,
    "type_error_predicted_time": False,
    "time_rmse": False,
    "time_mae": False,
}
BASES = ("attnhp", "nhp")

_VALIDATION = log_spaced(gauss_legendre(2), 5)
_GRID = 48  # offsets of a prediction; its quadrature looks at twice as many
_SCORED_TOGETHER = 64  # sequences
_TRAINING, _MODEL, _RETRIEVAL, _FISHER, _RESERVOIR = range(5)  # what a draw is for

Cell = dict[str, float]  # a score by name


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
STATISTICAL = {
    "repeat-last": "the key's last type after its last gap",
    "markov": "types by the type before, gaps exponential with a rate for every key",
    "hawkes": "streamwise's model of that name, learning event by event",
    "counts": "streamwise's model of that name, learning event by event",
}


@dataclass(frozen=True)
class MethodSettings:
    """Settings of the methods."""

    training: TrainingSettings
    epochs: int
    steps: int
    batch: int
    width: int
    layers: int
    heads: int
    prompts: int
    selected: int
    rows: int
    consolidation: float
    replayed: int
    time_unit: float


class TaskMethod(Protocol):
    """Learns tasks in order, and scores any of them."""

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        ...

    def learn(self, task: int) -> Fit | None:
        """Learn a task; None if there was nothing to learn from it, and nothing has changed."""
        ...

    def scores(self, tasks: int) -> list[Cell]:
        """Score the test parts of the first tasks, learning nothing: METRICS by name, NaN for none."""
        ...

    def silence(self, task: int) -> float:
        """Return what is held against a key, in nats, for its silence since its last event of a test part."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that was learned."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> int:
        """Go on from a state; return how many tensors it had. Raises CheckpointError for other names."""
        ...


def make_method(name: str, base: str | None, settings: MethodSettings, split: Split, seed: int) -> TaskMethod:
    """Make a method of NEURAL on a base, or of STATISTICAL, where base is None."""
    if name in NEURAL:
        return NeuralMethod(NEURAL[name], str(base), settings, split, seed)
    types = len(split.events.type_names)
    model: StepModel
    if name == "repeat-last":
        model = RepeatLast()
    elif name == "markov":
        model = Markov(types)
    else:
        model = Streamed(name, types)
    return StatisticalMethod(model, settings, split)


def _generator(seed: int, task: int, purpose: int) -> torch.Generator:
    """Return a generator for one purpose in one task, so that nothing of it has to be saved."""
    entropy = np.random.SeedSequence([seed, task, purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))


def _refuse_unmatched(found: set[str], expected: set[str]) -> None:
    if found != expected:
        missing, unknown = sorted(expected - found), sorted(found - expected)
        parts = [
            f"{what} {', '.join(names)}"
            for what, names in (("lacks", missing), ("has also", unknown))
            if names
        ]
        raise CheckpointError(f"the checkpoint is of another method: it {' and '.join(parts)}.")


# ---- neural ----


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
        found = fit(
            Trainer(self.model, training, generator),
            lambda: map(split.batch, self._with_replayed(chunks, generator)),
            lambda: self._validation(split.validation[task]),
            epochs=s.epochs,
            steps=s.steps * len(parts),
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
        return _cell(time / events, types / events, wrong / events, np.concatenate(predicted), unit)

    def _predictions(self, batch: Batch) -> Array:
        """Predict the one scored event of each sequence; return float64 [sequences, 4], see `_prediction`."""
        sequences, first = batch.sequences, batch.first[:, None]
        memory = self.model.remember(sequences)
        last, now = sequences.times.gather(1, first - 1), sequences.times.gather(1, first)

        def rates(offsets: Tensor) -> Tensor:
            times = (last + offsets)[:, None]
            return intensities_of_intervals(self.model, memory, times, first)[:, 0]

        return _prediction(
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
        _refuse_unmatched(set(state), set(self.state_dict()))

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}

        self.model.load_state_dict(under("model."))
        self.fisher, self.anchor = under("fisher."), under("anchor.")
        self.reservoir, self.offered = state["reservoir"].numpy(), int(state["offered"])
        self.longest_wait = float(state["longest_wait"])
        return len(state)


def _prediction(rates: Rates, longest: float, types: Tensor, gaps: Tensor) -> Array:
    """Return, of each history, whether the type was wrong, and the predicted mean, median and true gap."""
    found = next_events(rates, longest, quantiles=(0.5,), grid=_GRID)
    wrong = (found.types.argmax(1) != types).double()
    waits = [wait.clamp(max=longest) for wait in (found.mean, found.quantiles[:, 0])]
    predicted: Array = torch.stack([wrong, *waits, gaps.double()], 1).numpy()
    return predicted


def _cell(time: float, types: float, wrong: float, predicted: Array, unit: float) -> Cell:
    """Put scores together. time, types: nats an event, of times in seconds; predicted: see `_prediction`."""
    wrong_ahead, mean, median, gap = predicted.T
    return {
        "log_likelihood": time + types + math.log(unit),
        "time_log_likelihood": time + math.log(unit),
        "type_log_likelihood": types,
        "type_error_true_time": wrong,
        "type_error_predicted_time": float(wrong_ahead.mean()),
        "time_rmse": float(np.sqrt(np.square(mean - gap).mean())) / unit,
        "time_mae": float(np.abs(median - gap).mean()) / unit,
    }


# ---- statistical ----


class StepModel(ABC):
    """Statistics that learn event by event, apart from what each key did, which is a row of its own.

    row_type: of a key's row; all zeros before its first event.
    """

    row_type: np.dtype[Any]

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the statistics by name, to be read, or changed in place."""

    @abstractmethod
    def score(self, row: Any, time: float, event_type: int) -> tuple[float, float, int]:
        """Return log λ(t) - Λ of a time in seconds, log(λ_k / λ), and the likeliest type at that time."""

    @abstractmethod
    def learn(self, row: Any, time: float, event_type: int) -> None:
        """Take an event into the statistics, before it is put into its row."""

    @abstractmethod
    def put(self, row: Any, time: float, event_type: int) -> None:
        """Put an event into the row of its key."""

    @abstractmethod
    def intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        """Return λ_k at some gaps after the key's last event, [gaps, types], and Λ up to them, [gaps]."""


class RepeatLast(StepModel):
    """What happened last happens again, after as long; it has no likelihood."""

    row_type = np.dtype([("events", "f8"), ("last_time", "f8"), ("last_gap", "f8"), ("last_type", "i8")])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return nothing: nothing is learned."""
        return {}

    def score(self, row: Any, time: float, event_type: int) -> tuple[float, float, int]:
        """Return NaN, NaN and the last type."""
        return math.nan, math.nan, int(row["last_type"])

    def learn(self, row: Any, time: float, event_type: int) -> None:
        """Learn nothing."""

    def put(self, row: Any, time: float, event_type: int) -> None:
        """Note type and gap."""
        row["last_gap"] = time - row["last_time"] if row["events"] else 0.0
        row["events"] += 1.0
        row["last_time"], row["last_type"] = time, event_type

    def intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        """Raise NotImplementedError: it has none."""
        raise NotImplementedError


class Markov(StepModel):
    """Types by the type before, leaning on how often each came; gaps exponential, a rate for every key.

    A key's rate leans on that of all as if one of its gaps had been an average one.
    """

    row_type = np.dtype([("events", "f8"), ("first_time", "f8"), ("last_time", "f8"), ("last_type", "i8")])
    _PULL = 5.0  # events' worth by which counts lean

    def __init__(self, types: int) -> None:
        self.after = np.zeros((types, types))
        self.overall = np.zeros(types)
        self.gaps = np.zeros(2)  # how many, and seconds

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the counts."""
        return {"after": self.after, "overall": self.overall, "gaps": self.gaps}

    def _now(self, row: Any) -> tuple[float, Array]:
        """Return a key's rate and the probabilities of types."""
        mean_gap = (self.gaps[1] + 1.0) / (self.gaps[0] + 1.0)
        gaps = max(float(row["events"]) - 1.0, 0.0)
        rate = (gaps + 1.0) / (float(row["last_time"] - row["first_time"]) + mean_gap)
        share = (self.overall + 1.0) / (self.overall.sum() + len(self.overall))
        counts = self.after[int(row["last_type"])]
        return rate, (counts + self._PULL * share) / (counts.sum() + self._PULL)

    def score(self, row: Any, time: float, event_type: int) -> tuple[float, float, int]:
        """Score by rate and counts."""
        rate, shares = self._now(row)
        gap = time - float(row["last_time"])
        return math.log(rate) - rate * gap, math.log(shares[event_type]), int(shares.argmax())

    def learn(self, row: Any, time: float, event_type: int) -> None:
        """Count."""
        self.overall[event_type] += 1.0
        if row["events"]:
            self.after[int(row["last_type"]), event_type] += 1.0
            self.gaps += 1.0, time - float(row["last_time"])

    def put(self, row: Any, time: float, event_type: int) -> None:
        """Note time and type."""
        if not row["events"]:
            row["first_time"] = time
        row["events"] += 1.0
        row["last_time"], row["last_type"] = time, event_type

    def intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        """Return the same at every gap."""
        rate, shares = self._now(row)
        return np.broadcast_to(rate * shares, (len(gaps), len(shares))), rate * gaps


class Streamed(StepModel):
    """One of streamwise's models of events, told all types ahead."""

    def __init__(self, name: str, types: int) -> None:
        kind = event_model_class(name)
        self.types = types
        config = kind.Config(types=max(types, 2), keys_in_memory=1024)
        self.model: EventModel = kind(config, backend="reference")
        self.model.seen[0] = float(types)
        self.row_type = self.model._row_type()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the model's shared statistics."""
        return dict(self.model.arrays)

    def score(self, row: Any, time: float, event_type: int) -> tuple[float, float, int]:
        """Score as the model does before it learns."""
        found = self.model._score(row, time, event_type)
        return found.time_log_density, found.type_log_probability, int(found.predicted_type)

    def learn(self, row: Any, time: float, event_type: int) -> None:
        """Learn as the model does."""
        self.model._learn(row, time, event_type)

    def put(self, row: Any, time: float, event_type: int) -> None:
        """Advance the key's row."""
        self.model._put(row, time, event_type)

    def intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        """Return those of the model."""
        return self.model._intensities(row, gaps)


class StatisticalMethod:
    """A model that reads the stream once, and learns from the events of the training parts."""

    def __init__(self, model: StepModel, settings: MethodSettings, split: Split) -> None:
        self.model, self.settings, self.split = model, settings, split
        self.longest_wait = split.unit
        self.rows = np.zeros(split.events.key_count, model.row_type)
        self.read = 0  # events of the stream

    @property
    def parameters(self) -> int:
        """How many numbers the shared statistics are."""
        return sum(array.size for array in self.model.arrays().values())

    def learn(self, task: int) -> Fit | None:
        """Read on to the end of a training part, learning from its events."""
        part, learned = self.split.train[task], 0
        start, end = np.searchsorted(self.split.events.times, (part.start, part.end)).tolist()
        for i, row, time, event_type in self._walk(self.rows, self.read, end):
            if i >= start:
                self.model.learn(row, time, event_type)
                learned += 1
            self.model.put(row, time, event_type)
        self.read = end
        self.longest_wait = self.split.longest_wait(task)
        return Fit(learned, 1, 1, math.nan)

    def _walk(self, rows: NDArray[Any], start: int, end: int) -> Any:
        """Yield number, row, time and type of the events of the stream from `start` to `end`."""
        events = self.split.events
        columns = (events.keys[start:end], events.times[start:end], events.types[start:end])
        for i, (key, time, event_type) in enumerate(zip(*(c.tolist() for c in columns), strict=True), start):
            yield i, rows[key], time, event_type

    def scores(self, tasks: int) -> list[Cell]:
        """Read the stream from its beginning, learning nothing, and score the test parts on the way."""
        split, rows, done, cells = self.split, np.zeros_like(self.rows), 0, []
        for part in split.test[:tasks]:
            scored = set(split.order[part.scored].tolist())
            chosen = set(split.order[part.predicted[:, 1]].tolist())
            start, end = np.searchsorted(split.events.times, (part.start, part.end)).tolist()
            for _, row, time, event_type in self._walk(rows, done, start):
                self.model.put(row, time, event_type)
            found, before = [], []
            for i, row, time, event_type in self._walk(rows, start, end):
                if i in scored:
                    log_time, log_type, likeliest = self.model.score(row, time, event_type)
                    found.append((log_time, log_type, likeliest != event_type))
                if i in chosen:
                    before.append((row.copy(), time, event_type))
                self.model.put(row, time, event_type)
            done = end
            log_time, log_type, wrong = np.mean(np.array(found, np.float64), 0).tolist()
            cells.append(_cell(log_time, log_type, wrong, self._predictions(before), self.settings.time_unit))
        return cells

    def _predictions(self, before: list[tuple[Any, float, int]]) -> Array:
        """Predict what came after each of some rows: float64 [rows, 4], see `_prediction`."""
        rows = [row for row, _, _ in before]
        gaps = np.array([time - float(row["last_time"]) for row, time, _ in before])
        types = np.array([event_type for _, _, event_type in before])
        if isinstance(self.model, RepeatLast):
            waits = [float(row["last_gap"]) for row in rows]
            wrong = [row["last_type"] != event_type for row, _, event_type in before]
            return np.stack([wrong, waits, waits, gaps], 1).astype(np.float64)

        def rates(offsets: Tensor) -> Tensor:
            at = offsets[0].numpy()
            return torch.from_numpy(np.stack([self.model.intensities(row, at)[0] for row in rows]))

        return _prediction(rates, self.longest_wait, torch.from_numpy(types), torch.from_numpy(gaps))

    def silence(self, task: int) -> float:
        """Return the mean over keys of Λ from their last event, or the start of the part, to its end."""
        if isinstance(self.model, RepeatLast):
            return math.nan
        split, part, rows = self.split, self.split.test[task], np.zeros_like(self.rows)
        end = int(np.searchsorted(split.events.times, part.end))
        for _, row, time, event_type in self._walk(rows, 0, end):
            self.model.put(row, time, event_type)
        total = 0.0
        active = rows[rows["events"] > 0.0]
        for row in active:
            gaps = np.array([max(part.start - row["last_time"], 0.0), part.end - row["last_time"]])
            passed = self.model.intensities(row, gaps)[1]
            total += float(passed[1] - passed[0])
        return total / len(active)

    # State.

    def state_dict(self) -> dict[str, Tensor]:
        """Return the shared statistics, the rows of keys, and how far the stream was read."""
        return {
            **{f"model.{name}": torch.from_numpy(a.copy()) for name, a in self.model.arrays().items()},
            "rows": torch.from_numpy(self.rows.view(np.uint8).reshape(len(self.rows), -1).copy()),
            "read": torch.tensor(self.read),
            "longest_wait": torch.tensor(self.longest_wait, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> int:
        """Go on from a state; return how many tensors it had. Raises CheckpointError for other names."""
        _refuse_unmatched(set(state), set(self.state_dict()))
        for name, array in self.model.arrays().items():
            array[...] = state[f"model.{name}"].numpy()
        self.rows = state["rows"].numpy().reshape(-1).view(self.rows.dtype).copy()
        self.read, self.longest_wait = int(state["read"]), float(state["longest_wait"])
        return len(state)
