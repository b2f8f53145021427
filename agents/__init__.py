"""Learners, one algorithm a file, and the parts they share: networks, statistics, step-size rules.

They know nothing of Ray, runs, or the environment behind a transition.
"""

from __future__ import annotations

import difflib
from typing import Any

from streamwise.agents.learner import Agent, Learner, Metrics, Predictor, State
from streamwise.agents.settings import StreamSettings
from streamwise.agents.step_sizes import StepSizeRule
from streamwise.agents.stream_ac import StreamAC, StreamACConfig
from streamwise.agents.stream_q import StreamQ, StreamQConfig
from streamwise.agents.stream_sarsa import StreamSARSA, StreamSARSAConfig
from streamwise.agents.stream_td import StreamTD, StreamTDConfig
from streamwise.streams import UsageError

__all__ = [
    "AGENTS",
    "Agent",
    "Learner",
    "Metrics",
    "Predictor",
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
]

AGENTS: dict[str, Any] = {
    "stream-ac": StreamAC,
    "stream-q": StreamQ,
    "stream-sarsa": StreamSARSA,
    "stream-td": StreamTD,
}


def agent_class(name: str) -> Any:
    """Return the learner of this name. Raises UsageError, naming the nearest, for an unknown one."""
    if name not in AGENTS:
        close = difflib.get_close_matches(name, AGENTS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"no agent is named {name!r}.{hint} Choose one of: {', '.join(AGENTS)}.")
    return AGENTS[name]
