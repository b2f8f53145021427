"""Learners, one algorithm a file, and the parts they share: networks, statistics, step-size rules.

Agents (`stream_*`), event models that learn from every event (`poisson`, `counts`, `hawkes`, `prompt_tpp`),
point processes that learn from windows (`nhp`, `attnhp`, `window_tpp`), classifiers (`classifier`,
`nearest_mean`). They know nothing of Ray, runs, or the environment behind a transition.
"""

from __future__ import annotations

from typing import Any

from streamwise.agents.counts import Counts, CountsConfig
from streamwise.agents.event_model import EventModel, Prediction
from streamwise.agents.hawkes import Hawkes, HawkesConfig
from streamwise.agents.learner import Agent, Learner, Metrics, Predictor, State
from streamwise.agents.poisson import Poisson, PoissonConfig
from streamwise.agents.prompt_settings import PromptTPPConfig
from streamwise.agents.prompt_tpp import PromptTPP
from streamwise.agents.settings import StreamSettings
from streamwise.agents.step_sizes import StepSizeRule
from streamwise.agents.stream_ac import StreamAC, StreamACConfig
from streamwise.agents.stream_q import StreamQ, StreamQConfig
from streamwise.agents.stream_sarsa import StreamSARSA, StreamSARSAConfig
from streamwise.agents.stream_td import StreamTD, StreamTDConfig
from streamwise.streams import UsageError
from streamwise.streams.errors import meant

__all__ = [
    "AGENTS",
    "EVENT_MODELS",
    "Agent",
    "Counts",
    "CountsConfig",
    "EventModel",
    "Hawkes",
    "HawkesConfig",
    "Learner",
    "Metrics",
    "Poisson",
    "PoissonConfig",
    "Prediction",
    "Predictor",
    "PromptTPP",
    "PromptTPPConfig",
    "State",
    "StepSizeRule",
    "StreamAC",
    "StreamACConfig",
    "StreamQ",
    "StreamQConfig",
    "StreamSARSA",
    "StreamSARSAConfig",
    "StreamSettings",
    "StreamTD",
    "StreamTDConfig",
    "agent_class",
    "event_model_class",
]

AGENTS: dict[str, Any] = {
    "stream-ac": StreamAC,
    "stream-q": StreamQ,
    "stream-sarsa": StreamSARSA,
    "stream-td": StreamTD,
}

EVENT_MODELS: dict[str, Any] = {
    "poisson": Poisson,
    "hawkes": Hawkes,
    "counts": Counts,
    "prompt-tpp": PromptTPP,
}


def agent_class(name: str) -> Any:
    """Return the learner of this name. Raises UsageError, naming the nearest, for an unknown one."""
    return _named(name, AGENTS, "agent")


def event_model_class(name: str) -> Any:
    """Return the event model of this name. Raises UsageError, naming the nearest, for an unknown one."""
    return _named(name, EVENT_MODELS, "event model")


def _named(name: str, known: dict[str, Any], what: str) -> Any:
    if name not in known:
        raise UsageError(
            f"no {what} is named {name!r}.{meant(name, known)} Choose one of: {', '.join(known)}."
        )
    return known[name]
