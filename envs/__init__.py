"""Environments as streams: making them by name, stepping them for ever.

Here is what stands between a named environment and an agent: names and their libraries (`make`), the few
shapes that observations and actions come in (`wrappers`), the endless loop (`stream`). Not here:
normalization of observations and rewards, which belongs to the learner's own state; learners; runs.
"""

from __future__ import annotations

from streamwise.envs.make import check_families, environment_names, family_of, make
from streamwise.envs.stream import EnvironmentStream

__all__ = ["EnvironmentStream", "check_families", "environment_names", "family_of", "make"]
