"""Environments as streams: making them by name, stepping them for ever.

Here is what stands between a named environment and an agent: what names stand for (`names`, `libraries`), how
one is made (`make`), the few shapes that observations and actions come in (`wrappers`), the endless loop
(`stream`), and their full state as JSON, to go on from in another process (`snapshot`). And our own
environments, which test memories (`ballet`, `probes`, `rooms`, `routes`), and worlds that change
(`changing`). Not here: normalization of observations and rewards, which belongs to the learner's own state;
learners; runs.
"""

from __future__ import annotations

from streamwise.envs.make import check_families, make
from streamwise.envs.names import environment_names, family_of
from streamwise.envs.snapshot import NoSnapshotError, capture, restore, why_not
from streamwise.envs.stream import EnvironmentStream

__all__ = [
    "EnvironmentStream",
    "NoSnapshotError",
    "capture",
    "check_families",
    "environment_names",
    "family_of",
    "make",
    "restore",
    "why_not",
]
