"""What tests of synthetic events share: sources, and the events that come of them."""

from __future__ import annotations

from streamwise.streams.event import Event
from streamwise.streams.synthetic import SyntheticSource

URLS = {
    "hawkes": ("hawkes", {"scales": "60,3600"}),
    "hawkes without excitation": ("hawkes", {"branching": "0", "types": "1"}),
    "poisson": ("poisson", {"rates": "30,0,70"}),
    "lognormal": ("renewal", {}),
    "gamma": ("renewal", {"gaps": "gamma", "cv": "2"}),
    "abrupt": ("drift", {"period": "7200"}),
    "gradual": ("drift", {"shape": "gradual", "period": "20events", "regimes": "3"}),
    "recurring": ("drift", {"shape": "recurring", "period": "15events"}),
}


def opened(name, **more):
    kind, query = URLS[name]
    return SyntheticSource.from_url_parts(kind, query | {k: str(v) for k, v in more.items()})


def drained(source, limit=1_000):
    """Return all that is left, as events, and the position after each poll."""
    events, positions = [], []
    while not source.finished:
        [records] = source.poll(limit, 0.0, set())
        events += [Event(*value) for value in records.values]
        positions.append(records.next_position)
    return events, positions
