"""The pictures of docs/prompt-tpp.md: what a live PromptTPP that has read a stream says and does.

Intensities and the choice of prompts are those of the recurring regimes of benchmarks/regimes.py, whose truth
is known; attention, gaps and calibration those of a log.

    OMP_NUM_THREADS=1 python benchmarks/prompt_figures.py --source file:events.csv.gz --out docs/images
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import torch
from event_ablations import Log, read
from matplotlib.figure import Figure
from numpy.typing import NDArray
from regimes import START, VISITS, draw, process
from script import run

from streamwise.agents import Counts, Hawkes, PromptTPP, PromptTPPConfig
from streamwise.agents.event_model import Score
from streamwise.runs.figures import COLOURS, INK, MUTED, STYLE, finish_axes
from streamwise.streams import UsageError

Array = NDArray[np.float64]

EVENTS = 10_000  # of a visit of a regime
LOOK_EVERY = 250  # events, at the use of prompts
BALANCE = 0.3
PIT_BINS = 20


@dataclass(frozen=True)
class Options:
    """Draw the pictures of the manual's page about the live PromptTPP."""

    source: str = os.environ.get("STREAMWISE_EVENTS", "file:events.csv.gz")
    """A log of events with calendar times, as `streamwise ingest` takes it."""
    out: Path = Path("docs/images")
    """Folder of the PNGs, prompt-*.png."""
    only: str = ""
    """Draw the pictures whose name contains this text."""


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr]  # there is one
        yield figure
        figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": "streamwise"})
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def follow(model: PromptTPP, log: Log, looks: dict[int, Callable[[], None]]) -> Array:
    """Learn from a log and look at the model after some numbers of events; return the scores."""
    rows, at = [], 0
    for stop in sorted({*looks, len(log.times)}):
        rows.append(model.learn_many(*(column[at:stop] for column in log)))
        at = stop
        if stop in looks:
            looks[stop]()
    return np.concatenate(rows)


def cells(values: Array) -> Array:
    """Return the borders of cells around evenly spaced values."""
    step = values[1] - values[0]
    return np.append(values - step, values[-1])


# ---- The stream of regimes ----


def regimes(out: Path, only: str) -> None:
    stream, truth = draw(0, EVENTS), process(0, EVENTS)
    log = Log(stream.times, stream.types, stream.keys)
    model = PromptTPP(PromptTPPConfig())
    key, chosen = a_burst(log)
    curves: list[tuple[Array, Array]] = []  # times and intensities, [times, types], after each event
    nearest: list[Array] = []
    balanced: list[Array] = []

    def look_ahead(event: int, end: float) -> Callable[[], None]:
        def look() -> None:
            gaps = np.append(0.0, np.geomspace(0.01, end - log.times[event], 400))
            curves.append((log.times[event] + gaps, model._intensities(model.keys.find(key), gaps)[0]))

        return look

    stops = range(LOOK_EVERY, len(log.times), LOOK_EVERY)
    looks: dict[int, Callable[[], None]] = dict.fromkeys(stops, used(model, nearest))
    looks |= {i + 1: look_ahead(i, log.times[following]) for i, following in pairwise(chosen)}
    follow(model, log, looks)
    if only in "prompt-intensity":
        of_key = [i for i, name in enumerate(log.keys) if name == key]
        kinds = {number: name for name, number in model.vocabulary.items()}
        true = true_intensities(truth, log, of_key, curves)
        draw_intensity(out / "prompt-intensity.png", curves, true, kinds, log, chosen)
    model.close()
    if only in "prompt-pool":
        model = PromptTPP(PromptTPPConfig(usage_balance=BALANCE))
        follow(model, log, dict.fromkeys(stops, used(model, balanced)))
        model.close()
        pools = {"by nearness": np.array(nearest), f"usage_balance {BALANCE:g}": np.array(balanced)}
        draw_pools(out / "prompt-pool.png", pools, stream.borders)


def used(model: PromptTPP, into: list[Array]) -> Callable[[], None]:
    return lambda: into.append(model.arrays["usage"][:, 0].copy())


def a_burst(log: Log, events: int = 9, seconds: float = 120.0) -> tuple[str, list[int]]:
    """Return a key, and so many neighbouring events of it within so many seconds, late in the log."""
    lately: dict[str, list[int]] = {}
    for i in range(int(0.95 * len(log.times)), len(log.times)):
        found = lately.setdefault(log.keys[i], [])
        found.append(i)
        if len(found) >= events and log.times[i] - log.times[found[-events]] < seconds:
            return log.keys[i], found[-events:]
    raise UsageError(f"no key has {events} events within {seconds:g} seconds.")


def true_intensities(
    truth: Any, log: Log, of_key: list[int], curves: list[tuple[Array, Array]]
) -> list[Array]:
    """Return the total intensity of the process at the times of the curves."""
    state, last, found = truth.regimes[0].first_state(), START, []
    begins = {curve[0]: curve for curve, _ in curves}
    for i in of_key:
        time = log.times[i]
        law = truth.regimes[int(truth.regime(time, 0.0))]
        state, last = law.after(state, time - last, int(log.types[i])), time
        if time in begins:
            found.append(np.array([law.intensity(state, at - time).sum() for at in begins[time]]))
    return found


def draw_intensity(
    path: Path,
    curves: list[tuple[Array, Array]],
    true: list[Array],
    kinds: dict[int, str],
    log: Log,
    chosen: list[int],
) -> None:
    origin = curves[0][0][0]
    at = np.concatenate([np.append(times, np.nan) for times, _ in curves]) - origin
    by_type = np.concatenate([np.vstack([found, np.full(found.shape[1], np.nan)]) for _, found in curves])
    of_truth = np.concatenate([np.append(found, np.nan) for found in true])
    likely = np.argsort(-np.nanmean(by_type, axis=0))[:3]
    colours = {kinds[k]: COLOURS[place] for place, k in enumerate(likely)}
    with picture(path, 9, 3.6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[12, 1])
        upper.plot(at, of_truth, color=MUTED, linestyle="--", linewidth=1.1, label="the process, all types")
        upper.plot(at, by_type.sum(axis=1), color=INK, linewidth=1.4, label="the model, all types")
        for k in likely:
            upper.plot(at, by_type[:, k], color=colours[kinds[k]], linewidth=1.1, label=f"type {kinds[k]}")
        upper.set_yscale("log")
        upper.set_ylim(1e-4, 1.0)
        upper.set_yticks([1e-4, 1e-3, 1e-2, 1e-1, 1.0], ["0.0001", "0.001", "0.01", "0.1", "1"])
        upper.set_ylabel("events a second")
        upper.tick_params(length=0, which="both")
        upper.minorticks_off()
        for i in chosen:
            colour = colours.get(log.types[i], MUTED)
            lower.plot(log.times[i] - origin, 0.0, "|", color=colour, markersize=13, markeredgewidth=2)
        lower.set_yticks([])
        lower.spines.left.set_visible(False)
        lower.grid(visible=False)
        lower.tick_params(length=0)
        lower.set_xlabel("seconds; the ticks are events")
        handles, labels = upper.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def draw_pools(path: Path, pools: dict[str, Array], borders: list[int]) -> None:
    """Draw the share of each prompt among those that were selected lately, [looks, prompts] by title."""
    with picture(path, 9, 4.6) as figure:
        for axes, (title, usage) in zip(
            figure.subplots(len(pools), 1, sharex=True), pools.items(), strict=True
        ):
            order = np.argsort(usage.mean(axis=0), kind="stable")
            events = LOOK_EVERY * np.arange(1.0, len(usage) + 1)
            places = np.arange(len(order) + 1) + 0.5
            shares = {"cmap": "Blues", "vmin": 0.0, "vmax": 0.25, "rasterized": True}
            mesh = axes.pcolormesh(cells(events), places, usage[:, order].T, **shares)
            for start, end, name in zip(borders[:-1], borders[1:], VISITS, strict=True):
                axes.axvline(end, color=INK, linewidth=0.8)
                axes.text(0.5 * (start + end), 1.02, name, ha="center", transform=axes.get_xaxis_transform())
            axes.grid(visible=False)
            finish_axes(axes, across="")
            axes.set_xlim(0, events[-1])
            axes.set_yticks([])
            axes.set_ylabel(f"{len(order)} prompts,\n{title}")
        axes.set_xlabel("events; the letters are regimes")
        bar = figure.colorbar(mesh, ax=figure.axes, label="share of the selected", pad=0.01)
        bar.outline.set_visible(False)


# ---- The log ----


def of_log(source: str, out: Path, only: str) -> None:
    log = read(source, None)
    model = PromptTPP(PromptTPPConfig())
    moments = two_moments(log)
    found: list[tuple[str, dict[str, Array], float]] = []

    def look_at_gap(title: str, event: int, gap: float) -> Callable[[], None]:
        def look() -> None:
            row = model.keys.find(log.keys[event])
            edges = model.counts.edges
            said = {
                "PromptTPP": model._intensities(row, edges)[1],
                "counts": model.counts._intensities(row["counts"], edges)[1],
                "hawkes": model.hawkes._intensities(row["hawkes"], edges)[1],
            }
            found.append((title, {name: -np.diff(np.exp(-passed)) for name, passed in said.items()}, gap))

        return look

    looks = {event + 1: look_at_gap(title, event, gap) for title, event, gap in moments}
    rows = follow(model, log, looks)
    if only in "prompt-gaps":
        draw_gaps(out / "prompt-gaps.png", found, model.counts.edges)
    if only in "prompt-attention":
        draw_attention(out / "prompt-attention.png", model)
    if only in "prompt-calibration":
        draw_calibration(out / "prompt-calibration.png", log, rows, model.extras)
    model.close()


def two_moments(log: Log) -> list[tuple[str, int, float]]:
    """Return titles, events late in the log of keys with a past, and the gaps that followed them."""
    times, count = np.array(log.times), len(log.times)
    gaps, following, past = np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, int)
    last: dict[str, int] = {}
    for i, key in enumerate(log.keys):
        if (before := last.get(key)) is not None:
            gaps[i] = following[before] = times[i] - times[before]
            past[i] = past[before] + 1
        last[key] = i
    late = (np.arange(count) > 0.8 * count) & (past > 30) & np.isfinite(following)
    hour = times % 86_400 / 3_600
    moments = []
    for at_hour, pause in ((4.0, gaps < 60.0), (16.0, gaps > 1_800.0)):  # noon and midnight in China
        event = int(np.flatnonzero(late & (hour > at_hour) & (hour < at_hour + 1) & pause)[0])
        clock = f"{int(hour[event]):02d}:{int(hour[event] % 1 * 60):02d}"
        moments.append(
            (f"at {clock} UTC, {gaps[event]:,.0f} s after the event before", event, float(following[event]))
        )
    return moments


def draw_gaps(path: Path, found: list[tuple[str, dict[str, Array], float]], edges: Array) -> None:
    """Draw what is said of the next gap: title, probability of each bin by who says it, and what came."""
    found = sorted(found, key=lambda moment: moment[0])  # by the clock
    with picture(path, 9, 3.1) as figure:
        for axes, (title, said, gap) in zip(figure.subplots(1, 2, sharey=True), found, strict=True):
            for place, (name, bins) in enumerate(said.items()):
                borders = np.maximum(edges, edges[1] / 2)  # the first bin begins at 0
                density = bins / np.diff(np.log(borders))
                style = {"color": COLOURS[place], "linewidth": 1.1 if place else 1.6}
                axes.stairs(density, borders, label=name, zorder=3, **style)
            axes.axvline(gap, color=INK, linestyle=":", linewidth=1.2, label="what came")
            axes.set_xscale("log")
            axes.set_xlim(0.5, 1e6)
            axes.set_ylim(bottom=0.0)
            axes.set_xticks([1, 60, 3_600, 86_400, 604_800], ["1 s", "1 min", "1 h", "1 day", "1 week"])
            axes.minorticks_off()
            axes.tick_params(length=0)
            axes.set_title(title)
            axes.set_xlabel("next gap")
        figure.axes[0].set_ylabel("density of the log gap")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def draw_attention(path: Path, model: PromptTPP) -> None:
    """Draw what was learned to add to a score of attention: by how many events ago, and how long ago."""
    p = model.network.parameters(torch.from_numpy(model.arrays["weights"]))
    recency, decay = p["recency"].numpy(), p["decay"].numpy()
    with picture(path, 9, 3.1) as figure:
        by_event, by_time = figure.subplots(1, 2)
        ages = np.geomspace(1.0, 604_800.0, 200)
        for place, (head, layer) in enumerate(np.ndindex(decay.shape)):
            name, style = f"head {head + 1}, layer {layer + 1}", {"color": COLOURS[place], "linewidth": 1.0}
            by_event.plot(np.arange(1, recency.shape[2] + 1), recency[head, layer], label=name, **style)
            by_time.plot(ages, -decay[head, layer] * np.log1p(ages), **style)
        mean = {"color": INK, "linewidth": 2.2}
        by_event.plot(np.arange(1, recency.shape[2] + 1), recency.mean(axis=(0, 1)), label="mean", **mean)
        by_time.plot(ages, -decay.mean() * np.log1p(ages), **mean)
        finish_axes(by_event, across="events ago")
        by_event.set_ylabel("added to the score")
        by_time.set_xscale("log")
        by_time.set_xticks([1, 60, 3_600, 86_400, 604_800], ["1 s", "1 min", "1 h", "1 day", "1 week"])
        by_time.minorticks_off()
        by_time.tick_params(length=0)
        by_time.set_xlabel("time ago")
        handles, labels = by_event.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def draw_calibration(path: Path, log: Log, rows: Array, extras: tuple[str, ...]) -> None:
    """Draw how often gaps fell into each twentieth of the predicted, and how often types were right."""
    names = [*Score._fields, *extras]
    scored = np.isfinite(rows[:, names.index("gap")])
    compensators = {"PromptTPP": rows[scored, names.index("compensator")]}
    for floor in (Counts(), Hawkes()):
        by_floor = floor.learn_many(*log)[scored]
        compensators[floor.name] = by_floor[:, Score._fields.index("compensator")]
        floor.close()
    confidence = rows[scored, names.index("confidence")]
    right = rows[scored, names.index("predicted_type")] == rows[scored, names.index("type")]
    tenths = np.minimum((confidence * 10).astype(int), 9)
    with picture(path, 9, 3.1) as figure:
        gaps, types = figure.subplots(1, 2)
        for place, (name, passed) in enumerate(compensators.items()):
            shares, edges = np.histogram(-np.expm1(-passed), bins=PIT_BINS, range=(0.0, 1.0))
            style = {"linewidth": 1.6} if place == 0 else {"linewidth": 1.1}
            gaps.stairs(
                shares / shares.mean(), edges, baseline=None, color=COLOURS[place], label=name, **style
            )
        gaps.axhline(1.0, color=MUTED, linewidth=1, linestyle="--")
        finish_axes(gaps, across="where the gap fell in its predicted distribution")
        gaps.set_ylim(bottom=0.0)
        gaps.set_ylabel("frequency; 1 is calibrated")
        filled = [tenth for tenth in range(10) if (tenths == tenth).sum() >= 50]
        said = [confidence[tenths == tenth].mean() for tenth in filled]
        was = [right[tenths == tenth].mean() for tenth in filled]
        types.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
        types.plot(said, was, "o-", color=COLOURS[0], linewidth=1.3, markersize=5)
        finish_axes(types, across="probability of the most likely type")
        types.set_ylabel("how often it was right")
        handles, labels = gaps.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def main(options: Options) -> None:
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.only in name for name in ("prompt-intensity", "prompt-pool")):
        regimes(options.out, options.only)
    if any(options.only in name for name in ("prompt-gaps", "prompt-attention", "prompt-calibration")):
        of_log(options.source, options.out, options.only)


if __name__ == "__main__":
    run(main, Options, __doc__)
