"""Prequential scores against plain loops, however the events were cut into polls."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from streamwise.runs.prequential import Prequential, ks_distance


def some_scores(count, seed=0, first_share=0.1, shift_at=None):
    generator = np.random.default_rng(seed)
    scores = np.empty((count, 7))
    scores[:, 0] = generator.exponential(100.0, count)
    scores[:, 1] = generator.normal(-5.0, 1.0, count)
    scores[:, 2] = -generator.exponential(1.0, count)
    scores[:, 3] = generator.exponential(1.0, count)
    scores[:, 4] = generator.integers(4, size=count)
    scores[:, 5] = 100.0
    scores[:, 6] = generator.integers(4, size=count)
    scores[generator.random(count) < first_share, :4:3] = math.nan
    scores[np.isnan(scores[:, 0]), 1] = math.nan
    if shift_at is not None:
        scores[shift_at:, 1] -= 1.5
    return scores


@given(cuts=st.lists(st.integers(0, 600), max_size=6), resume_at=st.integers(0, 6))
@settings(deadline=None, max_examples=40)
def test_scores_do_not_depend_on_polls_or_restarts(cuts, resume_at):
    scores = some_scores(600)
    whole, cut = Prequential(60.0), Prequential(60.0)
    whole.add(scores)
    ends = [0, *sorted(cuts), 600]
    for i in range(len(ends) - 1):
        cut.add(scores[ends[i] : ends[i + 1]])
        if i == resume_at:
            state = json.loads(json.dumps(cut.state()))
            cut = Prequential(60.0)
            cut.resume(state)
    assert cut.state() == whole.state()


def test_scores_equal_a_plain_loop():
    scores, unit = some_scores(500), 60.0
    measured = Prequential(unit)
    measured.add(scores[:350])
    measured.close_window()
    measured.add(scores[350:])
    for suffix, part in (("", scores), ("_window", scores[350:])):
        scored = [row for row in part if not math.isnan(row[0])]
        n = len(scored)
        time = sum(row[1] + math.log(unit) for row in scored) / n
        loss = -sum(row[2] for row in scored) / n
        misses = [(row[5] - row[0]) / unit for row in scored]
        found = measured.scores()
        assert found[f"time_log_likelihood{suffix}"] == pytest.approx(time)
        assert found[f"type_log_loss{suffix}"] == pytest.approx(loss)
        assert found[f"log_likelihood{suffix}"] == pytest.approx(time - loss)
        assert found[f"type_error{suffix}"] == sum(row[4] != row[6] for row in scored) / n
        assert found[f"time_rmse{suffix}"] == pytest.approx(math.sqrt(sum(m * m for m in misses) / n))
        assert found[f"time_mae{suffix}"] == pytest.approx(sum(map(abs, misses)) / n)
    by_type = measured.type_scores()
    for kind in range(4):
        mine = [row for row in scores if row[6] == kind and not math.isnan(row[0])]
        assert by_type["scored"][kind] == len(mine)
        assert by_type["type_error"][kind] == sum(row[4] != kind for row in mine) / len(mine)
        assert by_type["type_log_loss"][kind] == pytest.approx(-sum(row[2] for row in mine) / len(mine))


def test_the_distance_is_that_of_kolmogorov_and_smirnov_over_the_newest_residuals():
    scores = some_scores(4_000)
    measured = Prequential()
    measured.add(scores)
    newest = scores[~np.isnan(scores[:, 0]), 3][-1_000:]
    assert measured.scores()["ks"] == pytest.approx(stats.kstest(newest, "expon").statistic)
    assert (
        measured.scores()["ks"] < measured.scores()["ks_critical"] == pytest.approx(1.358 / math.sqrt(1000))
    )
    scores[:, 3] *= 1.5
    measured.add(scores)
    assert measured.scores()["ks"] > 2 * measured.scores()["ks_critical"]


def test_before_anything_is_scored_there_are_no_scores():
    measured = Prequential()
    measured.add(some_scores(3, first_share=1.1))
    found = measured.scores()
    assert found["events"] == 3
    assert math.isnan(found["log_likelihood"])
    assert math.isnan(found["ks"])


def test_a_worse_fit_raises_the_alarm_soon_and_a_steady_one_does_not():
    steady, shifted = Prequential(), Prequential()
    steady.add(some_scores(20_000))
    shifted.add(some_scores(20_000, shift_at=10_000))
    assert steady.drift_alarms == 0
    assert shifted.drift_alarms >= 1
    first = Prequential()
    for at in range(0, 20_000, 50):
        first.add(some_scores(20_000, shift_at=10_000)[at : at + 50])
        if first.drift_alarms:
            break
    assert 10_000 < first.last_alarm < 10_400


@given(st.lists(st.floats(0.0, 50.0), min_size=1, max_size=50))
def test_the_distance_equals_scipys(residuals):
    assert ks_distance(np.array(residuals)) == pytest.approx(stats.kstest(residuals, "expon").statistic)
