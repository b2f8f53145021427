"""Regimes that come back: how soon the live PromptTPP is as good as it was, with and without its pool.

Keys follow a Hawkes process of eight types whose parameters change for all of them at once, A-B-A-C-A: what
follows what, how soon, and which types come by themselves. The process is known, so regret is known: by how
many nats an event the model is worse than the truth. A regime counts as learned again when the mean regret of
500 events is within 0.05 nats of the mean over the last quarter of its visit before (of this one, if it is
the first). Differences are paired by seed, which draws regimes, events and first weights; intervals are 95%.

    OMP_NUM_THREADS=1 python benchmarks/regimes.py                     # five minutes on one core
    python benchmarks/regimes.py --events 20000 --figure regimes.png
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from script import run
from tables import markdown, show

from streamwise.agents import EVENT_MODELS
from streamwise.agents.event_model import Score
from streamwise.runs.figures import MUTED, STYLE, finish_axes, line_style
from streamwise.runs.statistics import bootstrap_interval, running_mean
from streamwise.streams.point_processes import DriftProcess, HawkesProcess
from streamwise.streams.synthetic import SyntheticSource

Array = NDArray[np.float64]

TYPES, KEYS, VISITS = 8, 100, "ABACA"
RATE = 1.0 / 60.0  # events of a key a second, in every regime
SCALES = (5.0, 300.0)  # seconds
START = 1.6e9
WINDOW, CLOSE = 500, 0.05  # events, nats


@dataclass(frozen=True)
class Method:
    """A model and the settings that are not the defaults."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "prompt-tpp"
    drawn: bool = True


NO_POOL = "no pool"
FLOORS = [Method("counts", model="counts"), Method("hawkes", model="hawkes")]
METHODS = [
    Method("pool"),
    Method(NO_POOL, {"prompts": 0}),
    Method("random retrieval", {"retrieval": "random"}),
    Method("slow pool of 32", {"prompts": 32, "refresh_every": 16, "usage_balance": 0.1}, drawn=False),
    Method("re-use after 2,000", {"reuse_after": 2_000.0}, drawn=False),
    Method("drift boost 4", {"drift_boost": 4.0}),
    Method("groups of 8", {"group": 8}, drawn=False),
]


@dataclass(frozen=True)
class Options:
    """Measure how soon regimes that come back are known again."""

    events: int = 5_000
    """Of a visit, on average."""
    seeds: int = 5
    """Seeds 0, 1, ..."""
    floors: tuple[str, ...] = ("both", "none")
    """What the network is added to."""
    window: int = 32
    """Newest events of a key that are attended to."""
    out: Path | None = None
    """Write the table here, too, as Markdown."""
    figure: Path | None = None
    """Draw regret over the stream as this PNG."""


class Stream(NamedTuple):
    """Events as columns, the log-likelihood of each under the truth, and where visits begin and end."""

    times: list[float]
    types: list[str]
    keys: list[str]
    truth: Array
    borders: list[int]


def regime(generator: np.random.Generator, branching: float, fast: float) -> HawkesProcess:
    """Draw a process in which every type is followed by one other in most cases.

    branching: children of an event. fast: the share of them that come on the shorter time scale.
    """
    successors = np.eye(TYPES)[generator.permutation(TYPES)]
    children = branching * (0.9 * successors + 0.1 / TYPES)
    excitation = np.stack([fast * children, (1.0 - fast) * children])
    base = RATE * (1.0 - branching) * generator.dirichlet(np.ones(TYPES))
    return HawkesProcess(base, excitation, SCALES)


def process(seed: int, events: int) -> DriftProcess:
    generator = np.random.default_rng([seed, 17])
    regimes = regime(generator, 0.8, 0.8), regime(generator, 0.7, 0.3), regime(generator, 0.5, 0.6)
    return DriftProcess(regimes, "recurring", events / (KEYS * RATE), "seconds", START)


def draw(seed: int, events: int) -> Stream:
    truth = process(seed, events)
    source = SyntheticSource(truth, keys=KEYS, events=0, seed=seed, start=START)
    end = START + len(VISITS) * truth.period
    times: list[float] = []
    types: list[str] = []
    keys: list[str] = []
    while not times or times[-1] < end:
        (records,) = source.poll(4096, timeout=0.0, paused=set())
        for time, event_type, key, _ in records.values:
            times.append(time)
            types.append(event_type)
            keys.append(key)
    count = int(np.searchsorted(times, end))
    del times[count:], types[count:], keys[count:]
    borders = np.searchsorted(times, START + truth.period * np.arange(len(VISITS) + 1)).tolist()
    return Stream(times, types, keys, true_log_likelihoods(truth, times, types, keys), borders)


def true_log_likelihoods(truth: DriftProcess, times: list[float], types: list[str], keys: list[str]) -> Array:
    """Return the log-likelihood of every event under the process, given its key's past, [events]."""
    scales = truth.regimes[0].time_scales
    bases = np.array([process.base for process in truth.regimes])
    jumps = np.array([process.excitation for process in truth.regimes]) / scales[:, None, None]
    borders = truth.start + truth.period * np.arange(len(VISITS) + 1)
    order = [int(truth.regime(0.5 * (a + b), 0.0)) for a, b in pairwise(borders)]
    passed = np.append(0.0, np.cumsum(bases.sum(1)[order] * truth.period))  # integral of the base at borders
    base_until = np.interp(times, borders, passed)
    regimes = np.array(order)[np.searchsorted(borders, times, side="right") - 1]
    states = np.zeros((KEYS, len(scales), TYPES))
    last_times, base_before = np.full(KEYS, truth.start), np.zeros(KEYS)
    found = np.empty(len(times))
    for i, (time, event_type, key) in enumerate(zip(times, map(int, types), map(int, keys), strict=True)):
        decays = np.exp((last_times[key] - time) / scales)
        compensator = base_until[i] - base_before[key] + (scales * (1.0 - decays)) @ states[key].sum(1)
        states[key] *= decays[:, None]
        found[i] = np.log(bases[regimes[i], event_type] + states[key, :, event_type].sum()) - compensator
        states[key] += jumps[regimes[i], :, event_type]
        last_times[key], base_before[key] = time, base_until[i]
    return found


def regret(method: Method, stream: Stream, seed: int, **settings: Any) -> Array:
    """Return by how much every event is more likely under the truth, [events]; NaN for a key's first."""
    model_class = EVENT_MODELS[method.model]
    if method.model == "prompt-tpp":
        settings = {"seed": seed, **settings, **method.settings}
    else:
        settings = method.settings
    model = model_class(model_class.Config(**settings))
    rows = model.learn_many(stream.times, stream.types, stream.keys)
    model.close()
    columns = dict(zip(Score._fields, rows.T, strict=False))
    return np.asarray(stream.truth - columns["time_log_density"] - columns["type_log_probability"])


class Visits(NamedTuple):
    """What a method loses, in nats an event, and how many events it takes to recover; means over visits."""

    settled: float  # in the last quarter of a visit
    new: float  # in the first 1,000 events of a regime that was never there
    back: float  # in the first 1,000 events of a regime that is back
    back_longer: float  # and in the first 5,000
    new_events: float
    back_events: float


def by_visit(regrets: Array, borders: list[int]) -> Visits:
    settled: dict[str, float] = {}
    found: dict[str, list[tuple[float, float, float]]] = {"new": [], "back": []}
    ends = []
    for name, start, end in zip(VISITS, borders[:-1], borders[1:], strict=True):
        visit = regrets[start:end]
        last = float(np.nanmean(visit[-(len(visit) // 4) :]))
        ends.append(last)
        reached = running_mean(visit, WINDOW)[WINDOW - 1 :] <= settled.get(name, last) + CLOSE
        events = WINDOW + int(np.argmax(reached)) if reached.any() else len(visit)
        if start > 0:  # nothing can be known at the very beginning
            kind = "back" if name in settled else "new"
            found[kind].append(
                (float(np.nanmean(visit[:1000])), float(np.nanmean(visit[:5000])), float(events))
            )
        settled[name] = last
    new, back = (np.mean(found[kind], axis=0) for kind in ("new", "back"))
    return Visits(float(np.mean(ends)), new[0], back[0], back[1], new[2], back[2])


HEADINGS = (
    "floor", "model", "settled", "new regime: first 1,000", "events to recover", "regime back: first 1,000",
    "first 5,000", "events to recover", "first 5,000 against no pool [95%]",
)  # fmt: skip


def rows_of(regrets: dict[tuple[str, str], list[Array]], streams: list[Stream]) -> list[list[str]]:
    visits = {
        case: np.array([by_visit(r, stream.borders) for r, stream in zip(found, streams, strict=True)])
        for case, found in regrets.items()
    }
    rows = []
    for (floor, name), values in visits.items():
        mean = Visits(*values.mean(axis=0))
        against = ""
        if (floor, NO_POOL) in visits and name != NO_POOL:
            leads = (values - visits[floor, NO_POOL])[:, Visits._fields.index("back_longer")]
            against = f"{leads.mean():+.3f}"
            if len(leads) > 1:
                low, high = bootstrap_interval(leads, np.mean)
                against += f" [{low:+.3f}, {high:+.3f}]"
        rows.append([
            floor, name, f"{mean.settled:.3f}", f"{mean.new:.3f}", f"{mean.new_events:,.0f}",
            f"{mean.back:.3f}", f"{mean.back_longer:.3f}", f"{mean.back_events:,.0f}", against,
        ])  # fmt: skip
    return rows


def draw_figure(
    path: Path, regrets: dict[tuple[str, str], list[Array]], streams: list[Stream], floors: tuple[str, ...]
) -> None:
    """Draw regret over the stream, averaged over seeds; visits are stretched to the same length."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(9, 0.5 + 2.7 * len(floors)), layout="constrained")
        length = int(np.mean([stream.borders[-1] for stream in streams]) / len(VISITS))
        for place, floor in enumerate(floors):
            axes = figure.add_subplot(len(floors), 1, place + 1)
            names = [method.name for method in METHODS if method.drawn]
            for at, name in enumerate([*names, "counts", "hawkes"]):
                found = regrets[floor if name in names else "", name]
                curves = [
                    stretched(smoothed(values), stream.borders, length)
                    for values, stream in zip(found, streams, strict=True)
                ]
                width = {"linewidth": 1.3} if name in names else {"linewidth": 1.0, "alpha": 0.7}
                events = np.linspace(0, len(VISITS) * length - 1, 500).astype(int)
                axes.plot(events, np.mean(curves, axis=0)[events], label=name, **line_style(at), **width)
            for visit, name in enumerate(VISITS):
                if visit % 2:
                    axes.axvspan(visit * length, (visit + 1) * length, color=MUTED, alpha=0.08, linewidth=0)
                centre = (visit + 0.5) * length
                axes.text(centre, 0.97, name, ha="center", va="top", transform=axes.get_xaxis_transform())
            finish_axes(axes, across="events" if place == len(floors) - 1 else "")
            axes.set_xlim(0, len(VISITS) * length)
            axes.set_ylim(0.0, 1.0)
            axes.set_ylabel("nats an event below the truth")
            what = "nothing" if floor == "none" else "counts and hawkes" if floor == "both" else floor
            axes.set_title(f"the network is added to {what}")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path, dpi=100, facecolor="white", metadata={"Software": "streamwise"})


def smoothed(regrets: Array) -> Array:
    """Return the running mean of 500 events, first events of keys left out."""
    return running_mean(np.where(np.isnan(regrets), np.nanmean(regrets), regrets), WINDOW)


def stretched(curve: Array, borders: list[int], length: int) -> Array:
    """Return a curve in which every visit is `length` events long."""
    visits = pairwise(borders)
    return np.concatenate([curve[np.linspace(start, end - 1, length).astype(int)] for start, end in visits])


def main(options: Options) -> None:
    torch.set_num_threads(1)
    streams = [draw(seed, options.events) for seed in range(options.seeds)]
    cases = [("", method) for method in FLOORS]
    cases += [(floor, method) for floor in options.floors for method in METHODS]
    regrets: dict[tuple[str, str], list[Array]] = {(floor, method.name): [] for floor, method in cases}
    work = [(seed, floor, method) for seed in range(options.seeds) for floor, method in cases]
    for seed, floor, method in track(work, console=Console(stderr=True)):
        settings = {"floor": floor, "window": options.window} if floor else {}
        regrets[floor, method.name].append(regret(method, streams[seed], seed, **settings))
    rows = rows_of(regrets, streams)
    table = Table(
        title=f"Nats an event below the truth, {VISITS}, {options.events:,} events a visit of {KEYS} keys, "
        f"seeds: {options.seeds}"
    )
    for place, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if place < 2 else "right")
    for row in rows:
        table.add_row(*row)
    show(table)
    if options.out:
        options.out.write_text(f"{markdown(table)}\n")
    if options.figure:
        draw_figure(options.figure, regrets, streams, options.floors)


if __name__ == "__main__":
    run(main, Options, __doc__)
