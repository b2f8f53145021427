"""Prediction of a time series: stream-TD against two predictors that learn nothing.

Each setting predicts the discounted return of one column of a CSV file, every step before it learns from it.
The table gives the mean squared error over the second half of the file, median [least..greatest] over seeds,
beside that of the running mean of past values / (1 - discount) and of the last value / (1 - discount), and
the ratio of the median to the better of the two: below 1 means that something was learned.

    python benchmarks/prediction.py --data ETTh1.csv             # ten minutes on one core
    python benchmarks/prediction.py --only defaults --jobs 2     # ./ETTh1.csv or $STREAMWISE_ETT, two cores

ETTh1.csv: https://github.com/zhouhaoyi/ETDataset, ETT-small.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from rich.table import Table
from script import run
from tables import show

from streamwise.agents import StreamTD
from streamwise.runs.statistics import PredictionScores, prediction_scores
from streamwise.streams import CsvSeriesStream, Transition

Inputs = Literal["differences", "features", "traces"]


@dataclass(frozen=True)
class Case:
    """One setting. inputs: as the stream gives them, the features alone, or their traces of 0.999 alone."""

    name: str
    inputs: Inputs = "differences"
    settings: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("defaults"),
    Case("intended change 1", settings={"intended_change": 1.0}),
    Case("features alone", "features"),
    Case("features alone, obgd", "features", {"step_size_rule": "obgd"}),
    Case("obgd", settings={"step_size_rule": "obgd"}),
    Case("adaptive-obgd", settings={"step_size_rule": "adaptive-obgd"}),
    Case("published", "traces", {"step_size_rule": "obgd"}),
]


@dataclass(frozen=True)
class Options:
    """Measure stream-TD's predictions of a time series and print them as a table."""

    data: Path = Path(os.environ.get("STREAMWISE_ETT", "ETTh1.csv"))
    """A CSV file; its first line names the columns."""
    target: str = "OT"
    """The column to predict."""
    discounts: tuple[float, ...] = (0.99, 0.9)
    seeds: int = 5
    """Seeds 0, 1, ... of the network's initial weights."""
    jobs: int = 1
    """Runs at a time, each on one core."""
    only: str = ""
    """Run the cases whose name contains this text."""


def transitions(options: Options, inputs: Inputs) -> Iterator[Transition]:
    """The series as the case wants it observed."""
    if inputs == "differences":
        yield from CsvSeriesStream(options.data, options.target)
    elif inputs == "features":
        yield from CsvSeriesStream(options.data, options.target, trace_decays=())
    else:
        for sample in CsvSeriesStream(options.data, options.target, trace_decays=(0.999,)):
            here, there = np.split(sample.observation, 2), np.split(sample.next_observation, 2)
            yield sample._replace(observation=here[0] - here[1], next_observation=there[0] - there[1])


def score(options: Options, case: Case, discount: float, seed: int) -> PredictionScores:
    """Learn through the whole file once."""
    torch.set_num_threads(1)
    agent: StreamTD | None = None
    predictions, cumulants = [], []
    for sample in transitions(options, case.inputs):
        if agent is None:
            space = spaces.Box(-np.inf, np.inf, sample.observation.shape, np.float64)
            config = StreamTD.Config(discount=discount, **case.settings)
            agent = StreamTD(space, config=config, seed=seed)
        predictions.append(agent.learn_one(sample)["prediction"])
        cumulants.append(sample.reward)
    return prediction_scores(predictions, cumulants, discount)


def main(options: Options) -> None:
    CsvSeriesStream(options.data, options.target).close()  # a wrong path should not wait for the workers
    cases = [case for case in CASES if options.only in case.name]
    headings = ("setting", "discount", "seeds", "stream-TD", "running mean", "last value", "ratio")
    table = Table(*headings, title=f"mean squared error, {options.data.name}, {options.target}")
    for column in table.columns[1:]:
        column.justify = "right"
    with ProcessPoolExecutor(options.jobs) as pool:
        runs = {
            (case.name, discount): [
                pool.submit(score, options, case, discount, seed) for seed in range(options.seeds)
            ]
            for case in cases
            for discount in options.discounts
        }
        for (name, discount), futures in runs.items():
            scores = [future.result() for future in futures]
            errors = [s.learner for s in scores]
            best = min(scores[0].running_mean, scores[0].last_cumulant)
            table.add_row(
                name,
                f"{discount:g}",
                str(len(errors)),
                f"{np.median(errors):,.0f} [{min(errors):,.0f}..{max(errors):,.0f}]",
                f"{scores[0].running_mean:,.0f}",
                f"{scores[0].last_cumulant:,.0f}",
                f"{np.median(errors) / best:.2f}",
            )
    show(table)


if __name__ == "__main__":
    run(main, Options, __doc__)
