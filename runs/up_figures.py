"""The drawings of the report of a live system: its wiring, what its learners learned, what happened when.

Loading this module loads matplotlib: import it where it is used.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes

from streamwise.runs.config import RunConfig
from streamwise.runs.event_figures import likelihood_panels
from streamwise.runs.event_run_data import EventRun
from streamwise.runs.figures import (
    COLOURS,
    MUTED,
    Draw,
    Panels,
    finish_axes,
    learning_panels,
    line_style,
    prediction_panels,
    svgs,
    sweep_png,
)
from streamwise.runs.run_data import Group, Run
from streamwise.runs.texts import plain
from streamwise.runs.up_data import LearnerData, System
from streamwise.runs.up_history import Who
from streamwise.runs.up_spec import LearnerPlan, SystemSpec
from streamwise.streams.series import is_series

__all__ = ["MARKS", "Box", "Diagram", "Wire", "curve_panels", "diagram", "system_png", "time_line"]

MOST_ROWS = 60  # of a time line
MARKS = {  # what happened: matplotlib's marker, the same as a letter, the place of its colour
    "lost": ("X", "✖", 6),
    "failed": ("D", "◆", 6),
    "recovered": ("^", "▲", 2),
    "finished": ("o", "●", 2),
    "stopped": ("s", "■", 4),
}
SECONDS = 1.0, "seconds"
UNITS = ((2 * 86_400.0, 86_400.0, "days"), (2 * 3_600.0, 3_600.0, "hours"), (120.0, 60.0, "minutes"))


# ---- what was learned ----


def curve_panels(learners: Sequence[LearnerData]) -> Panels:
    """Return a panel of returns for every environment, and of likelihoods for every stream of events.

    Learners have a line each, whose place is theirs among all. A series that was predicted is drawn whole.
    """
    groups, predicting = [], []
    events: dict[str, list[EventRun]] = {}
    for learner in learners:
        run = learner.run
        if isinstance(run, Run):
            groups.append(Group(run.environment, learner.name, learner.place, [run]))
            predicting += [learner] if run.scores else []
        elif run is not None:
            events.setdefault(learner.plan.stream, []).append(run)
    panels = learning_panels(groups)
    for stream, runs in events.items():
        whose = stream if len(runs) > 1 else runs[0].details[0]
        for title, draw in likelihood_panels(runs).items():
            panels[f"{whose}: {title.lower()}"] = partial(_draw_neutral, draw)
    for learner in predicting:
        assert isinstance(learner.run, Run)
        for draw in list(prediction_panels(learner.run).values())[:1]:
            panels[f"{learner.name}: {learner.run.environment}"] = draw
    return panels


def _draw_neutral(draw: Draw, axes: Axes) -> None:
    """Draw, and let what explains all lines have the colour of none: other panels have other learners'."""
    draw(axes)
    for line in axes.get_lines():
        if str(line.get_label()).startswith(("thick: ", "thin: ")):
            line.set_color(MUTED)


def system_png(title: str, system: System) -> bytes:
    """Return the curves and the time line as one figure."""
    panels, (_, height) = _time_line(system)
    return sweep_png(title, curve_panels(system.learners), [(panels, height)] if panels else [])


# ---- what happened when ----


def time_line(system: System) -> dict[str, Markup]:
    """Return a drawing with a row for every process: bars while it was at work, marks of what happened."""
    return svgs(*_time_line(system))


def _time_line(system: System) -> tuple[Panels, tuple[float, float]]:
    rows = system.everyone[:MOST_ROWS]
    size = 6.4, 0.8 + 0.42 * len(rows)
    return ({"What happened": partial(_draw_time_line, system, rows)} if rows else {}), size


def _draw_time_line(system: System, rows: Sequence[Who], axes: Axes) -> None:
    """Draw over time at work: pauses between two drivers are left out, and a line shows where they were."""
    history = system.history
    unit, name = next(((unit, name) for least, unit, name in UNITS if history.seconds >= least), SECONDS)

    def across(time: float) -> float:
        return history.at_work(time) / unit

    for life in history.lives[1:]:
        axes.axvline(across(life.begin), color=MUTED, linewidth=1, linestyle="--")
    for row, who in enumerate(rows):
        past = history.pasts[who]
        colour = MUTED if who.kind == "memory" else line_style(system.place(who))["color"]
        bars = [(across(begin), across(end) - across(begin)) for begin, end in past.spans]
        axes.broken_barh(bars, (row - 0.11, 0.22), color=colour, alpha=0.45, linewidth=0)
        for kind, (marker, _, place) in MARKS.items():
            at = [across(time) for time, event in past.marks if event == kind]
            axes.plot(at, [row] * len(at), marker, color=COLOURS[place], markersize=6.5, markeredgewidth=0)
        title = plain(who.name) + (" (memory)" if who.kind == "memory" else "")
        # Above its row, where the longest name finds room.
        axes.annotate(title, (0.0, row), (0, 7), textcoords="offset points")
    for kind, (marker, _, place) in MARKS.items():
        if history.counts[kind]:
            style: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0}
            axes.plot([], [], marker=marker, color=COLOURS[place], label=kind, **style)
    begin = f"{datetime.fromtimestamp(history.lives[0].begin, UTC):%d %b %Y %H:%M:%S} UTC"
    pauses = ", pauses of the system left out" if len(history.lives) > 1 else ""
    finish_axes(axes, across=f"{name} at work since {begin}{pauses}")
    axes.set_xlim(0.0, max(1.01 * history.seconds / unit, 1e-9))
    axes.set_ylim(len(rows) - 0.6, -0.75)
    axes.spines.left.set_visible(False)
    axes.yaxis.set_visible(False)


# ---- who learns from what, and shares what ----

X = {"stream": (1.0, 100.0), "learner": (131.0, 106.0), "memory": (268.0, 87.0)}  # left edge, width
WIDTH = 360.0  # of a telephone, on which a unit is a pixel
LETTER, SMALL_LETTER = 6.3, 5.0  # widths
LINE_HEIGHT, SMALL_LINE_HEIGHT, MARGIN, GAP = 14.0, 11.5, 7.0, 14.0
TOP = 18.0  # room for the headings
APART = 9.0  # wires that come together
HEAD = 6.0  # of an arrow, its length


@dataclass(frozen=True)
class Box:
    """A stream, a learner or a memory. title, about: lines; colour: a variable of the page."""

    kind: str
    name: str
    title: list[str]
    about: list[str]
    x: float
    y: float
    width: float
    height: float
    colour: str
    is_stacked: bool = False

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.x + self.width

    @property
    def texts(self) -> list[tuple[float, str, bool]]:
        """Its lines, each with its height, and whether it is one of the title."""
        tall = LINE_HEIGHT * len(self.title) + SMALL_LINE_HEIGHT * len(self.about)
        at = self.y + (self.height - tall) / 2 - 3.0
        lines = []
        for text, is_title in [(text, True) for text in self.title] + [(text, False) for text in self.about]:
            at += LINE_HEIGHT if is_title else SMALL_LINE_HEIGHT
            lines.append((at, text, is_title))
        return lines


@dataclass(frozen=True)
class Wire:
    """An arrow: what is at its beginning goes to what is at its end."""

    source: Box
    target: Box
    begin: tuple[float, float]
    end: tuple[float, float]
    says: str
    colour: str

    @property
    def path(self) -> str:
        """The line, as SVG has it."""
        (x, y), (to_x, to_y) = self.begin, self.end
        towards = 1.0 if to_x > x else -1.0
        to_x -= towards * HEAD / 2  # the head covers the rest
        bend = 0.55 * (to_x - x)
        return f"M{x:.1f} {y:.1f}C{x + bend:.1f} {y:.1f} {to_x - bend:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}"

    @property
    def head(self) -> str:
        """The head, as SVG has it."""
        (x, _), (to_x, to_y) = self.begin, self.end
        back = to_x - HEAD if to_x > x else to_x + HEAD
        return f"M{to_x:.1f} {to_y:.1f}L{back:.1f} {to_y - 3.5:.1f}V{to_y + 3.5:.1f}Z"


@dataclass(frozen=True)
class Diagram:
    """Streams on the left, learners, memories on the right, and the arrows between them."""

    boxes: list[Box]
    wires: list[Wire]
    headings: list[tuple[float, str]]
    width: float
    height: float


def diagram(spec: SystemSpec, chunks: Mapping[str, int] | None = None) -> Diagram:
    """Lay out who learns from what, and shares what. chunks: of memories, where that is known."""
    plans = spec.learners
    learners: dict[str, Box] = {}
    streams: dict[str, Box] = {}
    y = TOP
    for stream in dict.fromkeys(plan.stream for plan in plans):
        mine = [(place, plan) for place, plan in enumerate(plans) if plan.stream == stream]
        boxes = [_learner_box(plan, place) for place, plan in mine]
        box = _box("stream", stream, _about_stream(mine[0][1]), "muted", APART * (len(mine) + 1))
        tall = sum(one.height + GAP for one in boxes) - GAP
        room = max(tall, box.height)
        streams[stream] = _at(box, y + (room - box.height) / 2)
        at = y + (room - tall) / 2
        for one in boxes:
            learners[one.name] = _at(one, at)
            at += one.height + GAP
        y += room + GAP
    memories = _memories(spec, learners, chunks or {})
    everything = [*streams.values(), *learners.values(), *memories.values()]
    wires = [*_wires_of_streams(plans, streams, learners), *_wires_of_memories(plans, memories, learners)]
    return Diagram(
        everything,
        wires,
        [(X[kind][0], name) for kind, name in _headings(streams, learners, memories)],
        WIDTH if memories else X["learner"][0] + X["learner"][1] + 5.0,
        max(box.y + box.height for box in everything) + 5.0,
    )


def _headings(*columns: Mapping[str, Box]) -> Iterable[tuple[str, str]]:
    plurals = {"stream": "streams", "learner": "learners", "memory": "memories"}
    for (kind, plural), boxes in zip(plurals.items(), columns, strict=True):
        if boxes:
            yield kind, kind if len(boxes) == 1 else plural


def _memories(spec: SystemSpec, learners: Mapping[str, Box], chunks: Mapping[str, int]) -> dict[str, Box]:
    """Lay out memories, each beside the middle of those who share it, as far as there is room."""
    found = []
    for name, settings in spec.memories.items():
        mine = [plan for plan in spec.learners if plan.memory == name]
        middles = [_middle(learners[plan.name]) for plan in mine]
        capacity = f"{settings.capacity:,} chunks"
        about = f"{chunks[name]:,} of {capacity}" if name in chunks else capacity
        wires = sum((plan.reads is not None) + (plan.writes is not None) for plan in mine)
        about += f", {settings.shards} processes" if settings.shards > 1 else ""
        box = _box("memory", name, about, "muted", APART * (wires + 1), is_stacked=settings.shards > 1)
        found.append((sum(middles) / len(middles), box))
    y, placed = TOP, {}
    for middle, box in sorted(found, key=lambda pair: pair[0]):
        y = max(y, middle - box.height / 2)
        placed[box.name] = _at(box, y)
        y += box.height + GAP
    return placed


def _wires_of_streams(
    plans: Sequence[LearnerPlan], streams: Mapping[str, Box], learners: Mapping[str, Box]
) -> Iterable[Wire]:
    for name, box in streams.items():
        mine = [plan for plan in plans if plan.stream == name]
        for plan, height in zip(mine, _spread(box, len(mine)), strict=True):
            to = learners[plan.name]
            says = f"{plan.name} learns from {name}"
            yield Wire(box, to, (box.right, height), (to.x, _middle(to)), says, "muted")


def _wires_of_memories(
    plans: Sequence[LearnerPlan], memories: Mapping[str, Box], learners: Mapping[str, Box]
) -> Iterable[Wire]:
    for name, box in memories.items():
        mine = sorted((plan for plan in plans if plan.memory == name), key=lambda plan: learners[plan.name].y)
        ways = [(plan, way) for plan in mine for way in ("writes", "reads") if getattr(plan, way)]
        for (plan, way), height in zip(ways, _spread(box, len(ways)), strict=True):
            learner = learners[plan.name]
            aside = APART / 2 * (1 if way == "reads" else -1) if plan.reads and plan.writes else 0.0
            here, there = (learner.right, _middle(learner) + aside), (box.x, height)
            says = f"{plan.name} {way} {name}"
            if way == "writes":
                yield Wire(learner, box, here, there, says, learner.colour)
            else:
                yield Wire(box, learner, there, here, says, learner.colour)


def _spread(box: Box, wires: int) -> list[float]:
    """Return where so many wires come to an edge of a box."""
    return [box.y + box.height * (place + 1) / (wires + 1) for place in range(wires)]


def _middle(box: Box) -> float:
    return box.y + box.height / 2


def _learner_box(plan: LearnerPlan, place: int) -> Box:
    colour = f"series-{place % len(COLOURS)}"
    return _box("learner", plan.name, plan.about, colour, 0.0, is_stacked=plan.workers > 1)


def _about_stream(plan: LearnerPlan) -> str:
    """The environment, or where samples come from: without folders, for which a box has no room."""
    if isinstance(plan.config, RunConfig) and not is_series(plan.config.environment):
        return plan.config.environment
    sources = [plan.config.environment] if isinstance(plan.config, RunConfig) else plan.config.sources
    first, *others = [source.partition("?")[0] for source in sources]
    scheme, _, rest = first.partition(":")
    more = f" and {len(others)} more" if others else ""
    return f"{scheme}: {rest.rstrip('/').rpartition('/')[2]}{more}"


def _box(
    kind: str, name: str, about: str, colour: str, least_height: float, *, is_stacked: bool = False
) -> Box:
    x, width = X[kind]
    inside = width - 2 * MARGIN
    title = _wrapped(name, int(inside / LETTER))
    lines = _wrapped(plain(about, 80), int(inside / SMALL_LETTER))
    height = LINE_HEIGHT * len(title) + SMALL_LINE_HEIGHT * len(lines) + 2 * MARGIN
    return Box(kind, name, title, lines, x, 0.0, width, max(height, least_height), colour, is_stacked)


def _wrapped(text: str, letters: int) -> list[str]:
    """Return text in at most three lines, broken also after what joins the words of a name."""
    spaced = re.sub(r"([/?&_])", r"\1 ", text)
    lines = textwrap.wrap(spaced, letters, max_lines=3, placeholder="…")
    return [re.sub(r"([/?&_]) ", r"\1", line) for line in lines]


def _at(box: Box, y: float) -> Box:
    return replace(box, y=y)
