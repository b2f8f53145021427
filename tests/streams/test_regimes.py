"""Streams of windows whose regime changes: what a pattern promises, what windows hold, what is refused."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamwise.streams import UsageError
from streamwise.streams.regimes import RegimeSettings, RegimeStream, regime_stream

SMALL = "length=6&windows=8&tests=5"
TAOBAO = Path(__file__).parents[3] / "shared" / "data" / "taobao" / "events.csv.gz"


def rows(examples):
    return sorted((example.label, example.features.tobytes()) for example in examples)


def drawn(url):
    stream = regime_stream(url)
    return stream, list(stream)


@pytest.fixture
def log(tmp_path):
    """Events of nine keys over a thousand seconds, more and more of them, some keys rarer than others."""
    random = np.random.default_rng(0)
    events = []
    for key in range(9):
        count = 8 if key == 8 else 120
        for time in 1_000.0 * random.random(count) ** 0.7:
            events.append((1.6e9 + round(time, 3), f"t{random.integers(4)}", f"k{key}"))
    path = tmp_path / "log.csv"
    lines = [f"{time:.3f},{kind},{key}" for time, kind, key in sorted(events)]
    path.write_text("\n".join(["time,type,user", *lines]) + "\n")
    return path, events


# ---- patterns


@pytest.mark.parametrize("process", ["hawkes", "renewal"])
@pytest.mark.parametrize("pattern", ["ABCDE", "ABACA", "A"])
def test_segments_follow_the_pattern_and_no_window_comes_twice(process, pattern):
    stream, examples = drawn(f"regimes:synthetic?pattern={pattern}&process={process}&{SMALL}")
    letters = [ord(letter) - ord("A") for letter in pattern]
    assert [tuple(segment) for segment in stream.segments] == [
        (8 * place, 8 * place + 8, letter) for place, letter in enumerate(letters)
    ]
    assert len(stream) == len(examples) == 8 * len(pattern)
    assert len(set(rows(examples))) == len(examples)
    for start, stop, regime in stream.segments:
        assert set(rows(examples[start:stop])) <= {
            (int(label), features.tobytes()) for features, label in zip(*stream.training[regime], strict=True)
        }
    tests = [features.tobytes() for test in stream.tests for features in test.features]
    assert len(tests) == 5 * len(set(pattern))
    assert not set(tests) & {example.features.tobytes() for example in examples}


def test_windows_hold_gaps_types_and_the_last_type():
    stream, examples = drawn(f"regimes:synthetic?pattern=AB&types=4&{SMALL}")
    assert (stream.types, stream.length) == (4, 6)
    for example in examples:
        assert example.features.shape == (6, 2)
        assert example.features.dtype == np.float32
        gaps, types = example.features.T
        assert gaps[0] == 0.0
        assert (gaps >= 0.0).all()
        assert set(types) <= {0.0, 1.0, 2.0, 3.0}
        assert example.label == types[-1]
    of_first = np.stack([example.features[1:, 0] for example in examples[:8]])
    assert stream.unit == pytest.approx(np.median(of_first))


@pytest.mark.parametrize("process", ["hawkes", "renewal"])
def test_regimes_differ_and_the_first_has_ten_events_an_hour(process):
    """Shares of types and rates, of parts of one regime and of two regimes, by chi-square and by means."""
    stream, examples = drawn(f"regimes:synthetic?pattern=ABA&process={process}&length=20&windows=200&seed=1")
    parts = [np.stack([e.features for e in examples[s.start : s.stop]]) for s in stream.segments]
    shares = [
        np.bincount(part[..., 1].ravel().astype(int), minlength=5) / part[..., 1].size for part in parts
    ]
    again, other = (np.abs(shares[0] - shares[place]).sum() for place in (2, 1))
    assert other > 3.0 * again
    gaps = [part[:, 1:, 0].mean() for part in parts]
    assert 0.5 < 360.0 / np.mean([gaps[0], gaps[2]]) < 2.0
    assert 0.4 < gaps[1] / np.mean([gaps[0], gaps[2]]) < 2.5


def test_tests_are_of_the_same_regime_as_what_is_learned():
    stream = regime_stream("regimes:synthetic?pattern=AB&process=renewal&length=20&windows=200&tests=200")

    def shares(part):
        pairs = part.features[..., 1].astype(int)
        counts = np.zeros((5, 5))
        np.add.at(counts, (pairs[:, :-1], pairs[:, 1:]), 1.0)
        return counts / counts.sum()

    near = [np.abs(shares(stream.training[r]) - shares(stream.tests[r])).sum() for r in range(2)]
    far = np.abs(shares(stream.training[0]) - shares(stream.tests[1])).sum()
    assert far > 3.0 * max(near)


def test_the_seed_decides_everything_that_is_drawn():
    url = f"regimes:synthetic?pattern=ABA&{SMALL}&seed="
    assert rows(drawn(f"{url}4")[1]) == rows(drawn(f"{url}4")[1])
    assert not set(rows(drawn(f"{url}4")[1])) & set(rows(drawn(f"{url}5")[1]))


def test_another_pattern_or_number_of_windows_leaves_the_processes_as_they_are():
    few, many = (regime_stream(f"regimes:synthetic?pattern=AB&length=6&windows={n}") for n in (5, 9))
    for regime in range(2):
        np.testing.assert_array_equal(few.training[regime].features, many.training[regime].features[:5])
        np.testing.assert_array_equal(few.tests[regime].features, many.tests[regime].features)


def test_mixed_is_the_same_windows_in_one_segment():
    url = f"regimes:synthetic?pattern=ABACA&{SMALL}"
    apart, examples = drawn(url)
    mixed, shuffled = drawn(f"{url}&mixed=true")
    assert rows(examples) == rows(shuffled)
    assert [e.label for e in examples] != [e.label for e in shuffled]
    assert [tuple(segment) for segment in mixed.segments] == [(0, 40, 0)]
    assert len(mixed.tests) == len(apart.tests) == 3


@settings(max_examples=15, deadline=None, derandomize=True)
@given(pattern=st.sampled_from(["A", "ABA", "ABC"]), place=st.integers(0, 30), mixed=st.booleans())
def test_it_goes_on_where_it_was(pattern, place, mixed):
    url = f"regimes:synthetic?pattern={pattern}&{SMALL}&mixed={str(mixed).lower()}"
    stream, whole = regime_stream(url), list(regime_stream(url))
    for _ in zip(range(place), stream, strict=False):
        pass
    again = regime_stream(url)
    again.seek(stream.position)
    stream.commit(stream.position)
    stream.close()
    rest = list(again)
    assert [e.features.tobytes() for e in rest] == [
        e.features.tobytes() for e in whole[stream.position["example"] :]
    ]


# ---- files


def test_windows_of_a_file_are_runs_of_a_key_within_a_part_of_the_time(log):
    path, events = log
    stream, examples = drawn(f"regimes:file:{path}?key=user&pattern=ABC&length=5")
    numbers: dict[str, int] = {}
    for _, kind, _ in sorted(events):
        numbers.setdefault(kind, len(numbers))
    times = np.array([time for time, _, _ in events])
    low, high = np.quantile(times, [0.001, 0.999])
    bounds = np.linspace(low, high, 4)
    expected: list[list[tuple[float, bytes]]] = []
    incomplete = 0
    for part in range(3):
        found = []
        last = part == 2
        for key in sorted({key for _, _, key in events}):
            of_key = sorted(
                (time, numbers[kind])
                for time, kind, other in events
                if other == key
                and bounds[part] <= time
                and (time <= high if last else time < bounds[part + 1])
            )
            for start in range(0, len(of_key) - 4, 5):
                run = of_key[start : start + 5]
                gaps = [0.0, *(b[0] - a[0] for a, b in pairwise(run))]
                features = np.array([gaps, [kind for _, kind in run]], np.float32).T
                found.append((run[-1][0], np.ascontiguousarray(features).tobytes()))
            incomplete += len(of_key) % 5
        expected.append(sorted(found))
    for part, found in enumerate(expected):
        tested = len(found) // 5
        training, tests = (
            [features.tobytes() for features in labelled.features]
            for labelled in (stream.training[part], stream.tests[part])
        )
        assert training == [features for _, features in found[:-tested]]
        assert tests == [features for _, features in found[-tested:]]
    outside = int(((times < low) | (times > high)).sum())
    assert stream.left_out == {"outside": outside, "incomplete": incomplete, "more": 0}
    in_windows = 5 * (len(stream) + sum(len(test.labels) for test in stream.tests))
    assert in_windows + sum(stream.left_out.values()) == len(events)
    assert stream.types == 4
    assert len(examples) == len(stream)


def test_a_part_of_a_file_that_comes_back_goes_on_where_it_was(log):
    path, _ = log
    stream, examples = drawn(f"regimes:file:{path}?key=user&pattern=ABA&length=5")
    assert [segment.experience for segment in stream.segments] == [0, 1, 0]
    again = [e.features.tobytes() for s in (0, 2) for e in examples[slice(*stream.segments[s][:2])]]
    assert again == [features.tobytes() for features in stream.training[0].features]


def test_no_more_windows_of_a_file_than_are_wanted_and_the_rest_is_counted(log):
    path, events = log
    url = f"regimes:file:{path}?key=user&pattern=AB&length=5"
    whole = regime_stream(url)
    stream = regime_stream(f"{url}&windows=10&tests=6")
    assert [segment.stop - segment.start for segment in stream.segments] == [10, 10]
    assert [len(test.labels) for test in stream.tests] == [6, 6]
    for regime in range(2):
        last = np.concatenate([whole.training[regime].features, whole.tests[regime].features])[-6:]
        np.testing.assert_array_equal(stream.tests[regime].features, last)
    in_windows = 5 * (len(stream) + 12)
    assert in_windows + sum(stream.left_out.values()) == len(events)
    assert stream.left_out["more"] > 0


def test_what_its_reader_refuses_is_counted(log, tmp_path):
    path, _ = log
    damaged = tmp_path / "damaged.csv"
    damaged.write_text(path.read_text() + "never,t0,k0\n1600000999.9,,k0\n")
    assert regime_stream(f"regimes:file:{damaged}?key=user&pattern=AB&length=5").left_out["refused"] == 2


@pytest.mark.skipif(not TAOBAO.is_file(), reason="the shopping log is not here")
def test_a_shopping_log_has_five_parts_of_its_calendar():
    stream = regime_stream(f"regimes:file:{TAOBAO}?key=sequence&pattern=ABCDE&length=16")
    assert stream.types == 17
    assert [segment.experience for segment in stream.segments] == [0, 1, 2, 3, 4]
    in_windows = 16 * (len(stream) + sum(len(test.labels) for test in stream.tests))
    assert in_windows + sum(stream.left_out.values()) == 115_397
    assert min(len(test.labels) for test in stream.tests) > 50
    assert 10.0 < stream.unit < 1_000.0
    counts = Counter(int(kind) for kind in stream.training[0].features[..., 1].ravel())
    assert len(counts) == 17


# ---- what is refused


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("regimes:synthetic?patern=AB", "unknown setting 'patern'. Did you mean 'pattern'"),
        ("regimes:synthetic?key=user", "unknown setting 'key'"),
        ("regimes:synthetic?windows=few", "windows=few is no number"),
        ("regimes:synthetic?mixed=maybe", "mixed=maybe; use true or false"),
        ("regimes:synthetic?pattern=ACA", "pattern is 'ACA'; use letters from A on"),
        ("regimes:synthetic?pattern=", "use letters from A on"),
        ("regimes:synthetic?length=1", "length is 1; use 2 or more"),
        ("regimes:synthetic?windows=-1", "windows is -1; use 0 or more"),
        ("regimes:synthetic?process=hawk", "no process 'hawk'. Did you mean 'hawkes'"),
        ("regimes:sintetic", "there are no regimes of 'sintetic'; write regimes:synthetic"),
        ("regimes:file:events.csv?kei=user", "unknown setting 'kei'. Did you mean 'key'"),
        ("regimes:file:events.csv?types=4", "unknown setting 'types'"),
        ("regimes:file:/nowhere/events.csv", "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(url, message):
    with pytest.raises(UsageError, match=message) as error:
        regime_stream(url)
    assert "\n" not in str(error.value)


def test_a_file_with_too_little_is_refused(log, tmp_path):
    path, _ = log
    with pytest.raises(UsageError, match="regime A has 0 windows of 200 events, too few to learn and test"):
        regime_stream(f"regimes:file:{path}?key=user&pattern=AB&length=200")
    empty = tmp_path / "empty.csv"
    empty.write_text("time,type,user\n")
    with pytest.raises(UsageError, match="has no events"):
        regime_stream(f"regimes:file:{empty}?key=user")


def test_settings_may_be_given_as_such():
    stream = RegimeStream(RegimeSettings(pattern="ABA", length=6, windows=8, tests=5))
    assert rows(stream) == rows(regime_stream(f"regimes:synthetic?pattern=ABA&{SMALL}"))
