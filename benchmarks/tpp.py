"""How fast PromptTPP is: trained on tasks, asked for next events, live; beside the published arithmetic.

Both sides of training and prediction have the same sizes: width 32, time width 16, 2 layers, 2 heads, 17
types, 20 nodes an interval, sequences of 32 to 64 events. They take turns in one process, so that a machine
that slows down slows both; a ratio is taken within each turn, and medians are printed. A second is one of
processor time.

The published code appends to the L events of a sequence one time per event, and runs the whole stack over
these 2L tokens under one mask, of which the 2L x 2L scores are computed in full. To ask about S times an
interval it repeats the batch S times, and once more for the events themselves. Here events are projected
once, and times are queries of their keys and values. Without prompts, with heads in a chain and without
decay of scores both give the same intensities, which is checked before anything is timed.

The live tables are those of live_tpp.py, which has options of its own.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/tpp.py                    # five minutes
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/tpp.py --only training --turns 3

Sources: Xue et al. (2023), arXiv:2310.04993, and Xue et al. (2024), arXiv:2307.08097, whose schemes are
written down here from their descriptions.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import live_tpp
import torch
from rich.table import Table
from script import run
from tables import show
from torch import Tensor

from streamwise.agents import attnhp
from streamwise.agents.attnhp import AttNHP, AttNHPSettings
from streamwise.agents.neural_tpp import Sequences, log_likelihood, stratified
from streamwise.agents.next_event import before_every_event
from streamwise.memory.prompt_pool import PromptPool

TYPES, NODES, SHORTEST, LONGEST = 17, 20, 32, 64
PROMPTS, SELECTED, ROWS = 16, 4, 4
PUBLISHED: dict[str, Any] = {"chain_heads": True, "time": "absolute", "decay": False}
CASES = {"no pool": 0, f"{SELECTED} of {PROMPTS} prompts of {ROWS} rows": SELECTED * ROWS}  # rows attended to
PROPOSALS, BOUND_POINTS, BOUND_FACTOR = 500, 5, 5.0  # of the published thinning
UNIT, WAIT = 100.0, 1e5  # seconds: a usual gap, and how far predictions look ahead


@dataclass(frozen=True)
class Options:
    """Measure training, next-event prediction and the live model, and print tables."""

    only: Literal["training", "prediction", "live"] | None = None
    """Measure one of them; all by default."""
    turns: int = 7
    """Turns that each side takes; the first, in which caches and processor warm up, is left out."""
    seconds: float = 1.0
    """Processor time that a turn of one side takes, at least; one step or one history is always taken."""
    batch: int = 32
    """Sequences of a training step. The published scheme takes an eighth of it, so that it fits memory."""


def some_sequences(count: int, generator: torch.Generator) -> Sequences:
    """Make sequences whose gaps spread over six orders of magnitude, as those of a shopping log do."""
    made = []
    for _ in range(count):
        length = int(torch.randint(SHORTEST, LONGEST + 1, (1,), generator=generator))
        gaps = torch.exp(4.5 + 2.2 * torch.randn(length, generator=generator, dtype=torch.float64))
        made.append((gaps.cumsum(0), torch.randint(TYPES, (length,), generator=generator)))
    return Sequences.of(made, 0.0, torch.stack([times[-1] + UNIT for times, _ in made]))


def make_model(pooled: bool, generator: torch.Generator, **settings: Any) -> AttNHP:
    pool = PromptPool(48, 32, prompts=PROMPTS, selected=SELECTED, rows=ROWS, generator=generator)
    settings = {"unit": UNIT, **settings}
    return AttNHP(TYPES, AttNHPSettings(**settings), pool=pool if pooled else None, generator=generator)


# The published arithmetic.


def published_intensities(model: AttNHP, elapsed: Tensor, types: Tensor, at: Tensor) -> Tensor:
    """Return λ_k, [B, L, types], at one time after each event: the whole stack over 2L tokens.

    elapsed, at: float64 [B, L], since the start. With a pool, one set of prompts for the batch is put before
    the tokens of every head and layer, found by the mean of all tokens.
    """
    c, (count, length) = model.settings, elapsed.shape
    z = attnhp.time_embedding(torch.cat([elapsed, at], 1) / c.unit, c.time_width)[..., :-1]
    index = torch.arange(length)
    later = index > index[:, None]
    blocked = torch.ones(2 * length, 2 * length, dtype=torch.bool)
    blocked[:length, :length] = blocked[length:, :length] = later
    blocked[length:, length:].fill_diagonal_(False)
    events, states = model.embedding[types].tanh(), []
    for head in range(c.heads):
        h = torch.cat([events, torch.zeros(count, length, c.width)], 1)
        for layer in range(c.layers):
            weight, bias = model.weight[layer, head, :-1], model.weight[layer, head, -1]
            x = torch.cat([h, z], -1)
            query, key, value = (x @ weight + bias).chunk(3, -1)
            hidden = blocked
            if model.pool is not None:
                found = model.pool.retrieve(x.mean((0, 1))).ids
                rows = torch.cat([*model.pool.attend(found), z.mean((0, 1)).expand(SELECTED * ROWS, -1)], -1)
                parts = weight.chunk(3, -1)
                for_keys = torch.cat([rows[:, : c.width], rows[:, 2 * c.width :]], 1)
                of_keys, of_values = for_keys @ parts[1], rows[:, c.width :] @ parts[2]
                key = torch.cat([of_keys.expand(count, -1, -1), key], 1)
                value = torch.cat([of_values.expand(count, -1, -1), value], 1)
                hidden = torch.nn.functional.pad(blocked, (SELECTED * ROWS, 0))
            scores = (query @ key.mT / math.sqrt(c.width)).masked_fill(hidden, -math.inf)
            attended = scores.softmax(-1) @ value
            h = torch.cat([attended[:, :length], h[:, length:] + attended[:, length:].tanh()], 1)
        events = h[:, :length]
        states.append(h[:, length:])
    intensities: Tensor = model.head(torch.cat(states, -1))
    return intensities


def published_loss(model: AttNHP, sequences: Sequences, generator: torch.Generator) -> Tensor:
    """Return -log L of all events but the first: the stack for the events, and for S copies of the batch."""
    elapsed, types = sequences.times - sequences.start[:, None], sequences.types
    mask = sequences.mask[:, 1:]
    gaps = torch.where(mask, elapsed.diff(dim=1), 0.0)
    known, next_times = elapsed[:, :-1], torch.where(mask, elapsed[:, 1:], 0.0)
    at_events = published_intensities(model, known, types[:, :-1], next_times)
    nodes = stratified(gaps.shape, NODES, generator).at.movedim(-1, 0)
    copies = (NODES, 1)
    at_nodes = published_intensities(
        model, known.repeat(copies), types[:, :-1].repeat(copies), (known + nodes * gaps).flatten(0, 1)
    )
    compensator = at_nodes.sum(2).view(nodes.shape).mean(0) * gaps.float()
    own = at_events.gather(2, types[:, 1:, None])[..., 0].clamp(min=1e-9)
    return (compensator - own.log())[mask].sum()


@torch.no_grad()
def published_thinning(
    model: AttNHP, elapsed: Tensor, types: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the next event of a history [1, L]; return its wait and the intensities then, of each type.

    As published, proposals of every position are evaluated, and those of the last are used.
    """

    def after_last(offsets: Tensor) -> Tensor:
        copies = (len(offsets), 1)
        at = elapsed + offsets[:, None]
        return published_intensities(model, elapsed.repeat(copies), types.repeat(copies), at)[:, -1]

    gap = elapsed[0].diff()[-1:].clamp(min=1.0) if elapsed.shape[1] > 1 else torch.ones(1)
    found = after_last(torch.linspace(0.0, 1.0, BOUND_POINTS, dtype=torch.float64) * gap)
    bound = BOUND_FACTOR * found.sum(1).max().double()
    steps = -torch.log1p(-torch.rand(PROPOSALS, generator=generator, dtype=torch.float64)) / bound
    waits = steps.cumsum(0)
    rates = after_last(waits)
    accepted = torch.rand(PROPOSALS, generator=generator) * bound < rates.sum(1)
    first = int(accepted.int().argmax()) if accepted.any() else PROPOSALS - 1
    return waits[first], rates[first]


def check_equal(generator: torch.Generator) -> float:
    """Return the largest relative difference of the schemes' intensities; refuse one above 1e-5."""
    model = make_model(False, generator, **PUBLISHED)
    sequences = some_sequences(1, generator)
    known = sequences.times[:, :-1]
    at = known + torch.rand(known.shape, generator=generator, dtype=torch.float64) * sequences.times.diff()
    with torch.no_grad():
        theirs = published_intensities(model, known, sequences.types[:, :-1], at)
        ours = model.intensities(model.remember(sequences), at, torch.arange(1, at.shape[1] + 1)[None])
    difference = float(((ours - theirs).abs() / theirs).max())
    if not difference < 1e-5:
        raise RuntimeError(f"the two schemes differ by {difference:.1e}, so their times say nothing.")
    return difference


# Multiply-adds of a forward pass, for one sequence of L events; a backward pass takes about twice as many.


def published_operations(length: int, rows: int, heads: int = 2, layers: int = 2) -> float:
    tokens, copies = 2 * length, NODES + 1
    layer = tokens * 48 * 96 + 2 * tokens * (tokens + rows) * 32
    return copies * (heads * layers * layer + length * heads * 32 * TYPES)


def our_operations(length: int, rows: int, heads: int = 2, layers: int = 2) -> dict[str, float]:
    times, later = NODES + 1, layers - 1
    seen = length / 2  # events, on average
    return {
        "event projections": heads * length * (layers * 49 * 96 + 32 * 17),
        "event attention": heads * later * length * 2 * (seen + rows) * 32,
        "query path": heads * (length + 1) * times
        * ((17 * 49 + (seen + rows) * 49) + later * (49 * 96 + (seen + rows) * 64)),
        "head": (length + 1) * times * heads * 32 * TYPES,
    }  # fmt: skip


class Stages:
    """Seconds by stage, each counted where it is innermost."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def _turn(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, function: Callable[..., Any], stage: str, *, within: str | None = None) -> Any:
        """Count what a function takes as a stage, or only where it is called within another."""

        def wrapper(*arguments: Any, **options: Any) -> Any:
            if within is not None and self._open[-1:] != [within]:
                return function(*arguments, **options)
            self._turn()
            self._open.append(stage)
            try:
                return function(*arguments, **options)
            finally:
                self._turn()
                self._open.pop()

        return wrapper


def in_turns(
    ours: Callable[[], int], theirs: Callable[[], int], options: Options
) -> tuple[list[float], float]:
    """Return medians over turns: the events a second of both sides, and their ratio."""
    turns = []
    for _ in range(options.turns):
        rates = []
        for side in (ours, theirs):
            events, started = 0, time.process_time()
            while not events or time.process_time() - started < options.seconds:
                events += side()
            rates.append(events / (time.process_time() - started))
        turns.append([*rates, rates[0] / rates[1]])
    *medians, ratio = (statistics.median(of) for of in zip(*(turns[1:] or turns), strict=True))
    return medians, ratio


@dataclass(frozen=True)
class Training:
    """A model, sequences, and what a training step of each scheme is made of."""

    model: AttNHP
    sequences: Sequences
    optimizer: torch.optim.Optimizer
    generator: torch.Generator

    @classmethod
    def make(cls, pooled: bool, sequences: int, **settings: Any) -> Training:
        """Make all of it from one seed; settings: of the model."""
        generator = torch.Generator().manual_seed(0)
        model = make_model(pooled, generator, **settings)
        made = some_sequences(sequences, generator)
        return cls(model, made, torch.optim.Adam(model.parameters(), 1e-3), generator)

    def step(self, stages: Stages | None = None) -> int:
        """Take a step; return how many events were scored."""
        made, events = self.sequences, int(self.sequences.lengths.sum())
        nodes = stratified((len(made.times), made.times.shape[1] + 1), NODES, self.generator)
        self._apply(-log_likelihood(self.model, made, nodes).total.sum() / events, stages or Stages())
        return events

    def published_step(self) -> int:
        """Take a step by the published arithmetic, which scores all events but the first."""
        events = int((self.sequences.lengths - 1).sum())
        self._apply(published_loss(self.model, self.sequences, self.generator) / events, Stages())
        return events

    def _apply(self, loss: Tensor, stages: Stages) -> None:
        self.optimizer.zero_grad()
        stages.timed(loss.backward, "backward")()
        stages.timed(self.optimizer.step, "optimiser")()


def stages_of_a_step(training: Training, steps: int = 3) -> dict[str, float]:
    """Return the share of each stage of a training step."""
    stages, model, attend = Stages(), training.model, attnhp.attend
    attnhp.attend = stages.timed(attend, "event attention", within="event projections")
    model.remember = stages.timed(model.remember, "event projections")  # type: ignore[method-assign]  # timed
    model.states = stages.timed(model.states, "query path")  # type: ignore[method-assign]  # timed
    model.head.forward = stages.timed(model.head.forward, "head")  # type: ignore[method-assign]  # timed
    try:
        for _ in range(steps):
            stages.timed(training.step, "likelihood")(stages)
    finally:
        attnhp.attend = attend
        del model.remember, model.states, model.head.forward
    total = sum(stages.seconds.values())
    return {stage: seconds / total for stage, seconds in stages.seconds.items()}


def new_table(title: str, *columns: str) -> Table:
    """Return a table with a column of labels and columns of numbers."""
    table = Table("", title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def training_tables(options: Options) -> list[Table]:
    """Events trained on a second, where the time of a step goes, and multiply-adds."""
    forward = ("event projections", "event attention", "query path", "head")
    stages = (*forward, "likelihood", "backward", "optimiser")
    speed = new_table(
        f"Training, forward, backward and Adam, {options.batch} sequences a step: events/s",
        "streamwise", "published", "streamwise / published",
    )  # fmt: skip
    shares = new_table("Where the time of a training step goes", *stages)
    work = new_table(
        "Multiply-adds of a forward pass by shapes, thousands an event, for 48 events",
        *forward, "streamwise", "published", "published / streamwise",
    )  # fmt: skip
    for label, rows in CASES.items():
        ours = Training.make(rows > 0, options.batch)
        theirs = Training.make(rows > 0, max(options.batch // 8, 1), **PUBLISHED)
        rates, ratio = in_turns(ours.step, theirs.published_step, options)
        speed.add_row(label, *(f"{rate:,.0f}" for rate in rates), f"{ratio:.1f}")
        found = stages_of_a_step(ours)
        shares.add_row(label, *(f"{found[stage]:.1%}" for stage in stages))
        counts, published = our_operations(48, rows), published_operations(48, rows)
        each = [*(counts[stage] for stage in forward), sum(counts.values()), published]
        work.add_row(label, *(f"{count / 48e3:,.0f}" for count in each), f"{each[-1] / each[-2]:.1f}")
    return [speed, shares, work]


def prediction_tables(options: Options) -> list[Table]:
    """Histories predicted a second."""
    table = new_table(
        f"Next events, a prediction before every event, histories of up to {LONGEST} events: histories/s",
        "streamwise", "published thinning", "streamwise / published",
    )  # fmt: skip
    for label, rows in CASES.items():
        ours = Training.make(rows > 0, 16)
        theirs = Training.make(rows > 0, 16, **PUBLISHED)
        rates, ratio = in_turns(partial(predict, ours), partial(predict_published, theirs), options)
        table.add_row(label, *(f"{rate:,.0f}" for rate in rates), f"{ratio:,.0f}")
    return [table]


def predict(side: Training) -> int:
    """Predict before every event of all sequences; return how many predictions that were."""
    before_every_event(side.model, side.sequences, WAIT)
    return int(side.sequences.lengths.sum())


def predict_published(side: Training) -> int:
    """Predict after a random number of events of a random sequence: one prediction."""
    made = side.sequences
    row = int(torch.randint(len(made.times), (1,), generator=side.generator))
    length = int(torch.randint(1, int(made.lengths[row]) + 1, (1,), generator=side.generator))
    of_row = slice(row, row + 1)
    published_thinning(side.model, made.times[of_row, :length], made.types[of_row, :length], side.generator)
    return 1


def main(options: Options) -> None:
    torch.set_num_threads(1)
    if options.only != "live":
        difference = check_equal(torch.Generator().manual_seed(0))
        show(f"Intensities of the two schemes agree to {difference:.0e}.")
    for name, tables in (("training", training_tables), ("prediction", prediction_tables)):
        if options.only in (None, name):
            for table in tables(options):
                show(table)
    if options.only in (None, "live"):
        live_tpp.measure(live_tpp.Options())


if __name__ == "__main__":
    run(main, Options, __doc__)
