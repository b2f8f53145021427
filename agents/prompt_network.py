"""The network of the live PromptTPP (agents/prompt_tpp.py), as the formulas are written.

Shapes: H heads, Y layers, D width, n events that a key remembers. What a key's row holds is defined by the
model; times are float64 until they are differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamwise.agents.event_model import Array
from streamwise.agents.generator import draws
from streamwise.agents.prompt_settings import PromptTPPConfig
from streamwise.memory.hcam import ChunkAttention, Chunks, position_table

__all__ = ["LEAST_SHARE", "NODES", "PromptNetwork", "Remembered"]

LEAST_SHARE = 1e-30  # of a probability, before its logarithm
NODES = (5, 4)  # cells of a gap: up to a ten-thousandth, a thousandth, ... of it, all of it; nodes in each
_SMALLEST = 1e-12  # norm
_PERIODS = np.array([86_400.0, 43_200.0, 28_800.0, 604_800.0])  # seconds, of the cycles that gaps end in

Parameters = Mapping[str, Tensor]


class Remembered(NamedTuple):
    """What the events of a key left behind.

    past: keys and values [2, H, Y, n, D]. times: [n], seconds. newest: the last token [inputs]. ids, cosines:
    of the selected prompts. prompts: their keys and values [2, H, Y, rows, D]. found: in the history,
    [features]. row: the key's.
    """

    past: Tensor
    times: Array
    newest: Tensor
    ids: Tensor
    cosines: Tensor
    prompts: Tensor
    found: Tensor
    row: Any


class PromptNetwork:
    """Functions of parameters and a key's row. edges, middles: of the bins of gaps, seconds."""

    def __init__(self, config: PromptTPPConfig, edges: Array, middles: Array) -> None:
        self.config, self.edges, self.middles = config, edges, middles
        self.real = torch.float64 if config.precision == "float64" else torch.float32
        pairs = config.time_width // 2
        self.turns = 6.0 * 50.0 ** (-np.arange(pairs) / max(pairs - 1, 1))  # turns in 1 to 50 of a log gap
        # A wide bin ends at every hour alike; the last has no end.
        turned = np.diff(edges) / _PERIODS[:, None]
        self._blurs = np.append(np.sinc(turned), np.zeros((len(_PERIODS), 1)), 1)
        at, weight = np.polynomial.legendre.leggauss(NODES[1])
        self.nodes = (at + 1.0) / 2.0, weight / 2.0
        width = config.width + config.time_width  # of an event in the history
        # Called with the model's own parameters; its own draws shall not move torch's random state.
        self.attention = ChunkAttention(
            2 * self.inputs, width, features=config.history_features, heads=config.history_heads,
            length=config.history_length, k=config.history_reads, generator=torch.Generator(),
        )  # fmt: skip
        self.positions = position_table(config.history_length, width).to(self.real)

    @property
    def inputs(self) -> int:
        """The width of a token."""
        c = self.config
        return c.width + c.time_width + (4 if c.calendar else 0)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters in the order in which `weights` holds them."""
        c, inputs, types, bins = self.config, self.inputs, self.config.types, len(self.edges)
        features = c.heads * c.width + 2 * inputs - c.width + types + 1
        features += c.history_features if c.history else 0
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
                **self.recall_shapes,
            }
        else:
            shapes |= {"head": (c.heads * c.width, types), "head_bias": (types,), "sharpness": (types,)}
        return shapes | {"prompt_keys": (c.prompts, inputs), "prompt_rows": (c.prompts * c.rows, 2, c.width)}

    @property
    def recall_shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters that read the history, in the order of the native step; none without a history."""
        c, row, found = self.config, self.config.width + self.config.time_width, self.config.history_features
        shapes: dict[str, tuple[int, ...]] = {
            "select_query": (2 * self.inputs, found),
            "select_key": (row, found),
            "query": (2 * self.inputs, found),
            "query_bias": (found,),
            "key": (row, found),
            "value": (row, found),
            "value_bias": (found,),
            "output": (found, found),
            "output_bias": (found,),
        }
        return {f"recall_{name}": shape for name, shape in shapes.items()} if c.history else {}

    def parameters(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the parameters as views of `weights`, one flat tensor."""
        found, start = {}, 0
        for name, shape in self.shapes.items():
            found[name] = weights[start : start + math.prod(shape)].view(shape)
            start += math.prod(shape)
        return found

    def embedded(self, gaps: Array, times: Array) -> Tensor:
        """Embed times that are `gaps` seconds after the event before them, [times, time features]."""
        angles = np.log1p(np.asarray(gaps) * 1e3)[:, None] * self.turns
        parts = [np.stack([np.sin(angles), np.cos(angles)], -1).reshape(len(angles), -1)]
        if self.config.calendar:
            turns = 2.0 * math.pi * (np.asarray(times)[:, None] / [86_400.0, 604_800.0] % 1.0)
            parts.append(np.stack([np.sin(turns), np.cos(turns)], -1).reshape(len(turns), -1))
        return torch.from_numpy(np.concatenate(parts, 1)).to(self.real)

    def tokens(self, p: Parameters, row: Any) -> tuple[Tensor, Array]:
        """Return tokens and times of the events that a key remembers, the oldest first, [events, inputs]."""
        window, events = self.config.window, int(row["events"])
        at = np.arange(max(events - window, 0), events) % window
        kinds = p["embedding"][torch.from_numpy(row["kinds"][at].astype(np.int64))].tanh()
        return torch.cat([kinds, self.embedded(row["gaps"][at], row["times"][at])], 1), row["times"][at]

    def retrieve(self, p: Parameters, row: Any, usage: Array, event: int) -> tuple[Tensor, Tensor]:
        """Return ids of the prompts whose keys are nearest to the key's query, and their cosines.

        usage: the share of events that each was selected for. event: its number, for retrieval by chance.
        """
        c = self.config
        if not c.prompts:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=self.real)
        keys, query = p["prompt_keys"], torch.from_numpy(self.direction(row)).to(self.real)
        cosines = keys @ query / keys.norm(dim=1).clamp(min=_SMALLEST)
        merit = cosines.detach().double().numpy() - c.usage_balance * np.log(np.maximum(usage, 1e-6))
        if c.retrieval == "random":
            merit = draws(c.seed + 1, event * c.prompts, c.prompts)
        ids = torch.from_numpy(np.argsort(-merit, kind="stable")[: c.selected].copy())
        return ids, cosines[ids]

    def history(self, p: Parameters, row: Any) -> Chunks:
        """Spell out the events before the window, at least one, the chunk that is being filled included.

        They are constants, each the embedding of its type and of the middle of its gap's bin.
        """
        c = self.config
        older = int(row["events"]) - c.window
        used = min(-(-older // c.history_length), c.history)
        steps = torch.full((used,), c.history_length)
        if older % c.history_length:
            steps[older // c.history_length % c.history] = older % c.history_length
        kinds, bins = row["history"][:used].astype(np.int64).transpose(2, 0, 1)
        real = np.arange(c.history_length) < steps.numpy()[:, None]
        gaps = self.embedded(self.middles[np.where(real, bins, 0)].ravel(), np.zeros(bins.size))
        times = gaps[:, : c.time_width].view(*bins.shape, c.time_width)
        types = p["embedding"].detach().tanh()[torch.from_numpy(np.where(real, kinds, 0))]
        contents = torch.cat([types, times], -1) * torch.from_numpy(real)[..., None]
        summaries = contents.sum(1) / steps[:, None]
        return Chunks(summaries[None], contents[None], steps=steps[None])

    def recall(self, p: Parameters, row: Any, newest: Tensor) -> Tensor:
        """Return what the newest event and the mean of all find in the history, [features]."""
        c = self.config
        if not c.history or row["events"] <= c.window:
            return torch.zeros(c.history_features if c.history else 0, dtype=self.real)
        names = {name: p[f"recall_{name}"] for name, _ in self.attention.named_parameters()}
        asked = torch.cat([newest.detach(), torch.from_numpy(row["query"].copy()).to(self.real)])
        read: Tensor = torch.func.functional_call(
            self.attention, {**names, "positions": self.positions}, (asked[None, None], self.history(p, row))
        )
        return read[0, 0]

    @staticmethod
    def direction(row: Any) -> Array:
        """Return a key's query, the fading mean of its tokens, at length 1."""
        direction: Array = row["query"] / max(float(np.linalg.norm(row["query"])), _SMALLEST)
        return direction

    def prompts(self, p: Parameters, row: Any, ids: Tensor) -> Tensor:
        """Return keys and values of the selected prompts in every layer, [2, heads, layers, rows, width].

        A row is completed with the time at which the next event is expected, by the mean logarithm of gaps.
        """
        c = self.config
        rows = p["prompt_rows"].view(-1, max(c.rows, 1), 2, c.width)[ids].flatten(0, 1)  # [rows, 2, width]
        expected = self.embedded(np.exp(row["mean_log_gap"])[None], np.array([row["last_time"]]))
        inputs = torch.cat([rows, expected[:, None].expand(len(rows), 2, -1)], 2)
        weight = p["projection"].view(c.heads, c.layers, self.inputs, 3, c.width)[..., 1:, :]
        bias = p["projection_bias"].view(c.heads, c.layers, 3, c.width)[..., 1:, :]
        made: Tensor = (
            torch.einsum("rci,hlicd->chlrd", inputs, weight) + bias.permute(2, 0, 1, 3)[:, :, :, None]
        )
        return made

    def attend(
        self,
        p: Parameters,
        layer: int,
        own: Tensor,
        past: Tensor,
        prompts: Tensor,
        counts: NDArray[np.int64],
        ages: Array,
    ) -> Tensor:
        """Let rows attend to the events before them, to prompts, and to themselves, [heads, rows, width].

        own: their queries, keys and values, [heads, rows, 3 width]. past: keys and values of events,
        [2, heads, events, width]. counts: how many of the events each row sees. ages: seconds since each,
        [rows, events].
        """
        query, key, value = own.chunk(3, -1)
        scale = 1.0 / math.sqrt(self.config.width)
        scores = query @ past[0].transpose(-1, -2) * scale
        nearer = torch.from_numpy(counts[:, None] - 1 - np.arange(past.shape[2]))
        if self.config.recency:
            logs = torch.from_numpy(np.log1p(np.maximum(ages, 0.0))).to(self.real)
            scores = scores + p["recency"][:, layer][:, nearer.clamp(min=0)]
            scores = scores - p["decay"][:, layer, None, None] * logs
        scores = scores.masked_fill(nearer < 0, -math.inf)
        to_prompts = query @ prompts[0, :, layer].transpose(-1, -2) * scale
        to_itself = (query * key).sum(-1, keepdim=True) * scale
        shares = torch.cat([scores, to_prompts, to_itself], -1).softmax(-1)
        seen, few = past.shape[2], prompts.shape[3]
        attended = shares[..., :seen] @ past[1] + shares[..., seen : seen + few] @ prompts[1, :, layer]
        return attended + shares[..., -1:] * value

    def _projected(self, p: Parameters, layer: int, inputs: Tensor) -> Tensor:
        return inputs @ p["projection"][:, layer] + p["projection_bias"][:, layer, None]

    def encode(
        self,
        p: Parameters,
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
                attended = self.attend(p, layer, own, past, prompts, counts, ages)
                inputs = torch.cat([attended, rows[:, c.width :].expand(c.heads, -1, -1)], -1)
        newest = torch.stack(made, 2)
        return newest if older is None else torch.cat([older, newest], 3)

    def states(self, p: Parameters, past: Remembered, gaps: Array) -> Tensor:
        """Return the states at some gaps after a key's last event, [gaps, heads * width + time features]."""
        c, last = self.config, float(past.row["last_time"])
        at = self.embedded(gaps, last + gaps)
        ages = last + gaps[:, None] - past.times
        counts = np.full(len(gaps), len(past.times))
        state = torch.zeros(c.heads, len(gaps), c.width, dtype=self.real)
        for layer in range(c.layers if c.heads else 0):
            own = self._projected(p, layer, torch.cat([state, at.expand(c.heads, *at.shape)], -1))
            attended = self.attend(p, layer, own, past.past[:, :, layer], past.prompts, counts, ages)
            state = state + attended.tanh()
        return torch.cat([state.transpose(0, 1).flatten(1), at], 1)

    def hidden(self, p: Parameters, past: Remembered, gaps: Array) -> Tensor:
        """Return the decoder's hidden layer, [gaps, hidden], of states and what moments share."""
        counts = torch.from_numpy(np.log1p(past.row["counts"]["types"][:-1].astype(np.float64)))
        length = torch.tensor([math.log1p(float(past.row["events"])) / 4.0], dtype=self.real)
        shared = torch.cat([past.newest, counts.to(self.real), length, past.found])
        states = self.states(p, past, gaps)
        features = torch.cat([states, shared.expand(len(states), -1)], 1)
        hidden: Tensor = nn.functional.silu(features @ p["hidden"] + p["hidden_bias"])
        return hidden

    def gap_logits(self, p: Parameters, past: Remembered) -> Tensor:
        """Return what is added to the logarithm of the floor's bins of the next gap, [bins].

        A gap of each length ends at some hour of some day, and sines and cosines of that add to its logit.
        """
        hidden = self.hidden(p, past, np.zeros(1))[0]
        logits = hidden @ p["gap_out"] + p["gap_bias"]
        if self.config.calendar:
            strength = (hidden @ p["landing"] + p["landing_bias"]).view(-1, 2, 1)
            angles = 2.0 * math.pi * ((past.row["last_time"] + self.middles) / _PERIODS[:, None] % 1.0)
            ends = torch.from_numpy(np.stack([np.sin(angles), np.cos(angles)], 1) * self._blurs[:, None])
            logits = logits + (strength * ends.to(self.real)).sum((0, 1))
        return logits

    def type_logits(self, p: Parameters, past: Remembered, gaps: Array) -> Tensor:
        """Return what is added to the logarithm of the floor's types after some gaps, [gaps, types]."""
        return self.hidden(p, past, gaps) @ p["type_out"] + p["type_bias"]

    def rates(self, p: Parameters, past: Remembered, gaps: Array) -> Tensor:
        """Return λ_k after some gaps by the softplus, [gaps, types], events a second."""
        states = self.states(p, past, gaps)[:, : self.config.heads * self.config.width]
        sharpness = p["sharpness"].exp()
        scaled = sharpness * (states @ p["head"] + p["head_bias"])
        rates: Tensor = nn.functional.softplus(scaled, threshold=20.0) / sharpness / self.config.prior_gap
        return rates

    def integral(
        self,
        p: Parameters,
        past: Remembered,
        start: float,
        end: float,
        classes: int,
        draws: Array | None = None,
    ) -> Tensor:
        """Return the integral of λ, of the first `classes` types, between two gaps.

        draws: in [0, 1), one for each stratum of each cell, in place of Gauss's nodes: unbiased.
        """
        at, weight = self.nodes
        bounds = np.append(0.0, 10.0 ** np.arange(1 - NODES[0], 1))
        widths = np.diff(bounds) * (end - start)
        if draws is not None:
            at = (np.arange(NODES[1]) + draws.reshape(NODES[0], -1)) / NODES[1]
            weight = np.full(NODES[1], 1.0 / NODES[1])
        gaps = start + bounds[:-1, None] * (end - start) + at * widths[:, None]
        totals = self.rates(p, past, gaps.ravel())[:, :classes].sum(1)
        integral: Tensor = totals @ torch.from_numpy((widths[:, None] * weight).ravel()).to(self.real)
        return integral

    def log_survival(self, bins: Tensor, gap: float) -> Tensor:
        """Return the logarithm of the probability of a longer gap."""
        edges = self.edges
        at = int(np.searchsorted(edges, gap, side="right")) - 1
        if at == len(edges) - 1:
            return bins[at].log() - float(gap / edges[at] - 1.0)
        left = float((edges[at + 1] - gap) / (edges[at + 1] - edges[at]))
        shorter = bins[:at].sum() + bins[at] * (1.0 - left)
        if shorter.item() < 0.5:  # exact to the last digits of a small compensator
            return torch.log1p(-shorter)
        return (bins[at + 1 :].sum() + bins[at] * left).clamp(min=LEAST_SHARE).log()

    def quantiles(self, bins: Array) -> tuple[list[float], float]:
        """Return the 5, 25, 50, 75 and 95% quantiles of the next gap, and its mean, in seconds."""
        edges, cumulative = self.edges, np.cumsum(bins)
        found = []
        for wanted in (0.05, 0.25, 0.5, 0.75, 0.95):
            at = min(int(np.searchsorted(cumulative, wanted)), len(bins) - 1)
            share = (wanted - (cumulative[at] - bins[at])) / max(bins[at], 1e-30)
            if at == len(bins) - 1:
                found.append(float(edges[at] * (1.0 - math.log1p(-min(share, 0.999)))))
            else:
                found.append(float(edges[at] + share * (edges[at + 1] - edges[at])))
        return found, float(bins @ self.middles)
