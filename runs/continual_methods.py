"""What `streamwise continual` compares: learners, what is put around them, and what each is told.

[methods."replay of 50"]          # a name, as tables have it
method = "replay"                 # what is put around the learner; "nothing" for the learner alone
capacity = 50                     # settings of it

[methods."EWC with replay"]
method = ["replay", "ewc"]        # the innermost first; settings of each in a table of its name
ewc.strength = 10.0
learner.step_size = 0.05          # of the learner itself
consolidate = "adwin"             # instead of what the specification says
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from streamwise.agents.classifier import Classifier, ClassifierConfig
from streamwise.agents.nearest_mean import NearestMean
from streamwise.agents.window_tpp import WindowTPP, WindowTPPConfig
from streamwise.memory.continual.answer_style import AnswerStyles
from streamwise.memory.continual.compression_memory import CompressionMemory
from streamwise.memory.continual.consolidation import ConsolidateAtDrift, ConsolidateEvery
from streamwise.memory.continual.ewc import OnlineEWC
from streamwise.memory.continual.key_value_bottleneck import KeyValueBottleneck
from streamwise.memory.continual.model_surgery import ModelSurgery
from streamwise.memory.continual.prioritized_finetuning import PrioritizedFinetuning
from streamwise.memory.continual.reg_lora import RegLoRA
from streamwise.memory.continual.regime_adapters import RegimeAdapters
from streamwise.memory.continual.relation_distillation import RelationDistillation
from streamwise.memory.continual.replay import Replay
from streamwise.memory.continual.state_bottleneck import StateBottleneck
from streamwise.memory.continual.type_relations import TypeRelations
from streamwise.memory.continual.view_batch import ViewBatch
from streamwise.memory.continual.wrapped import Wrapped
from streamwise.streams import UsageError
from streamwise.streams.datasets import dataset_stream
from streamwise.streams.errors import nearest
from streamwise.streams.regimes import regime_stream

__all__ = [
    "AROUND",
    "WORLDS",
    "MethodSpec",
    "World",
    "check_consolidate",
    "check_settings",
    "make_learner",
    "method_spec",
    "world_of",
]

Settings = dict[str, Any]


@dataclass(frozen=True)
class MethodSpec:
    """One method of a comparison.

    base: the learner, "classifier" or "nearest-mean". around: what is put around it, the innermost first,
    each with its settings. learner: settings of it. consolidate: "boundaries", "never", "every:SAMPLES",
    "adwin" or "page-hinkley". mixed: whether all experiences are mixed, as no stream is: the anchor of what
    could be had.
    """

    name: str
    base: str
    around: tuple[tuple[str, Settings], ...]
    learner: Settings
    consolidate: str
    mixed: bool = False

    @property
    def told(self) -> str:
        """What it knows beside examples, in words."""
        known = [str(settings["inputs"]) for name, settings in self.around if settings.get("inputs")]
        words = {"all": "inputs of all experiences", "first": "inputs of the first"}
        told = [words[inputs] for inputs in known]
        uses = [AROUND[name].consolidates(settings) for name, settings in self.around]
        if any(uses) and self.consolidate == "boundaries":
            told.append("boundaries")
        return ", ".join(told)


# ---- what there is


@dataclass(frozen=True)
class World:
    """A kind of streams, the learner that lives in them, and how it is tested.

    open: of a URL, a stream with `segments`, `training` and `tests`. config: the learner's settings. make: of
    these, a stream and a seed, the learner. test: of a learner and one of the stream's tests, a score, higher
    is better. online: the metric of `learn_one` that says how well a sample was predicted. unit: of scores.
    """

    open: Callable[[str], Any]
    config: type
    make: Callable[[Any, Any, int], Any]
    test: Callable[[Any, Any], float]
    online: str
    unit: Literal["accuracy", "nats"]


def _accuracy(learner: Any, test: Any) -> float:
    """Return the share of examples whose class is predicted, learning nothing."""
    found: Tensor = learner.scores(torch.from_numpy(test.features)).argmax(1)
    return float((found.numpy() == test.labels).mean())


def _log_likelihood(learner: Any, test: Any) -> float:
    """Return the mean log-likelihood of an event, in nats, learning nothing."""
    while isinstance(learner, Wrapped):  # what is around a model has replaced the network inside
        learner = learner.learner
    found: float = learner.log_likelihood(torch.from_numpy(test.features))
    return found


def _window_model(config: WindowTPPConfig, stream: Any, seed: int) -> WindowTPP:
    return WindowTPP(stream.types, replace(config, unit=stream.unit, length=stream.length), seed=seed)


WORLDS = {
    "regimes": World(
        regime_stream, WindowTPPConfig, _window_model, _log_likelihood, "log_likelihood", "nats"
    ),
    "dataset": World(
        dataset_stream,
        ClassifierConfig,
        lambda config, stream, seed: Classifier(stream.features, stream.classes, config, seed=seed),
        _accuracy,
        "correct",
        "accuracy",
    ),
}


def world_of(url: str) -> World:
    """Return the world of a stream's URL. Raises UsageError if there is none."""
    kind = url.partition(":")[0]
    if ":" not in url or kind not in WORLDS:
        raise UsageError(f"{url!r} is no stream whose world changes; use {':... or '.join(WORLDS)}:...")
    return WORLDS[kind]


@dataclass(frozen=True)
class Around:
    """Something to put around a learner.

    make: of a learner, the stream and a seed, with settings by name. consolidates: whether, with its
    settings, it has a use for `consolidate`. of: where the settings' names, types and defaults are read from.
    beforehand: settings that `make` takes and `of` does not, with their types: of what is done before the
    stream begins. units: the worlds, by the unit of their scores, whose learners it goes around.
    """

    make: Callable[..., Any]
    of: Callable[..., Any]
    consolidates: Callable[[Settings], bool] = lambda _: False
    beforehand: tuple[tuple[str, Any], ...] = ()
    units: tuple[str, ...] = ("accuracy",)


def _plain(kind: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes a method that needs the learner, a seed and its settings."""
    seeded = "seed" in inspect.signature(kind).parameters

    def make(learner: Any, stream: Any, seed: int, **settings: Any) -> Any:
        return kind(learner, **({"seed": seed} if seeded else {}), **settings)

    return make


def _relations(learner: Any, stream: Any, seed: int, **settings: Any) -> RelationDistillation:
    return RelationDistillation(learner, stream.classes, seed=seed, **settings)


def _styles(learner: Any, stream: Any, seed: int, **settings: Any) -> AnswerStyles:
    return AnswerStyles(learner, stream.classes, seed=seed, **settings)


def _inputs(stream: Any, of: str) -> Tensor:
    """Return inputs without labels, of all experiences or of the first."""
    seen = stream.training[:1] if of == "first" else stream.training
    return torch.from_numpy(np.concatenate([part.features for part in seen]))


def _compressed(
    learner: Any, stream: Any, seed: int, inputs: str = "", episodes: int = 400, **settings: Any
) -> CompressionMemory:
    """Make a memory whose compressor was trained on made-up classes of inputs without labels, or not."""
    found = CompressionMemory(learner, stream.features, stream.classes, seed=seed, **settings)
    if inputs:
        found.train_on(_inputs(stream, inputs), episodes=episodes)
    return found


def _bottleneck(
    learner: Any, stream: Any, seed: int, inputs: str = "", epochs: int = 10, **settings: Any
) -> KeyValueBottleneck:
    """Make a bottleneck whose keys have seen inputs, without labels: of all experiences, or of the first."""
    found = KeyValueBottleneck(learner, stream.features, stream.classes, seed=seed, **settings)
    if inputs:
        found.move_keys(_inputs(stream, inputs), epochs)
    return found


_ANY = ("accuracy", "nats")


def _yes(_: Settings) -> bool:
    return True


AROUND = {
    "replay": Around(_plain(Replay), Replay, units=_ANY),
    "ewc": Around(_plain(OnlineEWC), OnlineEWC, consolidates=_yes, units=_ANY),
    "finetuning": Around(
        _plain(PrioritizedFinetuning),
        PrioritizedFinetuning,
        consolidates=lambda settings: settings.get("final_steps") != 0,
        units=_ANY,
    ),
    "regime-adapters": Around(_plain(RegimeAdapters), RegimeAdapters, consolidates=_yes, units=("nats",)),
    "state-bottleneck": Around(_plain(StateBottleneck), StateBottleneck, consolidates=_yes, units=("nats",)),
    "type-relations": Around(_plain(TypeRelations), TypeRelations, consolidates=_yes, units=("nats",)),
    "view-batch": Around(_plain(ViewBatch), ViewBatch),
    "relation-distillation": Around(_relations, RelationDistillation, consolidates=_yes),
    "model-surgery": Around(_plain(ModelSurgery), ModelSurgery, consolidates=_yes),
    "reg-lora": Around(_plain(RegLoRA), RegLoRA, consolidates=_yes, units=_ANY),
    "answer-styles": Around(_styles, AnswerStyles),
    "compression-memory": Around(
        _compressed, CompressionMemory, beforehand=(("inputs", Literal["all", "first"]), ("episodes", int))
    ),
    "bottleneck": Around(
        _bottleneck, KeyValueBottleneck, beforehand=(("inputs", Literal["all", "first"]), ("epochs", int))
    ),
}  # fmt: skip
_ALONE = ("nothing", "nearest-mean")
_GIVEN = ("self", "learner", "seed", "width", "outputs", "classes", "encoder")  # by `make`, not by users


# ---- from a specification


def method_spec(name: str, table: Mapping[str, Any], consolidate: str, where: str) -> MethodSpec:
    """Read the table of one method. Raises UsageError, in a line that says where, for what it cannot be."""
    table, where = dict(table), f"{where}: method {name!r}"
    names = table.pop("method", "nothing")
    learner = table.pop("learner", {})
    mixed = table.pop("mixed", False)
    consolidate = table.pop("consolidate", consolidate)
    names = [names] if isinstance(names, str) else names
    known = [*_ALONE, *AROUND]
    for each in names:
        if each not in known:
            raise UsageError(f"{where}: there is no {each!r}.{nearest(str(each), known)}")
    if len(names) > 1 and set(names) & set(_ALONE):
        raise UsageError(f"{where}: {names[0]!r} goes with no other.")
    around = []
    for each in names:
        settings = table if len(names) == 1 else table.pop(each, {})
        if each in AROUND:
            around.append((each, _checked(AROUND[each], settings, f"{where}: {each}")))
        elif settings:
            raise UsageError(f"{where}: {each!r} has no setting {next(iter(settings))!r}.")
    if len(names) > 1 and table:
        key = next(iter(table))
        raise UsageError(f"{where}: unknown key {key!r}.{nearest(key, names)}")
    check_consolidate(consolidate, where)
    base = "nearest-mean" if "nearest-mean" in names else "classifier"
    return MethodSpec(name, base, tuple(around), dict(learner), consolidate, bool(mixed))


def check_consolidate(text: Any, where: str) -> None:
    """Raise UsageError unless this says when to consolidate."""
    known = ("boundaries", "never", "adwin", "page-hinkley", "every:500")
    every = str(text).removeprefix("every:")
    if text in known or (str(text).startswith("every:") and every.isdecimal() and int(every) > 0):
        return
    raise UsageError(f"{where}: consolidate is {text!r}; use one of {', '.join(known)}.")


def _checked(around: Around, settings: Any, where: str) -> Settings:
    """Return settings of the right types. Raises UsageError for others."""
    if not isinstance(settings, dict):
        raise UsageError(f"{where}: {settings!r} is no table of settings.")
    hints = typing.get_type_hints(around.of.__init__ if inspect.isclass(around.of) else around.of)
    known = {key: hints[key] for key in inspect.signature(around.of).parameters if key not in _GIVEN} | dict(
        around.beforehand
    )
    found = {}
    for key, value in settings.items():
        if key not in known:
            raise UsageError(f"{where}: unknown setting {key!r}.{nearest(key, known)}")
        try:
            found[key] = msgspec.convert(value, known[key])
        except msgspec.ValidationError as error:
            raise UsageError(f"{where}: {key} is {value!r}: {error}.") from None
    return found


def make_learner(method: MethodSpec, learner: Mapping[str, Any], world: World, stream: Any, seed: int) -> Any:
    """Make what a method is, for a stream. learner: settings that hold unless the method has others.

    Raises UsageError for settings that a method refuses.
    """
    if method.base == "nearest-mean":
        if world.unit != "accuracy":
            raise UsageError(
                f"method {method.name!r}: 'nearest-mean' is for streams of classes, which these are not."
            )
        return NearestMean(stream.features, stream.classes)
    where = f"method {method.name!r}"
    made = world.make(_learner_config(world, {**learner, **method.learner}, where), stream, seed)
    try:
        for name, settings in method.around:
            if world.unit not in AROUND[name].units:
                kinds = "classes" if world.unit == "nats" else "events"
                raise UsageError(f"{where}: {name!r} is for streams of {kinds}, which these are not.")
            made = AROUND[name].make(made, stream, seed, **settings)
        if method.consolidate.startswith("every:"):
            made = ConsolidateEvery(made, samples=int(method.consolidate.removeprefix("every:")))
        elif method.consolidate in ("adwin", "page-hinkley"):
            detector: Any = method.consolidate
            made = ConsolidateAtDrift(made, detector=detector, watched=world.online)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{where}: {error}") from None
    return made


def _learner_config(world: World, settings: Mapping[str, Any], where: str) -> Any:
    known = [option.name for option in fields(world.config)]
    for key in settings:
        if key not in known:
            raise UsageError(f"{where}: learner: unknown setting {key!r}.{nearest(key, known)}")
    try:
        return msgspec.convert(dict(settings), world.config)
    except (msgspec.ValidationError, UsageError) as error:
        raise UsageError(f"{where}: learner: {error}") from None


def check_settings(method: MethodSpec, learner: Mapping[str, Any], world: World, stream: Any) -> None:
    """Raise UsageError for settings that a method refuses, without what takes long beforehand."""
    quick = [
        (name, {key: value for key, value in settings.items() if key not in dict(AROUND[name].beforehand)})
        for name, settings in method.around
    ]
    make_learner(replace(method, around=tuple(quick)), learner, world, stream, 0)
