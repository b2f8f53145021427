"""Learn from an event log of your own, and predict what comes next.

The log is a CSV file of what customers of a shop do. Most open what they searched for, soon; who has paid
comes back, but after a day. A model reads the log once and predicts each event before it learns it. Printed
is the share of types that it predicted. Who always says "search" gets 0.36, who knows how the log was made
0.778.

    python examples/own_event_log.py    # expect 0.778 ± 0.010
"""

from __future__ import annotations

import csv
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import tyro

import streamwise

NEXT = {  # what follows how likely, and after how many seconds in the mean
    "search": (20.0, {"open": 0.8, "search": 0.2}),
    "open": (60.0, {"search": 0.4, "order": 0.6}),
    "order": (120.0, {"pay": 0.9, "search": 0.1}),
    "pay": (86_400.0, {"search": 0.9, "complain": 0.1}),
    "complain": (3_600.0, {"search": 1.0}),
}


def write_log(path: Path, events: int, seed: int) -> None:
    random, rows = np.random.default_rng(seed), []
    for customer in range(20):
        time, event = 1.7e9, "search"
        for _ in range(events // 20):
            rows.append((datetime.fromtimestamp(time, UTC).isoformat(), event, f"customer {customer}"))
            seconds, follows = NEXT[event]
            time += random.exponential(seconds)
            event = random.choice(list(follows), p=list(follows.values()))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("when", "what", "who"), *sorted(rows)])


def main(events: int = 20_000, seed: int = 0) -> None:
    model, right = streamwise.Counts(), []
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder, "shop.csv"), events, seed)
        source = streamwise.open_source(f"file:{folder}/shop.csv?time=when&type=what&key=who")
        for event in streamwise.EventStream([source]):
            score = model.learn_one(event)
            right.append(score["predicted_type"] == score["type"])
    coming = model.predict_one("customer 7", horizon=60.0)
    print(f"customer 7 did {coming.last_type!r}; something within a minute: {coming.probability:.2f}; what:")
    print(", ".join(f"{what} {share:.2f}" for what, share in coming.types.items()))
    print(f"types predicted: {np.mean(right):.3f}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
