"""PromptTPP, live: attention to what a key did, a pool of prompts, one step after the other, for ever.

Every event is scored with what was known before it, trained on, and appended. A key keeps a ring of its
newest events. Each event is a token, the embedding of its type and of the gap before it; layers of
attention turn the tokens into keys and values, which stay where they are. A moment in time is a query of
them:

    h ← 0;   for each layer:  y = [h; z(t)],  h ← h + tanh(attention of W_q y to events, prompts and itself)

The prompts are retrieved from a pool by what the key's newest tokens have in common
(memory/prompt_pool.py). With history=M, events that leave the ring stay, M chunks of them, as types and bins
of gaps, and what the newest event and the mean of all find there by chunk attention (memory/hcam.py) is
shown to the decoder. Contents are spelled out anew with the present embeddings, so none is stale.

decoder="bins": from the state right after the last event come logits for bins of the next gap, from the
state at the event's time logits for its type. They are added to the logarithms of what two statistical
models say, `counts` and `hawkes`, so that the network starts as good as they are and learns what they miss.
Within a bin all gaps are equally likely, so density and compensator have closed forms. decoder="intensity":
the published softplus of a linear map, λ_k(t), whose compensator is summed at nodes spaced by magnitude.

Departures from the published model: time is told by the logarithm of gaps and by hour and weekday, not by
sines of absolute times; scores of attention have learned offsets for how recent an event is; one retrieval
for all heads and layers, from the key's own past; silence is charged. One gradient step is made of `group`
events, of which any may be of the same key: each is scored before anything is learned from it.

What is kept lies as agents/prompt_state.py says, and agents/prompt_updates.py moves the weights.

Sources: Xue et al. (2023), arXiv:2310.04993, for the prompts; Yang et al. (2022), arXiv:2201.00044, for the
attention.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamwise.agents.event_merge import Layout, Part
from streamwise.agents.event_model import Array, EventModel, Score
from streamwise.agents.generator import draws, mix
from streamwise.agents.learner import State
from streamwise.agents.prompt_floors import Floors
from streamwise.agents.prompt_network import LEAST_SHARE, NODES, PromptNetwork, Remembered
from streamwise.agents.prompt_settings import PromptTPPConfig
from streamwise.agents.prompt_state import layouts, native_spec, new_arrays, row_type
from streamwise.agents.prompt_updates import Counters, Updates

__all__ = ["PromptTPP"]

_GRID = 1024  # of offsets at which an intensity is integrated for a prediction
_FLOOR = 1e-9  # of an intensity in units of the prior gap
_WATCHED = 256


class PromptTPP(EventModel):
    """The live model. Attributes: `weights` [parameters] and their gradients and moments, in `arrays`."""

    name = "prompt-tpp"
    Config = PromptTPPConfig
    config: PromptTPPConfig
    extras = (
        "error_at_prediction", "top3_error", "confidence", "key_events", "log_gap_square", "width_50_seconds",
        "width_90_seconds", "counts_log_likelihood", "counts_time_log_likelihood", "counts_type_log_loss",
        "counts_type_error", "hawkes_log_likelihood", "hawkes_time_log_likelihood", "hawkes_type_log_loss",
        "hawkes_type_error", "repeat_last_type_error", "at_arrival_time_log_likelihood",
    )  # fmt: skip

    def __init__(self, config: PromptTPPConfig | None = None, **options: Any) -> None:
        config = config or PromptTPPConfig()
        self.floors = Floors(config.floor, config.types, config.prior_gap, config.memory)
        self.counts, self.hawkes = self.floors.models
        self.watched: list[str | None] = [None] * _WATCHED  # keys whose silence is going to be charged
        self.network = PromptNetwork(config, self.counts.edges, self.counts.middles)
        super().__init__(config, **options)

    def _row_type(self) -> np.dtype[Any]:
        return row_type(self.config, self.network, self.floors)

    def _make_arrays(self) -> None:
        self.counts.seen, self.hawkes.seen = self.seen, self.seen
        self.arrays |= new_arrays(self.config, self.network, self.floors)
        self.updates = Updates(self.config, self.network, self.arrays)

    def _native_spec(self) -> tuple[str, dict[str, Any]]:
        return "PromptTPPModel", native_spec(self.config, self.network, self.floors, self.arrays)

    # Several models.

    def layouts(self) -> dict[str, Layout]:
        """Return that weights and their moments are averaged, and the rest as the floors' models have it."""
        return layouts(self.config, self.network, self.floors)

    def common(self) -> dict[str, Array]:
        """Return `arrays` in units that are the same for all models of these settings."""
        of_hawkes = {f"{self.hawkes.name}.{name}": array for name, array in self.hawkes.common().items()}
        return {**self.arrays, **{name: array for name, array in of_hawkes.items() if name in self.arrays}}

    def settle(self, parts: Sequence[Part], heaviest: int) -> None:
        """Put counters right, and tell the native kernel that parameters have changed."""
        self.hawkes.settle(parts, heaviest)
        if parts:
            models = [part.model for part in parts]
            counters = [model._progress for model in models if isinstance(model, PromptTPP)]
            shares = [part.share for part in parts]
            for name in ("in_group", "silence"):
                self._progress[name] = sum(s * c[name] for s, c in zip(shares, counters, strict=True))
            self._progress["in_group"] = float(round(self._progress["in_group"]))
            self._progress["serials"] = max(counter["serials"] for counter in counters)
            first = models[heaviest]
            assert isinstance(first, PromptTPP)
            self.watched = list(first.watched)  # their keys come along
        if self.native is not None:
            self.native.refresh()

    def renumber_rows(self, rows: NDArray[Any], numbering: NDArray[np.int64]) -> None:
        """Give the types in the states of keys other numbers."""
        super().renumber_rows(rows, numbering)
        rows["kinds"] = numbering[rows["kinds"]]
        rows["history"][..., 0] = numbering[rows["history"][..., 0]]
        for model in self.floors.models:
            model.renumber_rows(rows[model.name], numbering)

    def receive_rows(self, rows: NDArray[Any]) -> None:
        """Give keys serial numbers of this model: what its cache has of others of these is not theirs."""
        first = int(self._progress["serials"]) + 1
        rows["serial"] = np.where(rows["serial"] > 0, first + np.arange(len(rows)), 0)
        self._progress["serials"] = float(first + len(rows) - 1)

    # What a key leaves behind.

    def _remember(self, p: Mapping[str, Tensor], row: Any, *, fresh: bool) -> Remembered:
        """Return what the events of a key left behind. fresh: project all of them now, and touch no cache."""
        tokens, times = self.network.tokens(p, row)
        usage, event = self.arrays["usage"][:, 0], int(self._progress["events"])
        ids, cosines = self.network.retrieve(p, row, usage, event)
        prompts = self.network.prompts(p, row, ids)
        if fresh or not self.config.heads:
            past = self.network.encode(p, tokens, times, prompts)
        else:
            cache = self._cached(p, row, tokens.detach(), times, prompts.detach())
            at = np.arange(int(row["events"]) - len(tokens), int(row["events"])) % self.config.window
            older = torch.from_numpy(cache[:, :, :, at[:-1]].transpose(2, 0, 1, 3, 4))
            past = self.network.encode(p, tokens, times, prompts, older)
            cache[:, :, :, at[-1]] = past[:, :, :, -1].detach().permute(1, 2, 0, 3).numpy()
        found = self.network.recall(p, row, tokens[-1])
        return Remembered(past, times, tokens[-1], ids, cosines, prompts, found, row)

    def _cached(self, p: Any, row: Any, tokens: Tensor, times: Array, prompts: Tensor) -> NDArray[Any]:
        """Return the place of a key's keys and values, [heads, layers, 2, window, width].

        All but the newest are there. Eight keys share the places of one set, of which the least recently
        used goes to whoever has none.
        """
        c, progress = self.config, self._progress
        serial, events = int(row["serial"]), int(row["events"])
        first = mix(serial) % (c.hot_keys // 8) * 8
        entries = self.arrays["cached"]
        of_set = entries[first : first + 8]
        mine = np.flatnonzero(of_set[:, 0] == serial)
        place = first + int(mine[0] if len(mine) else np.argmin(of_set[:, 1]))
        entry = entries[place]
        cache: NDArray[Any] = self.arrays["cache"][place]
        progress["lookups"] += 1.0
        if len(mine) and events - entry[3] <= 1 and progress["updates"] - entry[2] <= c.cache_age:
            progress["hits"] += 1.0
        else:
            entry[0], entry[2] = serial, int(progress["updates"])
            progress["rebuilds"] += float(len(tokens) > 1)
            at = np.arange(events - len(tokens), events - 1) % c.window
            with torch.no_grad():
                made = self.network.encode(p, tokens[:-1], times[:-1], prompts) if len(at) else None
            if made is not None:
                cache[:, :, :, at] = made.permute(1, 2, 0, 3, 4).numpy()
        entry[1], entry[3] = int(progress["lookups"]), events
        return cache

    # The decoders.

    def _bins(self, p: Mapping[str, Tensor], past: Remembered) -> Tensor:
        """Return the probability of each bin of the next gap, [bins]."""
        floor = torch.from_numpy(self.floors.gaps(past.row)).log().to(self.network.real)
        return (floor + self.network.gap_logits(p, past)).softmax(0)

    def _type_shares(self, p: Mapping[str, Tensor], past: Remembered, gaps: Array) -> Tensor:
        """Return the probability of each type after some gaps, [gaps, classes]."""
        if self.config.decoder == "intensity":
            rates = self.network.rates(p, past, gaps)[:, : self.classes]
            return rates / rates.sum(1, keepdim=True)
        floor = torch.from_numpy(self.floors.types(past.row, gaps)).log().to(self.network.real)
        return (floor + self.network.type_logits(p, past, gaps)[:, : self.classes]).softmax(1)

    def learn_many(self, times: Sequence[float], types: Sequence[str], keys: Sequence[str]) -> Array:
        """Score and learn events one after the other; return float64 [events, 7 + extras].

        Every `silence_every` events some key pays for its silence, wherever the calls begin and end.
        """
        every = self.config.silence_every
        if not every:
            return super().learn_many(times, types, keys)
        parts, start = [np.empty((0, len(Score._fields) + len(self.extras)))], 0
        while start < len(times):
            here = slice(start, start + every - int(self._progress["events"]) % every)
            parts.append(super().learn_many(times[here], types[here], keys[here]))
            start += len(parts[-1])
            if self._progress["events"] % every == 0.0:
                self._visit(times[start - 1], keys[start - 1])
        return np.concatenate(parts)

    # Learning, as the formulas are written; the native kernel does the same.

    def _learn_event(self, row: Any, time: float, event_type: int) -> list[float]:
        progress, extras = self._progress, dict.fromkeys(self.extras, math.nan)
        if row["events"] == 0.0:
            progress["serials"] += 1.0
            row["serial"] = int(progress["serials"])
            shares = self.floors.types(row, np.zeros(1))[0]
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
            p = self.network.parameters(weights)
            past = self._remember(p, row, fresh=self.config.gradients == "exact")
            score, described, loss = self._score_event(
                p, past, gap, event_type, self.floors.forecast(row["issued"])
            )
            extras |= described
            self.updates.learn(weights, past, loss)
            self.updates.watch(-described["at_arrival_time_log_likelihood"] - score.type_log_probability)
            progress["silence"] -= float(row["silence"])
            self.floors.mix(row, gap, event_type, progress["events"])
            extras["repeat_last_type_error"] = float(event_type != row["last_type"])
        for model in self.floors.models:
            part = row[model.name]
            by = model._score(part, time, event_type)
            model._learn(part, time, event_type)
            wrong = float(by.predicted_type != event_type)
            issued, type_part = row["issued"][1 if model is self.counts else 2], by.type_log_probability
            time_part = math.nan if row["events"] == 0.0 else self.floors.log_density(issued, by.gap)
            parts = (time_part + type_part, time_part, -type_part, wrong)
            names = ("log_likelihood", "time_log_likelihood", "type_log_loss", "type_error")
            extras |= {f"{model.name}_{name}": value for name, value in zip(names, parts, strict=True)}
        progress["events"] += 1.0
        self._put(row, time, event_type)
        self.seen[0] = max(self.seen[0], event_type + 1)
        self._issue(row)
        return [*score, *extras.values()]

    def _score_event(
        self, p: Mapping[str, Tensor], past: Remembered, gap: float, event_type: int, issued: Array | None
    ) -> tuple[Score, dict[str, float], Tensor]:
        """Return the score of an event, what else is recorded, and its loss.

        issued: the probability of each bin of the gap, as was said right after the key's last event. Without
        it, the present parameters are asked.
        """
        row, charged = past.row, float(past.row["charged"])
        bins = self._bins(p, past) if self.config.decoder == "bins" else self._binned_intensity(p, past)
        now = bins.detach().double().numpy()
        if self.config.decoder == "intensity":
            issued = now
        elif issued is None:
            issued = self.floors.forecast_now(now, row)
        shares = self._type_shares(p, past, np.array([gap]))[0]
        type_loss = -shares[event_type].clamp(min=LEAST_SHARE).log()
        if self.config.decoder == "bins":
            log_density, at_arrival = self.floors.log_density(issued, gap), self.floors.log_density(now, gap)
            compensator = -self.network.log_survival(torch.from_numpy(issued.astype(np.float64)), gap).item()
            at = int(np.searchsorted(self.counts.edges, gap, side="right")) - 1
            loss = -bins[at].log() + type_loss
            if charged > 0.0:
                loss = loss + self.network.log_survival(bins, charged)
        else:
            rates = self.network.rates(p, past, np.array([gap]))[0, : self.classes]
            least = _FLOOR / self.config.prior_gap
            self._progress["floored"] += float(rates.sum().item() < least)
            compensator = self.network.integral(p, past, 0.0, gap, self.classes).item()
            log_density = at_arrival = rates.sum().clamp(min=least).log().item() - compensator
            loss = self.network.integral(p, past, charged, gap, self.classes, self._draws())
            loss = loss - rates[event_type].clamp(min=least).log()
        quantiles, predicted_gap = self.network.quantiles(issued.astype(np.float64))
        with torch.no_grad():  # the quartiles stand for the gap that is not known yet
            marginal = self._type_shares(p, past, np.array(quantiles[1:4])).double().mean(0)
        score = Score(
            gap=gap,
            time_log_density=log_density,
            type_log_probability=-type_loss.item(),
            compensator=compensator,
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
            "width_50_seconds": quantiles[3] - quantiles[1],
            "width_90_seconds": quantiles[4] - quantiles[0],
            "at_arrival_time_log_likelihood": at_arrival,
        }
        return score, extras, loss

    def _issue(self, row: Any) -> None:
        """Say what is expected of the gap that begins now, to be scored when it ends."""
        row["issued"][1:] = self.floors.say(row)
        if self.config.decoder == "bins":
            p = self.network.parameters(torch.from_numpy(self.arrays["weights"]))
            with torch.no_grad():
                past = self._remember(p, row, fresh=self.config.gradients == "exact")
                row["issued"][0] = self._bins(p, past).numpy()

    def _total(self, p: Mapping[str, Tensor], past: Remembered, gaps: Array) -> Array:
        total: Array = self.network.rates(p, past, gaps)[:, : self.classes].sum(1).double().numpy()
        return total

    def _binned_intensity(self, p: Mapping[str, Tensor], past: Remembered) -> Tensor:
        """Return the probability of each bin of the gap, from the intensity in its middle."""
        edges = self.counts.edges
        with torch.no_grad():
            rates = self._total(p, past, 0.5 * (edges[:-1] + edges[1:]))
        bins, survival, single = np.zeros(len(edges)), 1.0, self.arrays["weights"].dtype.type
        for b, rise in enumerate(np.diff(edges) * rates):
            if survival < 1e-6:
                break
            bins[b] = float(single(-survival * math.expm1(-rise)))
            survival -= bins[b]
        else:
            b = len(edges) - 1
        bins[b] = survival
        return torch.from_numpy(bins).to(self.network.real)

    def _draws(self) -> Array:
        """Return one draw in [0, 1) for every node, by the seed and the number of the event."""
        start = int(self._progress["events"] + self._progress["charged"]) * 64
        return draws(self.config.seed, start, math.prod(NODES))

    # Silence.

    def _visit(self, now: float, key: str) -> None:
        """Let the key that was put down longest ago pay for its silence, and put down this one."""
        every = self.config.silence_every
        place = int(self._progress["events"]) // every % len(self.watched)
        name, self.watched[place] = self.watched[place], key
        if name is None:
            return
        slot = int(self.keys.slots([name])[0])
        if self.native is not None:
            self.native.charge(now, slot, True)
        else:
            self._charge(self.keys.rows[slot], now, train=True)

    def _charge(self, row: Any, now: float, *, train: bool) -> None:
        silent, charged = now - float(row["last_time"]), float(row["charged"])
        if row["events"] == 0.0 or silent <= charged:
            return
        weights = torch.from_numpy(self.arrays["weights"]).requires_grad_()
        p = self.network.parameters(weights)
        past = self._remember(p, row, fresh=self.config.gradients == "exact")
        if self.config.decoder == "bins":
            bins = self._bins(p, past)
            loss = self.network.log_survival(bins, charged) - self.network.log_survival(bins, silent)
            silence = -loss.item()
        else:
            silence = -self.network.integral(p, past, charged, silent, self.classes).item()
        self._progress["charged"] += 1.0
        self._progress["silence"] += silence
        row["silence"] += silence
        if train:
            if self.config.decoder == "intensity":
                loss = self.network.integral(p, past, charged, silent, self.classes, self._draws())
            self.updates.learn(weights, past, loss)
        row["charged"] = silent

    def charge_silence(self, now: float) -> float:
        """Let every key in memory pay for its silence until `now`, and learn nothing from it.

        Returns the log-likelihood of all silences that no event has ended, in nats: the sum of the scores
        of a stream and this is the log-likelihood of the stream until `now`.
        """
        for slot in range(self.keys.in_memory):
            if self.native is not None:
                self.native.charge(now, slot, False)
            else:
                self._charge(self.keys.rows[slot], now, train=False)
        return float(self._progress["silence"])

    # Prediction, and what it needs: keys and values are made anew, with the present weights.

    def _score(self, row: Any, time: float, event_type: int) -> Score:
        p = self.network.parameters(torch.from_numpy(self.arrays["weights"]))
        with torch.no_grad():
            past = self._remember(p, row, fresh=True)
            return self._score_event(p, past, time - float(row["last_time"]), event_type, None)[0]

    def _advance(self, row: Any, time: float, event_type: int) -> None:
        p = self.network.parameters(torch.from_numpy(self.arrays["weights"]))
        at, gap, first = int(row["events"]) % self.config.window, 0.0, row["events"] == 0.0
        if not first:
            gap = time - float(row["last_time"])
            log_gap = math.log(gap + 1e-3)
            mean = float(row["mean_log_gap"])
            row["mean_log_gap"] = log_gap if row["events"] == 1.0 else 0.8 * mean + 0.2 * log_gap
        kind = p["embedding"][event_type].tanh()
        token = (
            torch.cat([kind, self.network.embedded(np.array([gap]), np.array([time]))[0]]).double().numpy()
        )
        row["query"][:] = token if first else 0.9 * row["query"] + 0.1 * token
        older = int(row["events"]) - self.config.window
        if self.config.history and older >= 0:  # the oldest event leaves the window
            bin_of_gap = self.counts._bins(row["gaps"][at : at + 1])[0]
            row["history"].reshape(-1, 2)[older % (row["history"].size // 2)] = row["kinds"][at], bin_of_gap
        row["times"][at], row["gaps"][at], row["kinds"][at] = time, gap, event_type
        row["charged"] = row["silence"] = 0.0
        for model in self.floors.models:
            model._put(row[model.name], time, event_type)

    def _intensities(self, row: Any, gaps: Array) -> tuple[Array, Array]:
        p = self.network.parameters(torch.from_numpy(self.arrays["weights"]))
        with torch.no_grad():
            past = self._remember(p, row, fresh=True)
            if self.config.decoder == "bins":
                said = self.floors.forecast_now(self._bins(p, past).double().numpy(), row)
                log_density, compensator = self.counts._density(said, gaps)
                shares = self._type_shares(p, past, gaps).double().numpy()
                return np.exp(log_density + compensator)[:, None] * shares, compensator
            rates = self.network.rates(p, past, gaps)[:, : self.classes].double().numpy()
            at = np.concatenate([[0.0], np.geomspace(1e-4, max(float(gaps.max()), 1e-3), _GRID)])
            totals = self._total(p, past, at)
            compensator = np.append(0.0, np.cumsum(0.5 * (totals[1:] + totals[:-1]) * np.diff(at)))
            return rates, np.interp(gaps, at, compensator)

    def _gap_of(self, row: Any, wanted: float) -> float:
        at = np.concatenate([self.counts.edges[:-1], np.geomspace(self.counts.edges[-1], 1e10, 64)])
        compensator = self._intensities(row, at)[1]
        if self.config.decoder == "bins":  # survival is linear within a bin
            return float(np.interp(-math.exp(-wanted), -np.exp(-compensator), at))
        return float(np.interp(wanted, compensator, at))

    @property
    def _progress(self) -> Counters:
        return Counters(self.arrays["progress"])

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

    def state_dict(self) -> State:
        """Return everything: what every event model has, parameters, moments, the open group, the cache."""
        names = np.frombuffer(json.dumps(self.watched).encode(), np.uint8)
        return {**super().state_dict(), "watched": torch.from_numpy(names.copy())}

    def load_state_dict(self, state: State) -> None:  # type: ignore[override]  # a narrower type says what it is
        """Go on from a state that `state_dict` gave."""
        super().load_state_dict(state)
        self.watched = json.loads(bytes(state["watched"].numpy()))
        if self.native is not None:
            self.native.refresh()

    def close(self) -> None:
        """Close the files of the keys."""
        self.floors.close()
        super().close()
