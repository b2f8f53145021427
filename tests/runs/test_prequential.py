"""Prequential scores against plain loops, however the events were cut into polls."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from streamwise.runs.prequential import Prequential, activity_name, baselines, ks_distance, merged_scores
from streamwise.streams import UsageError

EXTRAS = ("confidence", "key_events", "slow_log_likelihood", "slow_type_error")


def some_scores(count, seed=0, first_share=0.1, shift_at=None, extras=()):
    generator = np.random.default_rng(seed)
    scores = np.empty((count, 7 + len(extras)))
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
    if extras:
        generator = np.random.default_rng(seed + 1)
        scores[:, 7] = generator.random(count)
        scores[:, 8] = generator.integers(1, 40, count)
        scores[:, 9] = generator.normal(-6.0, 1.0, count)
        scores[:, 10] = generator.integers(2, size=count)
        scores[:, 7:][generator.random((count, 4)) < 0.2] = math.nan
    return scores


def by_hand(scores):
    """Return the scored rows as lists."""
    return [row for row in scores.tolist() if not math.isnan(row[0])]


@given(
    cuts=st.lists(st.integers(0, 9_000), max_size=6),
    resume_at=st.integers(0, 6),
    extras=st.sampled_from([(), EXTRAS]),
)
@settings(deadline=None, max_examples=60)
def test_scores_do_not_depend_on_polls_or_restarts(cuts, resume_at, extras):
    scores = some_scores(9_000, extras=extras)  # more than two blocks of fading sums
    whole, cut = Prequential(60.0, extras), Prequential(60.0, extras)
    whole.add(scores)
    ends = [0, *sorted(cuts), 9_000]
    for i in range(len(ends) - 1):
        cut.add(scores[ends[i] : ends[i + 1]])
        if i == resume_at:
            state = json.loads(json.dumps(cut.state()))
            cut = Prequential(60.0, extras)
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


@pytest.mark.parametrize("count", [700, 10_000])
def test_fading_scores_equal_the_plain_recursion(count):
    scores, unit = some_scores(count, extras=EXTRAS), 60.0
    measured = Prequential(unit, EXTRAS)
    measured.add(scores)
    scored, time, kind, error, square, likelihood, likelihoods = [0.0] * 7
    for row in by_hand(scores):
        scored = 0.999 * scored + 1.0
        time = 0.999 * time + row[1] + math.log(unit)
        kind = 0.999 * kind + row[2]
        error = 0.999 * error + (row[4] != row[6])
        square = 0.999 * square + ((row[5] - row[0]) / unit) ** 2
        known = not math.isnan(row[9])
        likelihood = 0.999 * likelihood + (row[9] + math.log(unit) if known else 0.0)
        likelihoods = 0.999 * likelihoods + known
    found = measured.scores()
    assert found["log_likelihood_fading"] == pytest.approx((time + kind) / scored, rel=1e-12)
    assert found["time_log_likelihood_fading"] == pytest.approx(time / scored, rel=1e-12)
    assert found["type_log_loss_fading"] == pytest.approx(-kind / scored, rel=1e-12)
    assert found["type_error_fading"] == pytest.approx(error / scored, rel=1e-12)
    assert found["time_rmse_fading"] == pytest.approx(math.sqrt(square / scored), rel=1e-12)
    assert found["slow_log_likelihood_fading"] == pytest.approx(likelihood / likelihoods, rel=1e-12)


def test_gaps_are_counted_by_how_much_of_what_was_likely_lay_below_them():
    scores = some_scores(3_000)
    scores[5:9, 0] = 1.0
    scores[5:9, 3] = [0.0, -math.log1p(-0.25), 50.0, math.inf]  # also on the edge of a bin
    measured = Prequential()
    measured.add(scores[:2_000])
    measured.close_window()
    measured.add(scores[2_000:])
    below = [-math.expm1(-row[3]) for row in by_hand(scores)]
    bins = [min(int(20 * u + 1e-9), 19) for u in below]
    assert measured.pit.tolist() == [bins.count(i) for i in range(20)]
    found = measured.scores()
    late = [-math.expm1(-row[3]) for row in by_hand(scores[2_000:])]
    for suffix, part in (("", below), ("_window", late)):
        assert found[f"coverage_50{suffix}"] == sum(0.25 <= u + 1e-9 < 0.75 for u in part) / len(part)
        assert found[f"coverage_90{suffix}"] == sum(0.05 <= u < 0.95 for u in part) / len(part)
    assert abs(found["coverage_50"] - 0.5) < 4.0 * math.sqrt(0.25 / len(below))


def test_extras_are_averaged_over_scored_events_of_which_they_are_known():
    scores, unit = some_scores(900, extras=EXTRAS), 60.0
    measured = Prequential(unit, EXTRAS)
    measured.add(scores[:400])
    measured.close_window()
    measured.add(scores[400:])
    found = measured.scores()
    for suffix, part in (("", scores), ("_window", scores[400:])):
        for column, name in enumerate(EXTRAS, start=7):
            known = [row[column] for row in by_hand(part) if not math.isnan(row[column])]
            shift = math.log(unit) if name.endswith("log_likelihood") else 0.0
            assert found[name + suffix] == pytest.approx(sum(known) / len(known) + shift)
    nothing = Prequential(unit, EXTRAS)
    scores[:, 7:] = math.nan
    nothing.add(scores)
    assert all(math.isnan(nothing.scores()[name]) for name in EXTRAS)


def test_confidence_is_compared_with_how_often_it_was_right_by_tenths():
    scores = some_scores(2_000, extras=EXTRAS)
    scores[3, [0, 7]] = 1.0
    scores[4, [0, 7]] = [1.0, 0.0]
    measured = Prequential(extras=EXTRAS)
    measured.add(scores)
    found = measured.type_calibration()
    for tenth in range(10):
        rows = [row for row in by_hand(scores) if tenth == min(row[7] * 10 // 1, 9)]
        assert found["scored"][tenth] == len(rows) > 0
        assert found["confidence"][tenth] == pytest.approx(sum(row[7] for row in rows) / len(rows))
        assert found["accuracy"][tenth] == pytest.approx(sum(row[4] == row[6] for row in rows) / len(rows))


def test_scores_by_activity_are_those_of_the_events_of_keys_with_as_many_events():
    scores, unit = some_scores(2_000, extras=EXTRAS), 60.0
    measured = Prequential(unit, EXTRAS)
    measured.add(scores)
    found = measured.activity_scores()
    assert [activity_name(i) for i in range(len(found["scored"]))] == [
        "1", "2–3", "4–7", "8–15", "16–31", "32–63"
    ]  # fmt: skip
    for group in range(6):
        rows = [row for row in by_hand(scores) if 2**group <= row[8] < 2 ** (group + 1)]
        assert found["scored"][group] == len(rows) > 0
        assert found["type_error"][group] == pytest.approx(sum(r[4] != r[6] for r in rows) / len(rows))
        assert found["type_log_loss"][group] == pytest.approx(-sum(r[2] for r in rows) / len(rows))
        time = sum(r[1] + math.log(unit) for r in rows) / len(rows)
        assert found["time_log_likelihood"][group] == pytest.approx(time)


def test_a_state_of_before_goes_on_with_new_statistics_that_begin_there():
    scores = some_scores(3_000)
    older, newer = Prequential(60.0), Prequential(60.0)
    older.add(scores[:2_000])
    newer.add(scores[2_000:])
    state = older.state()
    state["total"], state["window"] = state["total"][:6], state["window"][:6]
    for name in ("extras", "fading", "by_activity", "by_confidence", "pit"):
        del state[name]
    resumed = Prequential(60.0)
    resumed.resume(json.loads(json.dumps(state)))
    assert math.isnan(resumed.scores()["coverage_50"])
    assert math.isnan(resumed.scores()["log_likelihood_fading"])
    resumed.add(scores[2_000:])
    older.add(scores[2_000:])
    found = resumed.scores()
    for name in ("events", "scored", "log_likelihood", "time_rmse", "ks", "drift"):
        assert found[name] == older.scores()[name]
    for name in ("coverage_50", "coverage_90", "log_likelihood_fading", "type_error_fading"):
        assert found[name] == pytest.approx(newer.scores()[name], rel=1e-12)
    assert resumed.pit.tolist() == newer.pit.tolist()


def test_scores_of_several_models_are_those_of_all_their_events():
    """Types are numbered differently by each, and known by their names."""
    extras, scores = EXTRAS, some_scores(3_000, extras=EXTRAS)
    whole, parts = Prequential(60.0, extras), [Prequential(60.0, extras) for _ in range(2)]
    whole.add(scores)
    names = ["a", "b", "c", "d", "e"]
    other = scores[1_200:].copy()
    for column in (4, 6):  # the predicted type, and the true one
        other[:, column] = 4.0 - other[:, column]
    parts[0].add(scores[:1_200])
    parts[1].add(other)
    state, found = merged_scores([part.state() for part in parts], [names, names[::-1]])
    merged = Prequential(60.0, extras)
    merged.resume(state)
    mine, theirs = merged.scores(), whole.scores()
    for name, value in theirs.items():
        if name not in ("ks", "drift", "drift_alarms") and not name.endswith(("_fading", "_window")):
            assert mine[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
    order = [found.index(name) for name in names[: len(whole.by_type)]]
    np.testing.assert_allclose(merged.by_type[order], whole.by_type)
    np.testing.assert_allclose(merged.by_activity, whole.by_activity)
    assert (merged.pit == whole.pit).all()


def test_a_state_with_other_extras_is_refused():
    state = Prequential(extras=EXTRAS).state()
    with pytest.raises(UsageError, match=r"scores of confidence, key_events, .* now gives none"):
        Prequential().resume(state)


def test_baselines_are_found_by_the_scores_their_columns_end_in():
    columns = ["confidence", "a_b_log_likelihood", "a_b_time_log_likelihood", "last_type_type_error"]
    assert baselines(columns) == {
        "a_b": {"log_likelihood": columns[1], "time_log_likelihood": columns[2]},
        "last_type": {"type_error": columns[3]},
    }


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
