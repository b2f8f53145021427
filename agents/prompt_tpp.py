"""PromptTPP, live: attention to what a key did, a pool of prompts, one step after the other, for ever.

Every event is scored with what was known before it, trained on, and appended. A key keeps a ring of its newest
events. Each event is a token, the embedding of its type and of the gap before it; layers of attention turn the
tokens into keys and values, which stay where they are. A moment in time is a query of them:

    h ← 0;   for each layer:  y = [h; z(t)],  h ← h + tanh(attention of W_q y to events, prompts and itself)

The prompts are retrieved from a pool by what the key's newest tokens have in common (memory/prompt_pool.py).

decoder="bins": from the state right after the last event come logits for bins of the next gap, from the state at
the event's time logits for its type. They are added to the logarithms of what two statistical models say, `counts`
and `hawkes`, so that the network starts as good as they are and learns what they miss. Within a bin all gaps are
equally likely, so density and compensator have closed forms. decoder="intensity": the published softplus of a
linear map, λ_k(t), whose compensator is summed at nodes spaced by magnitude.

Departures from the published model: time is told by the logarithm of gaps and by hour and weekday, not by sines
of absolute times; scores of attention have learned offsets for how recent an event is; one retrieval for all
heads and layers, from the key's own past; silence is charged. One gradient step is made of `group` events, of
which any may be of the same key: each is scored before anything is learned from it.

Sources: Xue et al. (2023), arXiv:2310.04993, for the prompts; Yang et al. (2022), arXiv:2201.00044, for the
attention; Loshchilov and Hutter (2019), arXiv:1711.05101, for the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamwise.agents.counts import Counts, CountsConfig
from streamwise.agents.event_model import CLOCK, Array, EventModel, EventSettings, Score
from streamwise.agents.generator import CounterGenerator, _mix
from streamwise.agents.hawkes import Hawkes, HawkesConfig
from streamwise.agents.learner import State
from streamwise.kernels import native_info
from streamwise.streams import UsageError

__all__ = ["PromptTPP", "PromptTPPConfig"]

_FLOORS = ("none", "counts", "hawkes", "both")
_PROGRESS = (
    "events", "in_group", "updates", "pool_pending", "serials", "lookups", "hits", "gradient_norm", "clipped",
    "mean_cosine", "floored", "silence", "ticked", "tick_cursor", "drift_count", "drift_sum", "drift_squares",
    "drift_walk", "drift_low", "drift_alarms", "boost_until", "rebuilds", "reused",
)  # fmt: skip
_NODE_CELLS, _NODE_COUNT = 5, 4  # cells of a gap: up to a ten-thousandth, a thousandth, ... of it, all of it
_GRID = 1024  # of offsets at which an intensity is integrated for a prediction
_SMALLEST = 1e-12  # norm
_LEAST, _LEAST_SHARE, _FLOOR = 1e-12, 1e-30, 1e-9  # of a floor's share, of a share, of an intensity
_DRIFT_SLACK, _DRIFT_THRESHOLD, _DRIFT_CLIP, _DRIFT_WARM_UP = 0.1, 100.0, 5.0, 500.0  # as in prequential scores
_BOOST_EVENTS = 2_000.0
_PERIODS = np.array([86_400.0, 43_200.0, 28_800.0, 604_800.0])  # seconds, of the cycles that gaps end in


class _Counters:
    """The numbers of `progress` by name."""

    def __init__(self, numbers: Array) -> None:
        self.numbers = numbers

    def __getitem__(self, name: str) -> float:
        return float(self.numbers[_PROGRESS.index(name)])

    def __setitem__(self, name: str, value: float) -> None:
        self.numbers[_PROGRESS.index(name)] = value


class _Remembered(NamedTuple):
    """What the events of a key left behind: keys and values [2, heads, layers, events, width], and the rest."""

    past: Tensor
    times: Array
    newest: Tensor
    ids: Tensor
    cosines: Tensor
    prompts: Tensor
    row: Any


@dataclass(frozen=True)
class PromptTPPConfig(EventSettings):
    """Settings of the live PromptTPP."""

    decoder: Literal["bins", "intensity"] = "bins"
    """bins: a distribution of the next gap beside a floor; intensity: the published softplus, no floor."""
    gradients: Literal["stale", "exact"] = "stale"
    """stale: what was remembered of older events is a constant; exact: made anew for every event, and trained."""
    floor: Literal["both", "counts", "hawkes", "none"] = "both"
    """What the network's logits are added to."""
    window: int = 32
    """Newest events of a key that are attended to; even."""
    width: int = 32
    """Of keys, values and states; a multiple of 16."""
    time_width: int = 16
    """Of the embedding of a gap; even."""
    layers: int = 2
    """Layers of each head."""
    heads: int = 2
    """Stacks of attention, each of the full width."""
    hidden: int = 64
    """Of the decoder; a multiple of 16."""
    prompts: int = 16
    """In the pool; 0 for none."""
    selected: int = 4
    """Prompts that are attended to."""
    rows: int = 4
    """Pairs of a key and a value in each prompt."""
    retrieval: Literal["nearest", "random"] = "nearest"
    """random: for comparison."""
    usage_balance: float = 0.0
    """How strongly prompts that are found often are held back."""
    reuse_after: float = 0.0
    """Events after which a prompt that nothing found is put where the newest query is. 0: never."""
    matching: float = 0.1
    """How strongly prompts' keys are drawn to the queries that found them."""
    refresh_every: int = 2
    """Steps of the network for one of the pool; 1 for synchronous refresh."""
    train: Literal["all", "pool"] = "all"
    """pool: only the prompts learn."""
    learning_rate: float = 1e-3
    """Of AdamW."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 10.0
    """Largest norm of a gradient."""
    group: int = 8
    """Events that one step is made of."""
    recency: bool = True
    """Learn offsets of attention for how recent an event is, in events and in time."""
    calendar: bool = True
    """See hour and weekday, as UTC."""
    silence_every: int = 32
    """Events after which some key pays for its silence; 0: none does."""
    drift_boost: float = 1.0
    """What the learning rate is multiplied with for 2,000 events after an alarm of drift."""
    hot_keys: int = 1024
    """Keys whose projected events are kept; a multiple of 8."""
    cache_age: int = 64
    """Steps after which they are projected anew."""
    precision: Literal["float32", "float64"] = "float32"
    """Of the network."""
    seed: int = 0
    """Of the first weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lowest = {
            "window": 2, "width": 16, "time_width": 2, "layers": 1, "heads": 0, "hidden": 16, "prompts": 0,
            "group": 1, "refresh_every": 1, "silence_every": 0, "hot_keys": 8, "cache_age": 0,
            "learning_rate": 0.0, "weight_decay": 0.0, "clip": 1e-9, "matching": 0.0, "usage_balance": 0.0,
            "reuse_after": 0.0, "drift_boost": 1.0,
        }  # fmt: skip
        for name, low in lowest.items():
            value = getattr(self, name)
            if not low <= value < math.inf:
                raise UsageError(f"{name} is {value}; use {low} or more.")
        for name, unit in {"window": 2, "width": 16, "time_width": 2, "hidden": 16, "hot_keys": 8}.items():
            if getattr(self, name) % unit:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be a multiple of {unit}.")
        if self.types > 128:
            raise UsageError(f"types is {self.types}; counts after two types need it to be 128 or less.")
        if self.prompts and not 1 <= self.selected <= self.prompts:
            raise UsageError(f"{self.selected} of {self.prompts} prompts cannot be selected.")


class PromptTPP(EventModel):
    """The live model. Attributes: `weights` [parameters] and their gradients and moments, in `arrays`."""

    name = "prompt-tpp"
    Config = PromptTPPConfig
    config: PromptTPPConfig
    extras = (
        "error_at_prediction", "top3_error", "confidence", "key_events", "log_gap_square", "width_50",
        "width_90", "counts_log_likelihood", "counts_time_log_likelihood", "counts_type_log_loss",
        "counts_type_error", "hawkes_log_likelihood", "hawkes_time_log_likelihood", "hawkes_type_log_loss",
        "hawkes_type_error", "repeat_last_type_error",
    )  # fmt: skip

    def __init__(self, config: PromptTPPConfig | None = None, **options: Any) -> None:
        config = config or PromptTPPConfig()
        few = 1024  # keys' states are in our own rows
        shared = {"types": config.types, "prior_gap": config.prior_gap, "keys_in_memory": few}
        self.counts = Counts(CountsConfig(**shared, memory=config.memory), backend="reference")
        self.hawkes = Hawkes(HawkesConfig(**shared), backend="reference")
        self.hawkes.offset_seconds = self.counts.edges
        self.hawkes.offset_passed = -np.expm1(-np.outer(self.counts.edges, self.hawkes.decay_rates))
        super().__init__(config, **options)

    @property
    def inputs(self) -> int:
        """The width of a token."""
        c = self.config
        return c.width + c.time_width + (4 if c.calendar else 0)

    def _row_type(self) -> np.dtype[Any]:
        window = self.config.window
        fields: list[Any] = [
            *CLOCK,
            ("serial", "i8"),
            ("mean_log_gap", "f8"),
            ("charged", "f8"),
            ("silence", "f8"),
            ("times", "f8", window),
            ("gaps", "f8", window),
            ("query", "f8", self.inputs),
            ("kinds", "i4", window),
            ("hawkes", self.hawkes._row_type()),
            ("counts", self.counts._row_type()),
        ]
        if short := -np.dtype(fields).itemsize % 8:
            fields.append(("padding", "u1", short))
        return np.dtype(fields)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters in the order in which `weights` holds them."""
        c, inputs, types, bins = self.config, self.inputs, self.config.types, len(self.counts.edges)
        features = c.heads * c.width + 2 * inputs - c.width + types + 1
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (types, c.width),
            "projection": (c.heads, c.layers, inputs, 3 * c.width),
            "projection_bias": (c.heads, c.layers, 3 * c.width),
            "recency": (c.heads, c.layers, c.window),
            "decay": (c.heads, c.layers),
        }
        if c.decoder == "bins":
            shapes |= {
                "hidden": (features, c.hidden),
                "hidden_bias": (c.hidden,),
                "gap_out": (c.hidden, bins),
                "gap_bias": (bins,),
                "landing": (c.hidden, 2 * len(_PERIODS) * c.calendar),
                "landing_bias": (2 * len(_PERIODS) * c.calendar,),
                "type_out": (c.hidden, types),
                "type_bias": (types,),
            }
        else:
            shapes |= {"head": (c.heads * c.width, types), "head_bias": (types,), "sharpness": (types,)}
        return shapes | {"prompt_keys": (c.prompts, inputs), "prompt_rows": (c.prompts * c.rows, 2, c.width)}

    def _make_arrays(self) -> None:
        c = self.config
        real = np.dtype(c.precision)
        self.counts.seen, self.hawkes.seen = self.seen, self.seen
        generator = np.random.Generator(np.random.Philox(c.seed))
        drawn = {
            "embedding": lambda shape: generator.standard_normal(shape),
            "prompt_keys": lambda shape: generator.uniform(-1.0, 1.0, shape),
            "prompt_rows": lambda shape: generator.uniform(-1.0, 1.0, shape),
            "projection": lambda shape: generator.uniform(-1.0, 1.0, shape) / math.sqrt(shape[2]),
            "hidden": lambda shape: generator.uniform(-1.0, 1.0, shape) / math.sqrt(shape[0]),
            "head": lambda shape: generator.uniform(-1.0, 1.0, shape) / math.sqrt(max(shape[0], 1)),
        }
        parts = [drawn.get(name, np.zeros)(shape).ravel() for name, shape in self.shapes.items()]
        weights = np.concatenate(parts).astype(real)
        stacks = (c.heads, c.layers, 2)
        self.arrays |= {
            **{f"counts.{name}": array for name, array in self.counts.arrays.items() if name != "seen"},
            **{f"hawkes.{name}": array for name, array in self.hawkes.arrays.items() if name != "seen"},
            "weights": weights,
            "gradients": np.zeros_like(weights),
            "first_moment": np.zeros_like(weights),
            "second_moment": np.zeros_like(weights),
            "prompt_gradients": np.zeros((*stacks, c.prompts * c.rows, c.width), real),
            "cache": np.zeros((c.hot_keys, *stacks, c.window, c.width), real),
            "cached": np.zeros((c.hot_keys, 4), np.int64),
            "progress": np.zeros(len(_PROGRESS)),
            "usage": np.tile([1.0 / max(c.prompts, 1), 0.0], (c.prompts, 1)),
            "floor_weights": np.array([[0.5, 0.5], [0.5, 0.5]]),
        }
        pairs = c.time_width // 2
        self.rates = 6.0 * 50.0 ** (-np.arange(pairs) / max(pairs - 1, 1))  # periods from 1 to 50 in a log gap
        # The last bin has no end, and so none at any hour.
        turned = np.append(np.diff(self.counts.edges), math.inf) / _PERIODS[:, None]
        self._blurs = np.append(np.sinc(turned[:, :-1]), np.zeros((len(_PERIODS), 1)), 1)
        at, weight = np.polynomial.legendre.leggauss(_NODE_COUNT)
        self.nodes = (at + 1.0) / 2.0, weight / 2.0

    def _native_spec(self) -> tuple[str, dict[str, Any]]:
        c = self.config
        info = native_info()
        assert info is not None
        parts = {}
        for model in (self.counts, self.hawkes):
            parts[model.name] = {**model._native_spec()[1], **model.arrays}
        return "PromptTPPModel", {
            **parts,
            "size": len(self.arrays["weights"]),
            "double": int(c.precision == "float64"),
            "decoder": ("bins", "intensity").index(c.decoder),
            "exact": int(c.gradients == "exact"),
            "floor": _FLOORS.index(c.floor),
            "pool_only": int(c.train == "pool"),
            "random_prompts": int(c.retrieval == "random"),
            "recency": int(c.recency),
            "calendar": int(c.calendar),
            "tick_every": c.silence_every,
            "hot": c.hot_keys,
            "unit": c.prior_gap,
            "node_cells": _NODE_CELLS,
            "node_count": _NODE_COUNT,
            "node_at": self.nodes[0],
            "node_weight": self.nodes[1],
            "rates": self.rates,
            "instruction_set": info.instruction_set,
            "selected": c.selected if c.prompts else 0,
            "rows": c.rows if c.prompts else 0,
            **{
                name: getattr(c, name)
                for name in (
                    "window", "width", "time_width", "layers", "heads", "hidden", "prompts", "group",
                    "refresh_every", "cache_age", "learning_rate", "weight_decay", "clip", "matching",
                    "usage_balance", "reuse_after", "drift_boost", "seed",
                )
            },
        }  # fmt: skip

    # What a key leaves behind.

    def _parameters(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the parameters as views of `weights`, one flat tensor."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = zip(self.shapes.items(), weights.split(sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def _embedded(self, gaps: Array, times: Array) -> Tensor:
        """Embed times that are `gaps` seconds after the event before them, [times, time features]."""
        angles = np.log1p(np.asarray(gaps) * 1e3)[:, None] * self.rates
        parts = [np.stack([np.sin(angles), np.cos(angles)], -1).reshape(len(angles), -1)]
        if self.config.calendar:
            turns = 2.0 * math.pi * (np.asarray(times)[:, None] / [86_400.0, 604_800.0] % 1.0)
            parts.append(np.stack([np.sin(turns), np.cos(turns)], -1).reshape(len(turns), -1))
        return torch.from_numpy(np.concatenate(parts, 1)).to(self._real)

    def _tokens(self, p: Mapping[str, Tensor], row: Any) -> tuple[Tensor, Array]:
        """Return tokens and times of the events that a key remembers, the oldest first, [events, inputs]."""
        window, events = self.config.window, int(row["events"])
        at = np.arange(max(events - window, 0), events) % window
        kinds = p["embedding"][torch.from_numpy(row["kinds"][at].astype(np.int64))].tanh()
        return torch.cat([kinds, self._embedded(row["gaps"][at], row["times"][at])], 1), row["times"][at]

    def _retrieve(self, p: Mapping[str, Tensor], row: Any) -> tuple[Tensor, Tensor]:
        """Return ids of the prompts whose keys are nearest to the key's query, and their cosines."""
        c = self.config
        if not c.prompts:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=self._real)
        query = torch.from_numpy(row["query"] / max(float(np.linalg.norm(row["query"])), _SMALLEST)).to(self._real)
        keys = p["prompt_keys"]
        cosines = keys @ query / keys.norm(dim=1).clamp(min=_SMALLEST)
        merit = cosines.detach().double().numpy() - c.usage_balance * np.log(np.maximum(self.arrays["usage"][:, 0], 1e-6))
        if c.retrieval == "random":
            generator = CounterGenerator(0)
            generator.key, generator.counter = c.seed + 1, int(self._progress["events"]) * c.prompts - 1
            merit = np.array([generator.uniform() for _ in range(c.prompts)])
        ids = torch.from_numpy(np.argsort(-merit, kind="stable")[: c.selected].copy())
        return ids, cosines[ids]

    def _prompts(self, p: Mapping[str, Tensor], row: Any, ids: Tensor) -> Tensor:
        """Return keys and values of the selected prompts in every layer, [2, heads, layers, rows, width].

        A row is completed with the time at which the next event is expected, after the mean logarithm of gaps.
        """
        c = self.config
        rows = p["prompt_rows"].view(-1, max(c.rows, 1), 2, c.width)[ids].flatten(0, 1)  # [rows, 2, width]
        expected = self._embedded(np.exp(row["mean_log_gap"])[None], np.array([row["last_time"]]))
        inputs = torch.cat([rows, expected[:, None].expand(len(rows), 2, -1)], 2)
        weight = p["projection"].unflatten(-1, (3, c.width))[..., 1:, :]  # [heads, layers, inputs, 2, width]
        bias = p["projection_bias"].unflatten(-1, (3, c.width))[..., 1:, :]
        return torch.einsum("rci,hlicd->chlrd", inputs, weight) + bias.permute(2, 0, 1, 3)[:, :, :, None]

    def _attend(
        self,
        p: Mapping[str, Tensor],
        layer: int,
        own: Tensor,
        past: Tensor,
        prompts: Tensor,
        counts: NDArray[np.int64],
        ages: Array,
    ) -> Tensor:
        """Let rows attend to the events before them, to prompts, and to themselves, [heads, rows, width].

        own: their queries, keys and values, [heads, rows, 3 width]. past: keys and values of events, [2, heads,
        events, width]. counts: how many of the events each row sees. ages: seconds since each, [rows, events].
        """
        query, key, value = own.chunk(3, -1)
        scale = 1.0 / math.sqrt(self.config.width)
        scores = query @ past[0].transpose(-1, -2) * scale
        nearer = torch.from_numpy(counts[:, None] - 1 - np.arange(past.shape[2]))
        if self.config.recency:
            logs = torch.from_numpy(np.log1p(np.maximum(ages, 0.0))).to(self._real)
            scores = scores + p["recency"][:, layer][:, nearer.clamp(min=0)] - p["decay"][:, layer, None, None] * logs
        scores = scores.masked_fill(nearer < 0, -math.inf)
        to_prompts = query @ prompts[0, :, layer].transpose(-1, -2) * scale
        to_itself = (query * key).sum(-1, keepdim=True) * scale
        shares = torch.cat([scores, to_prompts, to_itself], -1).softmax(-1)
        seen, few = past.shape[2], prompts.shape[3]
        attended = shares[..., :seen] @ past[1] + shares[..., seen : seen + few] @ prompts[1, :, layer]
        return attended + shares[..., -1:] * value

    def _projected(self, p: Mapping[str, Tensor], layer: int, inputs: Tensor) -> Tensor:
        return inputs @ p["projection"][:, layer] + p["projection_bias"][:, layer, None]

    def _encode(
        self,
        p: Mapping[str, Tensor],
        tokens: Tensor,
        times: Array,
        prompts: Tensor,
        older: Tensor | None = None,
    ) -> Tensor:
        """Return keys and values of events in every layer, [2, heads, layers, events, width].

        older: keys and values of all but the newest, which are then taken as they are.
        """
        c = self.config
        if older is None:
            rows, counts, ages = tokens, np.arange(len(tokens)), times[:, None] - times
        else:
            rows, counts, ages = tokens[-1:], np.array([len(tokens) - 1]), times[-1:, None] - times[:-1]
        inputs = rows.expand(c.heads, *rows.shape)
        made = []
        for layer in range(c.layers):
            own = self._projected(p, layer, inputs)
            made.append(torch.stack(own.chunk(3, -1)[1:]))
            if layer + 1 < c.layers:
                past = made[-1] if older is None else older[:, :, layer]
                attended = self._attend(p, layer, own, past, prompts, counts, ages)
                inputs = torch.cat([attended, rows[:, c.width :].expand(c.heads, -1, -1)], -1)
        newest = torch.stack(made, 2)
        return newest if older is None else torch.cat([older, newest], 3)

    def _remember(self, p: Mapping[str, Tensor], row: Any, *, fresh: bool) -> _Remembered:
        """Return what the events of a key left behind. fresh: project all of them now, and touch no cache."""
        tokens, times = self._tokens(p, row)
        ids, cosines = self._retrieve(p, row)
        prompts = self._prompts(p, row, ids)
        if fresh or not self.config.heads:
            past = self._encode(p, tokens, times, prompts)
        else:
            cache = self._cached(p, row, tokens.detach(), times, prompts.detach())
            at = np.arange(int(row["events"]) - len(tokens), int(row["events"])) % self.config.window
            older = torch.from_numpy(cache[:, :, :, at[:-1]].transpose(2, 0, 1, 3, 4))
            past = self._encode(p, tokens, times, prompts, older)
            cache[:, :, :, at[-1]] = past[:, :, :, -1].detach().permute(1, 2, 0, 3).numpy()
        return _Remembered(past, times, tokens[-1], ids, cosines, prompts, row)

    def _cached(self, p: Any, row: Any, tokens: Tensor, times: Array, prompts: Tensor) -> NDArray[Any]:
        """Return the place of a key's keys and values, [heads, layers, 2, window, width], all but the newest there.

        Eight keys share the places of one set, of which the least recently used goes to whoever has none.
        """
        c, progress = self.config, self._progress
        serial, events = int(row["serial"]), int(row["events"])
        first = _mix(serial) % (c.hot_keys // 8) * 8
        entries = self.arrays["cached"]
        of_set = entries[first : first + 8]
        mine = np.flatnonzero(of_set[:, 0] == serial)
        place = first + int(mine[0] if len(mine) else np.argmin(of_set[:, 1]))
        entry, cache = entries[place], self.arrays["cache"][place]
        progress["lookups"] += 1.0
        if len(mine) and events - entry[3] <= 1 and progress["updates"] - entry[2] <= c.cache_age:
            progress["hits"] += 1.0
        else:
            entry[0], entry[2] = serial, int(progress["updates"])
            progress["rebuilds"] += float(len(tokens) > 1)
            at = np.arange(events - len(tokens), events - 1) % c.window
            with torch.no_grad():
                made = self._encode(p, tokens[:-1], times[:-1], prompts) if len(at) else None
            if made is not None:
                cache[:, :, :, at] = made.permute(1, 2, 0, 3, 4).numpy()
        entry[1], entry[3] = int(progress["lookups"]), events
        return cache

    def _states(self, p: Mapping[str, Tensor], past: _Remembered, gaps: Array) -> Tensor:
        """Return the states at some gaps after a key's last event, [gaps, heads * width + time features]."""
        c, last = self.config, float(past.row["last_time"])
        at = self._embedded(gaps, last + gaps)
        ages = last + gaps[:, None] - past.times
        counts = np.full(len(gaps), len(past.times))
        state = torch.zeros(c.heads, len(gaps), c.width, dtype=self._real)
        for layer in range(c.layers if c.heads else 0):
            own = self._projected(p, layer, torch.cat([state, at.expand(c.heads, *at.shape)], -1))
            state = state + self._attend(p, layer, own, past.past[:, :, layer], past.prompts, counts, ages).tanh()
        return torch.cat([state.transpose(0, 1).flatten(1), at], 1)

    # The decoders.

    def _hidden(self, p: Mapping[str, Tensor], past: _Remembered, gaps: Array) -> Tensor:
        """Return the decoder's hidden layer, [gaps, hidden], of the state and what all moments of a key share."""
        counts = torch.from_numpy(np.log1p(past.row["counts"]["types"][:-1].astype(np.float64)))
        length = torch.tensor([math.log1p(float(past.row["events"])) / 4.0])
        shared = torch.cat([past.newest, counts.to(self._real), length.to(self._real)])
        states = self._states(p, past, gaps)
        features = torch.cat([states, shared.expand(len(states), -1)], 1)
        return nn.functional.silu(features @ p["hidden"] + p["hidden_bias"])

    def _bins(self, p: Mapping[str, Tensor], past: _Remembered) -> Tensor:
        """Return the probability of each bin of the next gap, [bins]."""
        hidden = self._hidden(p, past, np.zeros(1))[0]
        logits = hidden @ p["gap_out"] + p["gap_bias"]
        if self.config.calendar:
            strength = (hidden @ p["landing"] + p["landing_bias"]).view(-1, 2, 1)
            angles = 2.0 * math.pi * ((past.row["last_time"] + self.counts.middles) / _PERIODS[:, None] % 1.0)
            ends = torch.from_numpy(np.stack([np.sin(angles), np.cos(angles)], 1) * self._blurs[:, None])
            logits = logits + (strength * ends.to(self._real)).sum((0, 1))
        return (torch.from_numpy(self._gap_floor(past.row)).log().to(self._real) + logits).softmax(0)

    def _type_shares(self, p: Mapping[str, Tensor], past: _Remembered, gaps: Array) -> Tensor:
        """Return the probability of each type after some gaps, [gaps, classes]."""
        if self.config.decoder == "intensity":
            rates = self._rates(p, past, gaps)
            return rates / rates.sum(1, keepdim=True)
        logits = (self._hidden(p, past, gaps) @ p["type_out"] + p["type_bias"])[:, : self.classes]
        return (torch.from_numpy(self._type_floor(past.row, gaps)).log().to(self._real) + logits).softmax(1)

    def _log_survival(self, bins: Tensor, gap: float) -> Tensor:
        """Return the logarithm of the probability of a longer gap."""
        edges = self.counts.edges
        at = int(np.searchsorted(edges, gap, side="right")) - 1
        if at == len(edges) - 1:
            return bins[at].log() - (gap - edges[at]) / edges[at]
        left = float((edges[at + 1] - gap) / (edges[at + 1] - edges[at]))
        shorter = bins[:at].sum() + bins[at] * (1.0 - left)
        if shorter.item() < 0.5:  # exact to the last digits of a small compensator
            return torch.log1p(-shorter)
        return (bins[at + 1 :].sum() + bins[at] * left).clamp(min=_LEAST_SHARE).log()

    def _rates(self, p: Mapping[str, Tensor], past: _Remembered, gaps: Array) -> Tensor:
        """Return λ_k after some gaps by the softplus, [gaps, classes], events a second."""
        states = self._states(p, past, gaps)[:, : self.config.heads * self.config.width]
        sharpness = p["sharpness"].exp()
        scaled = sharpness * (states @ p["head"] + p["head_bias"])
        rates = nn.functional.softplus(scaled, threshold=20.0) / sharpness / self.config.prior_gap
        return rates[:, : self.classes]

    def _integral(
        self, p: Mapping[str, Tensor], past: _Remembered, start: float, end: float, draws: Array | None = None
    ) -> Tensor:
        """Return the integral of λ between two gaps; draws: in [0, 1), one a node, in place of Gauss's nodes."""
        at, weight = self.nodes
        bounds = np.append(0.0, 10.0 ** np.arange(1 - _NODE_CELLS, 1))
        widths = np.diff(bounds) * (end - start)
        if draws is not None:
            at = (np.arange(_NODE_COUNT) + draws.reshape(_NODE_CELLS, -1)) / _NODE_COUNT
            weight = np.full(_NODE_COUNT, 1.0 / _NODE_COUNT)
        gaps = start + bounds[:-1, None] * (end - start) + at * widths[:, None]
        totals = self._rates(p, past, gaps.ravel()).sum(1)
        return totals @ torch.from_numpy((widths[:, None] * weight).ravel()).to(self._real)

    # The floors.

    def _gap_floor(self, row: Any) -> Array:
        """Return what the floors say of the next gap, [bins]."""
        if self.config.floor == "none":
            return np.maximum(self.counts.gap_prior, _LEAST)
        by_counts, by_hawkes = self.counts._mixtures(row["counts"])[1], self._hawkes_bins(row)
        return np.maximum(self._mixed(1, by_counts, by_hawkes), _LEAST)

    def _hawkes_bins(self, row: Any) -> Array:
        compensator = self.hawkes._intensities(row["hawkes"], self.counts.edges)[1]
        return -np.diff(np.append(np.exp(-compensator), 0.0))

    def _type_floor(self, row: Any, gaps: Array) -> Array:
        """Return what the floors say of the type after some gaps, [gaps, classes]."""
        if self.config.floor == "none":
            return np.ones((len(gaps), self.classes))
        by_counts = self.counts._mixtures(row["counts"])[0]
        rates = self.hawkes._intensities(row["hawkes"], gaps)[0]
        return np.maximum(self._mixed(0, by_counts, rates / rates.sum(1, keepdims=True)), _LEAST)

    def _mixed(self, which: int, by_counts: Array, by_hawkes: Array) -> Array:
        weights = self.arrays["floor_weights"][which]
        of_counts = weights[0] if self.config.floor in ("counts", "both") else 0.0
        of_hawkes = weights[1] if self.config.floor in ("hawkes", "both") else 0.0
        mixed: Array = of_counts * by_counts + of_hawkes * by_hawkes
        return mixed

    def _mix_floors(self, row: Any, gap: float, event_type: int) -> None:
        """Divide the weights between the floors by expectation-maximization, an event at a time."""
        if self.config.floor != "both":
            return
        types, bins = self.counts._mixtures(row["counts"])
        rates = self.hawkes._intensities(row["hawkes"], np.array([gap]))[0][0]
        at = int(np.searchsorted(self.counts.edges, gap, side="right")) - 1
        says = [(types[event_type], rates[event_type] / rates.sum()), (bins[at], self._hawkes_bins(row)[at])]
        pace = 1.0 / (200.0 + min(self._progress["events"], 1e4))
        for weights, pair in zip(self.arrays["floor_weights"], says, strict=True):
            caused = weights * pair
            if caused.sum() > 0.0:
                weights[0] += pace * (caused[0] / caused.sum() - weights[0])
                weights[1] = 1.0 - weights[0]

    # Learning, as the formulas are written; the native kernel does the same.

    def _learn_chunk(
        self, times: Array, ids: NDArray[np.int64], slots: NDArray[np.int64], scores: Array
    ) -> None:
        if self.native is not None:
            self.native.learn(times, ids, slots, scores)
            return
        rows = self.keys.rows
        for i, (time, event_type, slot) in enumerate(
            zip(times.tolist(), ids.tolist(), slots.tolist(), strict=True)
        ):
            row = rows[slot]
            if row["events"] > 0.0 and time < row["last_time"]:
                raise ValueError(f"event {i} lies before the last one of its key")
            scores[i] = self._learn_event(row, time, event_type)
            self.seen[0] = max(self.seen[0], event_type + 1)
            self._tick(time)

    def _learn_event(self, row: Any, time: float, event_type: int) -> list[float]:
        progress, extras = self._progress, dict.fromkeys(self.extras, math.nan)
        if row["events"] == 0.0:
            progress["serials"] += 1.0
            row["serial"] = int(progress["serials"])
            shares = self._type_floor(row, np.zeros(1))[0]
            score = Score(
                gap=math.nan,
                time_log_density=math.nan,
                type_log_probability=math.log(shares[event_type] / shares.sum()),
                compensator=math.nan,
                predicted_type=float(np.argmax(shares)),
                predicted_gap=float(self.counts._mixtures(row["counts"])[1] @ self.counts.middles),
                type=float(event_type),
            )
        else:
            gap = time - float(row["last_time"])
            weights = torch.from_numpy(self.arrays["weights"]).requires_grad_()
            p = self._parameters(weights)
            past = self._remember(p, row, fresh=self.config.gradients == "exact")
            score, described, loss = self._score_event(p, past, gap, event_type)
            extras |= described
            self._train(weights, past, loss)
            self._watch(-score.time_log_density - score.type_log_probability)
            progress["silence"] -= float(row["silence"])
            self._mix_floors(row, gap, event_type)
            extras["repeat_last_type_error"] = float(event_type != row["last_type"])
        for model in (self.counts, self.hawkes):
            part = row[model.name]
            by = model._score(part, time, event_type)
            model._learn(part, time, event_type)
            wrong = float(by.predicted_type != event_type)
            parts = (by.time_log_density + by.type_log_probability, by.time_log_density, -by.type_log_probability, wrong)
            names = ("log_likelihood", "time_log_likelihood", "type_log_loss", "type_error")
            extras |= {f"{model.name}_{name}": value for name, value in zip(names, parts, strict=True)}
        progress["events"] += 1.0
        self._put(row, time, event_type)
        return [*score, *extras.values()]

    def _score_event(
        self, p: Mapping[str, Tensor], past: _Remembered, gap: float, event_type: int
    ) -> tuple[Score, dict[str, float], Tensor]:
        """Return the score of an event, what else is recorded, and its loss."""
        row, charged = past.row, float(past.row["charged"])
        bins = self._bins(p, past) if self.config.decoder == "bins" else self._binned_intensity(p, past)
        edges = self.counts.edges
        at = int(np.searchsorted(edges, gap, side="right")) - 1
        shares = self._type_shares(p, past, np.array([gap]))[0]
        type_loss = -shares[event_type].clamp(min=_LEAST_SHARE).log()
        if self.config.decoder == "bins":
            width, beyond = (edges[at + 1] - edges[at], 0.0) if at + 1 < len(edges) else (edges[at], gap / edges[at] - 1.0)
            log_density = bins[at].clamp(min=_LEAST_SHARE).log() - math.log(width) - beyond
            compensator = -self._log_survival(bins, gap)
            loss = -bins[at].log() + type_loss
            if charged > 0.0:
                loss = loss + self._log_survival(bins, charged)
        else:
            rates = self._rates(p, past, np.array([gap]))[0]
            least = _FLOOR / self.config.prior_gap
            self._progress["floored"] += float(rates.sum().item() < least)
            compensator = self._integral(p, past, 0.0, gap)
            log_density = rates.sum().clamp(min=least).log() - compensator
            loss = self._integral(p, past, charged, gap, self._draws()) - rates[event_type].clamp(min=least).log()
        quantiles, predicted_gap = self._quantiles(bins.detach().double().numpy())
        with torch.no_grad():  # the quartiles stand for the gap that is not known yet
            marginal = self._type_shares(p, past, np.array(quantiles[1:4])).double().mean(0)
        score = Score(
            gap=gap,
            time_log_density=log_density.item(),
            type_log_probability=-type_loss.item(),
            compensator=compensator.item(),
            predicted_type=float(shares.argmax()),
            predicted_gap=predicted_gap,
            type=float(event_type),
        )
        extras = {
            "error_at_prediction": float(int(marginal.argmax()) != event_type),
            "top3_error": float(int((shares > shares[event_type]).sum()) >= 3),
            "confidence": shares.max().item(),
            "key_events": float(row["events"]),
            "log_gap_square": math.log((quantiles[2] + 1e-3) / (gap + 1e-3)) ** 2,
            "width_50": quantiles[3] - quantiles[1],
            "width_90": quantiles[4] - quantiles[0],
        }
        return score, extras, loss

    def _binned_intensity(self, p: Mapping[str, Tensor], past: _Remembered) -> Tensor:
        """Return the probability of each bin of the gap, from the intensity in its middle."""
        edges = self.counts.edges
        with torch.no_grad():
            rates = self._rates(p, past, 0.5 * (edges[:-1] + edges[1:])).sum(1).double().numpy()
        bins, survival = np.zeros(len(edges)), 1.0
        for b, rise in enumerate(np.diff(edges) * rates):
            if survival < 1e-6:
                break
            bins[b] = np.float64(self._real_number(-survival * math.expm1(-rise)))
            survival -= bins[b]
        else:
            b = len(edges) - 1
        bins[b] = survival
        return torch.from_numpy(bins).to(self._real)

    def _quantiles(self, bins: Array) -> tuple[list[float], float]:
        """Return the gaps below which the next one falls with 5, 25, 50, 75 and 95%, and its mean, in seconds."""
        edges, cumulative = self.counts.edges, np.cumsum(bins)
        found = []
        for wanted in (0.05, 0.25, 0.5, 0.75, 0.95):
            at = min(int(np.searchsorted(cumulative, wanted)), len(bins) - 1)
            share = (wanted - (cumulative[at] - bins[at])) / max(bins[at], 1e-30)
            if at == len(bins) - 1:
                found.append(float(edges[at] * (1.0 - math.log1p(-min(share, 0.999)))))
            else:
                found.append(float(edges[at] + share * (edges[at + 1] - edges[at])))
        return found, float(bins @ self.counts.middles)

    def _draws(self) -> Array:
        """Return one draw in [0, 1) for every node, by the seed and the number of the event."""
        generator, count = CounterGenerator(0), _NODE_CELLS * _NODE_COUNT
        generator.key = self.config.seed
        generator.counter = int(self._progress["events"] + self._progress["ticked"]) * 64 - 1
        return np.array([generator.uniform() for _ in range(count)])

    def _train(self, weights: Tensor, past: _Remembered, loss: Tensor) -> None:
        """Add the gradient of a loss to the open group; a full group makes a step."""
        c, progress = self.config, self._progress
        if c.prompts:
            loss = loss + c.matching * (1.0 - past.cosines.mean())
            mean = float(past.cosines.detach().mean())
            progress["mean_cosine"] = 0.999 * progress["mean_cosine"] + 0.001 * mean
            usage, ids = self.arrays["usage"], past.ids.numpy()
            usage[:, 0] *= 0.999
            usage[ids, 0] += 0.001 / len(ids)
            usage[ids, 1] = progress["events"]
        (gradient,) = torch.autograd.grad(loss, weights)
        self.arrays["gradients"] += gradient.numpy()
        if c.prompts and c.reuse_after > 0.0:
            self._reuse(past)
        progress["in_group"] += 1.0
        if progress["in_group"] >= c.group:
            self._step()

    def _reuse(self, past: _Remembered) -> None:
        """Put a prompt that nothing has found for long where the present query is."""
        unused = self._progress["events"] - self.arrays["usage"][:, 1]
        for prompt in np.flatnonzero(unused > self.config.reuse_after)[:1]:  # two in one place would be one
            query = past.row["query"]
            inputs, start = self.inputs, len(self.arrays["weights"]) - self._pool_size
            at = slice(start + prompt * inputs, start + (prompt + 1) * inputs)
            self.arrays["weights"][at] = query / max(float(np.linalg.norm(query)), _SMALLEST)
            for name in ("gradients", "first_moment", "second_moment"):
                self.arrays[name][at] = 0.0
            self.arrays["usage"][prompt, 1] = self._progress["events"]
            self._progress["reused"] += 1.0

    @property
    def _pool_size(self) -> int:
        return sum(math.prod(self.shapes[name]) for name in ("prompt_keys", "prompt_rows"))

    def _step(self) -> None:
        """Make a step of the network, and every so often one of the pool."""
        c, progress = self.config, self._progress
        progress["updates"] += 1.0
        progress["pool_pending"] += 1.0
        progress["in_group"] = 0.0
        boost = c.drift_boost if progress["events"] < progress["boost_until"] else 1.0
        self._fold_prompts()
        base = slice(0, len(self.arrays["weights"]) - self._pool_size)
        pool = slice(base.stop, None)
        if c.train == "pool":
            self.arrays["gradients"][base] = 0.0
        else:
            norm = self._move(base, 1.0 / c.group, progress["updates"], boost)
            progress["gradient_norm"] = norm
            progress["clipped"] += float(norm > c.clip)
        if c.prompts and progress["pool_pending"] >= c.refresh_every:
            self._move(pool, 1.0 / (c.group * c.refresh_every), progress["updates"] / c.refresh_every, boost)
            progress["pool_pending"] = 0.0

    def _fold_prompts(self) -> None:
        """Chain what the native kernel keeps of projected prompts to rows and projections."""
        pending = torch.from_numpy(self.arrays["prompt_gradients"])
        if not pending.any():
            return
        c = self.config
        weights = torch.from_numpy(self.arrays["weights"]).requires_grad_()
        p = self._parameters(weights)
        projection = p["projection"].unflatten(-1, (3, c.width))[:, :, : c.width, 1:]
        bias = p["projection_bias"].unflatten(-1, (3, c.width))[:, :, 1:]
        projected = torch.einsum("rci,hlicd->hlcrd", p["prompt_rows"], projection) + bias[..., None, :]
        (gradient,) = torch.autograd.grad((projected * pending).sum(), weights)
        self.arrays["gradients"] += gradient.numpy()
        pending.zero_()

    def _move(self, part: slice, scale: float, steps: float, boost: float) -> float:
        """Apply AdamW to a part of the parameters; return the norm of its gradient."""
        c = self.config
        weights, gradients, first, second = (
            self.arrays[name][part] for name in ("weights", "gradients", "first_moment", "second_moment")
        )
        norm = float(np.linalg.norm(gradients.astype(np.float64))) * scale
        gradient = gradients * weights.dtype.type(scale * min(1.0, c.clip / max(norm, 1e-300)))
        rate = c.learning_rate * boost
        first += (gradient - first) * 0.1
        second += (gradient * gradient - second) * 0.001
        spread = np.sqrt(second) / math.sqrt(1.0 - 0.999**steps) + 1e-8
        weights *= 1.0 - rate * c.weight_decay
        weights -= rate / (1.0 - 0.9**steps) * first / spread
        gradients[:] = 0.0
        return norm

    def _watch(self, loss: float) -> None:
        """Test for drift (Page 1954) by the standardized loss; an alarm raises the step size for a while."""
        if self.config.drift_boost <= 1.0:
            return
        s = self._progress
        known = max(s["drift_count"], 1.0)
        mean = s["drift_sum"] / known
        deviation = math.sqrt(max(s["drift_squares"] / known - mean * mean, 1e-12))
        z = min(max((loss - mean) / deviation, -_DRIFT_CLIP), _DRIFT_CLIP) - _DRIFT_SLACK
        s["drift_count"] += 1.0
        s["drift_sum"] += loss
        s["drift_squares"] += loss * loss
        if s["drift_count"] <= _DRIFT_WARM_UP:
            return
        s["drift_walk"] += z
        s["drift_low"] = min(s["drift_low"], s["drift_walk"])
        if s["drift_walk"] - s["drift_low"] > _DRIFT_THRESHOLD:
            s["drift_alarms"] += 1.0
            s["boost_until"] = s["events"] + _BOOST_EVENTS
            for name in ("drift_count", "drift_sum", "drift_squares", "drift_walk", "drift_low"):
                s[name] = 0.0

    # Silence.

    def _tick(self, now: float) -> None:
        """Every so often, let some key pay for its silence."""
        c, progress = self.config, self._progress
        if not c.silence_every or int(progress["events"]) % c.silence_every:
            return
        at = int(progress["tick_cursor"])
        if at >= len(self.keys.rows) or self.keys.rows[at]["events"] == 0.0:
            at = 0
        progress["tick_cursor"] = at + 1.0
        self._charge(self.keys.rows[at], now, train=True)

    def _charge(self, row: Any, now: float, *, train: bool) -> None:
        silent, charged = now - float(row["last_time"]), float(row["charged"])
        if row["events"] == 0.0 or silent <= charged:
            return
        weights = torch.from_numpy(self.arrays["weights"]).requires_grad_()
        p = self._parameters(weights)
        past = self._remember(p, row, fresh=self.config.gradients == "exact")
        if self.config.decoder == "bins":
            bins = self._bins(p, past)
            loss = self._log_survival(bins, charged) - self._log_survival(bins, silent)
            silence = -loss.item()
        else:
            silence = -self._integral(p, past, charged, silent).item()
        self._progress["ticked"] += 1.0
        self._progress["silence"] += silence
        row["silence"] += silence
        if train:
            if self.config.decoder == "intensity":
                loss = self._integral(p, past, charged, silent, self._draws())
            self._train(weights, past, loss)
        row["charged"] = silent

    def charge_silence(self, now: float) -> float:
        """Let every key in memory pay for its silence until `now`, and learn nothing from it.

        Returns the log-likelihood of all silences that no event has ended, in nats: the sum of the scores
        of a stream and this is the log-likelihood of the stream until `now`.
        """
        if self.native is not None:
            self.native.charge(now, -1, False)
        else:
            for row in self.keys.rows[: self.keys.in_memory]:
                self._charge(row, now, train=False)
        return float(self._progress["silence"])

    # Prediction, and what it needs: keys and values are made anew, with the present weights.

    def _score(self, row: Any, time: float, event_type: int) -> Score:
        p = self._parameters(torch.from_numpy(self.arrays["weights"]))
        with torch.no_grad():
            past = self._remember(p, row, fresh=True)
            return self._score_event(p, past, time - float(row["last_time"]), event_type)[0]

    def _learn(self, row: Any, time: float, event_type: int) -> None:
        raise NotImplementedError("events are learned by `_learn_event`, with their score")

    def _advance(self, row: Any, time: float, event_type: int) -> None:
        p = self._parameters(torch.from_numpy(self.arrays["weights"]))
        at, gap, first = int(row["events"]) % self.config.window, 0.0, row["events"] == 0.0
        if not first:
            gap = time - float(row["last_time"])
            log_gap = math.log(gap + 1e-3)
            mean = float(row["mean_log_gap"])
            row["mean_log_gap"] = log_gap if row["events"] == 1.0 else 0.8 * mean + 0.2 * log_gap
        kind = p["embedding"][event_type].tanh()
        token = torch.cat([kind, self._embedded(np.array([gap]), np.array([time]))[0]]).double().numpy()
        row["query"][:] = token if first else 0.9 * row["query"] + 0.1 * token
        row["times"][at], row["gaps"][at], row["kinds"][at] = time, gap, event_type
        row["charged"] = row["silence"] = 0.0
        for model in (self.counts, self.hawkes):
            model._put(row[model.name], time, event_type)

    def _intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        p = self._parameters(torch.from_numpy(self.arrays["weights"]))
        with torch.no_grad():
            past = self._remember(p, row, fresh=True)
            if self.config.decoder == "bins":
                log_density, compensator = self.counts._density(self._bins(p, past).double().numpy(), gaps)
                shares = self._type_shares(p, past, gaps).double().numpy()
                return np.exp(log_density + compensator)[:, None] * shares, compensator
            rates = self._rates(p, past, gaps).double().numpy()
            at = np.concatenate([[0.0], np.geomspace(1e-4, max(float(gaps.max()), 1e-3), _GRID)])
            totals = self._rates(p, past, at).sum(1).double().numpy()
            compensator = np.append(0.0, np.cumsum(0.5 * (totals[1:] + totals[:-1]) * np.diff(at)))
            return rates, np.interp(gaps, at, compensator)

    def _gap_of(self, row: Any, wanted: float) -> float:
        at = np.concatenate([self.counts.edges[:-1], np.geomspace(self.counts.edges[-1], 1e10, 64)])
        compensator = self._intensities(row, at)[1]
        if self.config.decoder == "bins":  # survival is linear within a bin
            return float(np.interp(-math.exp(-wanted), -np.exp(-compensator), at))
        return float(np.interp(wanted, compensator, at))

    @property
    def _progress(self) -> _Counters:
        return _Counters(self.arrays["progress"])

    @property
    def _real(self) -> torch.dtype:
        return torch.float64 if self.config.precision == "float64" else torch.float32

    def _real_number(self, value: float) -> Any:
        return self.arrays["weights"].dtype.type(value)

    def statistics(self) -> dict[str, float]:
        """Return the health of pool, gradients and cache."""
        progress, usage = self._progress, self.arrays["usage"][:, 0]
        found = {
            "gradient_norm": progress["gradient_norm"],
            "clipped_share": progress["clipped"] / max(progress["updates"], 1.0),
            "cache_hit_rate": progress["hits"] / max(progress["lookups"], 1.0),
            "floored": progress["floored"],
            "silence_log_likelihood": progress["silence"],
            "drift_boosts": progress["drift_alarms"],
        }
        if len(usage):
            shares = usage / usage.sum()
            unused = progress["events"] - self.arrays["usage"][:, 1]
            found |= {
                "pool_entropy": float(-(shares * np.log(np.maximum(shares, 1e-300))).sum()),
                "pool_unused": float((unused > 10_000).sum()),
                "pool_mean_cosine": progress["mean_cosine"],
                "pool_reused": progress["reused"],
            }
        return found

    def load_state_dict(self, state: State) -> None:  # type: ignore[override]  # a narrower type says what it is
        """Go on from a state that `state_dict` gave."""
        super().load_state_dict(state)
        if self.native is not None:
            self.native.refresh()

    def close(self) -> None:
        """Close the files of the keys."""
        self.counts.close()
        self.hawkes.close()
        super().close()
