"""What happened in a live system, from its events: bars lie in the lives of its drivers."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.runs.up_history import Who, read_history


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["up", "down", "started", "lost", "failed", "finished", "stopped", "recovered"]),
            st.sampled_from(["ann", "shop/0", "shop/1", "rooms", "rooms/1"]),
            st.floats(0.0, 100.0),
        ),
        max_size=30,
    )
)
def test_whatever_happened_bars_lie_in_the_lives_of_drivers(steps):
    time, events = 1e9, []
    for event, name, pause in steps:
        time += pause
        kind = "memory" if name.startswith("rooms") else "learner"
        events.append({"time": time, "event": event, kind: name})
    history = read_history(events, ["rooms"], time + 1.0)
    assert history.counts.total() == sum(event != "down" for event, _, _ in steps)
    assert bool(history.pasts) == bool(history.lives)
    ends = [end for life in history.lives for end in life]
    assert ends == sorted(ends)
    for past in history.pasts.values():
        ends = [end for span in past.spans for end in span]
        assert ends == sorted(ends)
        for span in past.spans:
            assert any(life.begin <= span.begin and span.end <= life.end for life in history.lives)
    at = [history.at_work(event["time"]) for event in events]
    assert at == sorted(at)
    assert all(0.0 <= seconds <= history.seconds + 1e-3 for seconds in at)


def test_bars_end_where_a_process_did_and_a_driver_that_was_killed():
    def at(time, event, **what):
        return {"time": time, "event": event, **what}

    events = [
        at(10, "up"), at(11, "started", learner="ann"), at(15, "lost", learner="ann"),
        at(16, "started", learner="ann"), at(18, "lost", memory="rooms"), at(19, "recovered", memory="rooms"),
        at(100, "up"), at(102, "started", learner="ann"), at(110, "finished", learner="ann"), at(111, "down"),
    ]  # fmt: skip
    history = read_history(events, ["rooms"])
    assert history.lives == [(10, 19), (100, 111)]
    assert history.seconds == 20.0
    ann, rooms = history.pasts[Who("learner", "ann")], history.pasts[Who("memory", "rooms")]
    assert ann.spans == [(11, 15), (16, 19), (102, 110)]
    assert ann.restarts == 1
    assert rooms.spans == [(10, 18), (19, 19), (100, 111)]
    assert history.at_work(102) == 11.0
    running = read_history(events[:3], ["rooms"], now=40.0)
    assert running.lives == [(10, 40)]
    assert running.pasts[Who("memory", "rooms")].spans == [(10, 40)]
    assert math.isinf(read_history([], ["rooms"]).seconds) is False
