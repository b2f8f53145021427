"""Agents in worlds that change and come back: what they reach, what they still know, how well they learn.

A world is lived in from first to last step, without a sign of its changes, in visits A-B-A-C-A. The end of a
visit is the mean return of the episodes that end in its last fifth; the beginning, of its first fifth. What
comes back and begins lower than it had ended was forgotten; what ends lower on each visit, or below the agent
that is made anew at every change, was not learned again. Beside returns: the root mean square of the value
network's weights, the share of its hidden units that are dead, and the effective rank of its last features,
on 512 observations of the end of a visit (streamwise.agents.plasticity).

Each run writes its curves to a JSON file and is not repeated, so the script can be stopped and started again.
Means and standard errors over seeds, and a picture of the curves of each world.

    OMP_NUM_THREADS=1 python benchmarks/changing_worlds.py             # hours on two cores
    OMP_NUM_THREADS=1 python benchmarks/changing_worlds.py --worlds gravity --methods plain "k-FPF, head"
    python benchmarks/changing_worlds.py --table                       # print and draw what has been measured
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import time
import warnings
from collections import deque
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from script import run
from tables import show

from streamwise.agents import agent_class
from streamwise.agents.plasticity import mean_square_weight, plasticity
from streamwise.envs import EnvironmentStream, make
from streamwise.runs.config import RunConfig
from streamwise.streams import UsageError

VISITS = "ABACA"
SHARE = 0.2  # of a visit: its beginning, and its end
OBSERVED = 512  # observations that plasticity is measured on, every eighth step's


class World(NamedTuple):
    """An environment, all but how long a visit is, and the agent that lives in it."""

    environment: str
    agent: str


WORLDS = {
    "gravity": World("HalfCheetah-v5?change=gravity&values=1,0.5,1,1.5,1", "stream-ac"),
    "friction": World("HalfCheetah-v5?change=friction&values=1,0.2,1,3,1", "stream-ac"),
    "actuators": World("HalfCheetah-v5?change=actuators&values=1,0.5,1,1.5,1", "stream-ac"),
    "observations": World("HalfCheetah-v5?change=observations&values=0,1,0,2,0", "stream-ac"),
    "games": World("MinAtar/Sequence-v0?games=Breakout,Asterix,Breakout,SpaceInvaders,Breakout", "stream-q"),
}

METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "anew at every change": {},
    "k-FPF, head": {"finetune_every": 1000},
    "k-FPF, all": {"finetune_every": 1000, "finetune_modules": "all"},
    "DKVB": {"network": "bottleneck"},
}

MEASURES = {  # what it is called, and how many digits it is shown with
    "weight": ("root mean square weight", 4),
    "dead_units": ("share of dead units", 3),
    "effective_rank": ("effective rank", 1),
}


@dataclass(frozen=True)
class Options:
    """Measure agents in changing worlds and print tables."""

    worlds: tuple[str, ...] = ("gravity", "actuators", "games")
    """gravity, friction, actuators, observations, games."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Of the tables' first column."""
    every: int = 100_000
    """Steps of a visit."""
    steps: int | None = None
    """Steps of a run. Unset: five visits."""
    seeds: int = 5
    """Seeds 0, 1, ..."""
    processes: int = 2
    """Runs at a time."""
    out: Path = Path("outputs/changing-worlds")
    """Where curves are kept, one file a run."""
    table: bool = False
    """Only print and draw what has been measured."""

    @property
    def length(self) -> int:
        """Steps of a run."""
        return len(VISITS) * self.every if self.steps is None else self.steps

    def path(self, world: str, method: str, seed: int) -> Path:
        """Where the curves of a run are."""
        name = re.sub(r"\W+", "-", method)
        return self.out / f"{world}-{name}-every{self.every}-steps{self.length}-seed{seed}.json"


def live(world: str, method: str, seed: int, every: int, steps: int) -> dict[str, Any]:
    """Return an agent's life: its episodes, visits, and how able to learn it was at the end of each."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    environment, name = WORLDS[world]
    kind = agent_class(name)
    settings = kind.Config(**METHODS[method])
    config = RunConfig(environment, settings, agent=name, steps=steps, seed=seed).resolved()
    env = make(f"{environment}&every={every}", seed=seed)
    made = 0

    def new_agent() -> Any:
        nonlocal made
        made += 1
        return kind(env.observation_space, env.action_space, config.settings, seed=seed + 1000 * (made - 1))

    agent = new_agent()
    stream = EnvironmentStream(env, agent.act, seed=seed)
    episodes: list[tuple[int, float]] = []  # last step, return
    starts, regimes, measured = [0], [0], []
    seen: deque[Any] = deque(maxlen=OBSERVED)
    total, began = 0.0, time.perf_counter()
    for step, transition in enumerate(stream, start=1):
        regime = int(stream.info["regime"])
        if regime != regimes[-1]:
            measured.append(able(agent, seen))
            starts.append(step - 1)
            regimes.append(regime)
            if method == "anew at every change":
                agent = new_agent()
                stream.act = agent.act
        if step % 8 == 0:
            seen.append(transition.observation)
        agent.learn_one(transition)
        total += transition.reward
        if transition.terminated or transition.truncated:
            episodes.append((step, total))
            total = 0.0
        if step == steps:
            break
    seconds = time.perf_counter() - began
    measured.append(able(agent, seen))
    stream.close()
    return {
        "world": world,
        "method": method,
        "seed": seed,
        "every": every,
        "steps": steps,
        "seconds": seconds,
        "starts": starts,
        "regimes": regimes,
        "plasticity": measured,
        "episodes": episodes,
    }


def able(agent: Any, seen: deque[Any]) -> dict[str, float]:
    """Return how able to learn the value's network is, on observations of late."""
    network = (agent.critic if hasattr(agent, "critic") else agent.network).module
    if agent.native is not None:
        agent.native.pull()  # statistics of observations
    observations = agent.samples.observations.normalize(np.stack(list(seen)), agent.samples.dtype)
    weights = {"weight": mean_square_weight(network) ** 0.5}
    try:
        found = plasticity(network, observations)
    except ValueError:  # a table has no units
        return weights
    return {**weights, "dead_units": found["dead_units"], "effective_rank": found["effective_rank"]}


def measure(options: Options) -> None:
    """Make the runs that are not there yet."""
    missing = [
        (world, method, seed)
        for seed, world, method in product(range(options.seeds), options.worlds, options.methods)
        if not options.path(world, method, seed).is_file()
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        jobs = {pool.submit(live, *run, options.every, options.length): run for run in missing}
        for number, job in enumerate(as_completed(jobs), start=1):
            run, life = jobs[job], job.result()
            path = options.path(*run)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(life))
            partial.replace(path)
            print(f"{number} of {len(missing)}: {path.name}, {life['seconds']:,.0f} s", flush=True)


# --- tables ------------------------------------------------------------------------------------------------


def returns(life: dict[str, Any], at_end: bool) -> list[float]:
    """Return the mean return at the end of each visit, or at its beginning; NaN if no episode ended then."""
    bounds = [*life["starts"], life["steps"]]
    means = []
    for start, stop in pairwise(bounds):
        width = SHARE * (stop - start)
        low, high = (stop - width, stop) if at_end else (start, start + width)
        found = [total for step, total in life["episodes"] if low < step <= high]
        means.append(float(np.mean(found)) if found else float("nan"))
    return means


def visits(life: dict[str, Any]) -> list[str]:
    """Name visits: the number and the letter of the world, in the order in which worlds first came."""
    return [f"{number} {chr(ord('A') + regime)}" for number, regime in enumerate(life["regimes"], start=1)]


def spelled(values: list[float], digits: int = 0) -> str:
    """Return the mean of those that are numbers, and its standard error."""
    numbers = np.array([value for value in values if np.isfinite(value)])
    if not len(numbers):
        return "–"
    error = f" ± {numbers.std(ddof=1) / len(numbers) ** 0.5:,.{digits}f}" if len(numbers) > 1 else ""
    return f"{numbers.mean():,.{digits}f}{error}"


def columns(lives: list[dict[str, Any]], rows: list[list[float]], digits: int = 0) -> list[str]:
    """Spell each column of rows, one row a life, which may be of different lengths."""
    width = max(len(life["starts"]) for life in lives)
    return [spelled([row[i] for row in rows if i < len(row)], digits) for i in range(width)]


def empty_table(title: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """Return a table of these columns, not narrower than its title."""
    table = Table(title=title, min_width=len(title))
    for column in words:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def report(world: str, lives: dict[str, list[dict[str, Any]]]) -> None:
    """Print the tables of one world."""
    longest = max((life for some in lives.values() for life in some), key=lambda life: len(life["starts"]))
    regimes, names = longest["regimes"], visits(longest)

    title = f"{world}: return at the end of visits of {longest['every']:,} steps; → from the beginning"
    table = empty_table(title, ("method",), (*names, "seeds", "µs a step"))
    ends = {method: [returns(life, at_end=True) for life in some] for method, some in lives.items()}
    digits = int(np.nanmax(np.abs(np.concatenate([row for rows in ends.values() for row in rows]))) < 100)
    for method, some in lives.items():
        begun = columns(some, [returns(life, at_end=False) for life in some], digits)
        cells = [
            f"{begun[i].partition(' ')[0]} → {end}" if regimes[i] in regimes[:i] else end
            for i, end in enumerate(columns(some, ends[method], digits))
        ]
        micros = np.median([1e6 * life["seconds"] / life["steps"] for life in some])
        table.add_row(method, *cells, *[""] * (len(names) - len(cells)), str(len(some)), f"{micros:,.0f}")
    show(table)

    title = f"{world}: the value's network at the end of each visit"
    table = empty_table(title, ("method", "measure"), tuple(names))
    for method, some in lives.items():
        for key, (what, digits) in MEASURES.items():
            rows = [[found.get(key, float("nan")) for found in life["plasticity"]] for life in some]
            cells = columns(some, rows, digits)
            if set(cells) != {"–"}:
                table.add_row(method, what, *cells)
    show(table)


def curve(life: dict[str, Any], points: NDArray[Any]) -> NDArray[Any]:
    """Return the mean return of the episodes that ended shortly before each of some steps, or NaN."""
    steps, found = np.array(life["episodes"]).T
    sums = np.concatenate([[0.0], np.cumsum(found)])
    stop = np.searchsorted(steps, points, side="right")
    start = np.searchsorted(steps, points - SHARE * life["every"] / 2, side="right")
    with np.errstate(invalid="ignore"):
        return np.asarray((sums[stop] - sums[start]) / (stop - start))


def draw(world: str, lives: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw the returns of each method while the world changes: means of seeds, and the least and largest."""
    import matplotlib.style
    from matplotlib.figure import Figure

    from streamwise.runs.figures import LINE, MUTED, STYLE, finish_axes, line_style

    longest = max((life for some in lives.values() for life in some), key=lambda life: len(life["starts"]))
    points = np.linspace(0, longest["steps"], 401)[1:]
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(10, 4), layout="constrained")
        axes = figure.subplots()
        for place, (method, some) in enumerate(lives.items()):
            curves, line = np.stack([curve(life, points) for life in some]), line_style(place)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # no episode has ended yet
                means, low, high = np.nanmean(curves, 0), np.nanmin(curves, 0), np.nanmax(curves, 0)
            axes.plot(points, means, label=f"{method} ({len(some)} lives)", **line)
            axes.fill_between(points, low, high, color=line["color"], alpha=0.15, linewidth=0)
        top = axes.get_xaxis_transform()
        for name, start in zip(visits(longest), longest["starts"], strict=True):
            axes.axvline(start, color=LINE, linewidth=1.2, zorder=0)
            axes.text(start, 1.01, name.split()[1], transform=top, color=MUTED)
        finish_axes(axes)
        axes.set(ylabel="return of episodes", xlim=(0, longest["steps"]))
        axes.set_title(f"{WORLDS[world].environment}, {WORLDS[world].agent}", pad=16)
        axes.legend()
        figure.savefig(path, dpi=120)


def main(options: Options) -> None:
    """Measure, print and draw."""
    for kind, chosen, known in (
        ("world", options.worlds, list(WORLDS)), ("method", options.methods, list(METHODS))
    ):  # fmt: skip
        for name in chosen:
            if name not in known:
                raise UsageError(f"there is no {kind} {name!r}; choose from {', '.join(known)}.")
    if not options.table:
        os.environ.setdefault("MUJOCO_GL", "disabled")
        measure(options)
    for world in options.worlds:
        lives = {
            method: [
                json.loads(path.read_text())
                for seed in range(options.seeds)
                if (path := options.path(world, method, seed)).is_file()
            ]
            for method in options.methods
        }
        lives = {method: some for method, some in lives.items() if some}
        if lives:
            report(world, lives)
            path = options.out / f"{world}-every{options.every}-steps{options.length}.png"
            draw(world, lives, path)
            print(f"curves: {path}")


if __name__ == "__main__":
    run(main, Options, Options.__doc__)
